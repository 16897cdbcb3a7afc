"""What nothing needs: attempts that lost or were cut off, merged catalog files, indexes of tars that are gone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from maskfleet.jobs.inputs import indexes
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.storage.contract import Entry, Storage
from maskfleet.jobs.storage.schemes import open_storage

GRACE = 24 * 3600.0
"""Seconds that a file must be old: longer than any attempt that may still be alive somewhere and commit."""


@dataclass
class Garbage:
    """What was found.

    Attributes:
        paths: Of files that nothing names.
        size: Bytes of them.
        young: Files that nothing names yet, left alone for their age.
        deleted: Whether they are gone.
    """

    paths: list[str] = field(default_factory=list)
    size: int = 0
    young: int = 0
    deleted: bool = False


def collect(output: str, *, profile: str | None = None, grace: float = GRACE, delete: bool = False) -> Garbage:
    """Find, and delete if told, what no commit and no version of the catalog names, and indexes without their tar.

    Args:
        output: A job's.
        profile: AWS profile.
        grace: Seconds that a file must be old.
        delete: Whether to delete; else nothing is changed.
    """
    storage = open_storage(output, profile=profile)
    found = Garbage(deleted=delete)
    # Files first and names second: what is committed in between is then named.
    kinds = chain(_attempts(storage), _of_catalog(storage), _of_indexes(storage, profile))
    for entries, named in kinds:
        for entry in entries:
            if entry.path in named:
                continue
            if entry.modified is None or time.time() - entry.modified < grace:
                found.young += 1
                continue
            found.paths.append(entry.path)
            found.size += entry.size
            if delete:
                storage.delete(entry.path)
    return found


def _attempts(storage: Storage) -> Iterator[tuple[list[Entry], set[str]]]:
    for run_id in storage.names("runs"):
        entries = list(storage.walk(f"runs/{run_id}/shards"))
        commits = Commits(storage, run_id, "driver").all() if entries else {}
        yield entries, {item.path for commit in commits.values() for item in commit.objects.values()}


def _of_catalog(storage: Storage) -> Iterator[tuple[list[Entry], set[str]]]:
    entries = list(storage.walk("catalog/rows"))
    yield entries, {file.path for version in catalog.kept(storage) for delta in version.deltas for file in delta}


def _of_indexes(storage: Storage, profile: str | None) -> Iterator[tuple[list[Entry], set[str]]]:
    yield list(storage.walk(indexes.FOLDER)), indexes.in_use(storage, profile=profile)
