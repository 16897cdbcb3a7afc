"""Garbage collection: leftovers of superseded attempts and killed writes, merged catalog files, dead indexes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from maskfleet.jobs.errors import Damaged
from maskfleet.jobs.inputs import indexes
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import PROBES, Commits
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.ledger.runs import on_overlap
from maskfleet.jobs.storage.contract import Entry, Storage
from maskfleet.jobs.storage.schemes import open_storage

GRACE = 24 * 3600.0
"""Least age of a deleted file in seconds: longer than any attempt that may still commit."""


@dataclass
class Garbage:
    """The result of a collection.

    Attributes:
        paths: Paths of unreferenced files.
        size: Their total size in bytes.
        young: Number of unreferenced files kept for their age.
        deleted: Whether the files were deleted.
        damaged: Runs with a damaged commit, whose attempts are all kept, each with the reason.
    """

    paths: list[str] = field(default_factory=list)
    size: int = 0
    young: int = 0
    deleted: bool = False
    damaged: list[str] = field(default_factory=list)


def collect(
    output: str,
    *,
    profile: str | None = None,
    grace: float = GRACE,
    delete: bool = False,
    waiting: Callable[[str], object] = lambda _: None,
) -> Garbage:
    """Find files that nothing references: of attempts, killed writes, the catalog, and indexes of deleted tars.

    Deleting takes the lock, so that no attempt loses its files before its commit. A run in progress is treated as its
    job's `run.on_overlap` says.

    Args:
        output: Output of a job: path or URL.
        profile: AWS profile.
        grace: Least age of a deleted file in seconds.
        delete: Whether to delete the files. If not, nothing is changed.
        waiting: See `jobs.ledger.lock.locked`.

    Raises:
        Locked: A run holds the output, and the files are to be deleted.
    """
    storage = open_storage(output, profile=profile)
    if not delete:
        return _collected(storage, profile, grace, delete=False)
    with locked(storage, on_overlap(storage), waiting=waiting) as lock:
        return _collected(lock.fence.storage, profile, grace, delete=True)


def _collected(storage: Storage, profile: str | None, grace: float, *, delete: bool) -> Garbage:
    found = Garbage(deleted=delete)
    # Files are listed before references are read, so a file committed in between is not taken for garbage.
    everything = chain(
        _attempts(storage, found), _catalog_files(storage), _indexes(storage, profile), _killed_writes(storage)
    )
    for entries, referenced in everything:
        for entry in entries:
            if entry.path in referenced:
                continue
            if entry.modified is None or time.time() - entry.modified < grace:
                found.young += 1
                continue
            found.paths.append(entry.path)
            found.size += entry.size
            if delete:
                storage.delete(entry.path)
    return found


def _attempts(storage: Storage, found: Garbage) -> Iterator[tuple[list[Entry], set[str]]]:
    for run_id in storage.names("runs"):
        entries = list(storage.walk(f"runs/{run_id}/shards"))
        try:
            commits = Commits(storage, run_id, "driver").all() if entries else {}
        except Damaged as error:  # it may name any of them
            found.damaged.append(f"run {run_id} is left alone: {error}")
            continue
        yield entries, {item.path for commit in commits.values() for item in commit.objects.values()}


def _catalog_files(storage: Storage) -> Iterator[tuple[list[Entry], set[str]]]:
    entries = list(storage.walk("catalog/rows"))
    yield entries, {file.path for version in catalog.kept(storage) for delta in version.deltas for file in delta}


def _indexes(storage: Storage, profile: str | None) -> Iterator[tuple[list[Entry], set[str]]]:
    yield list(storage.walk(indexes.FOLDER)), indexes.in_use(storage, profile=profile)


def _killed_writes(storage: Storage) -> Iterator[tuple[list[Entry], set[str]]]:
    yield [*storage.leftovers(), *storage.walk(PROBES)], set()
