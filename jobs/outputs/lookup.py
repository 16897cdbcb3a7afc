"""The newest committed row of one image, found without reading the rows of others."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun, state_of, stored_run, stored_runs
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.outputs.rows import newest_rows, rows_of_run
from maskfleet.jobs.storage.contract import Storage


@dataclass(frozen=True, kw_only=True)
class CommittedRow:
    """A row of the statistics and its origin.

    Attributes:
        run: The run.
        commit: Commit of the shard holding the row.
        row: Columns of the row, by name.
    """

    run: StoredRun
    commit: Commit
    row: dict[str, Any]


def newest_row(storage: Storage, name: str) -> CommittedRow:
    """Find the newest committed row of an image.

    Args:
        storage: Output storage.
        name: Key of the image, or any unique ending of it.

    Raises:
        JobError: No image has this key, several have this ending, or the image was deleted from the input.
        StorageError: A committed file is missing or damaged.
    """
    if (found := _first_row(storage, _likely_runs(storage, name), name)) is not None:
        return found
    keys = (table["key"].filter(pc.ends_with(table["key"], name)) for table in newest_rows(storage, ["key"]))
    key = chosen(name, (key for part in keys for key in part.to_pylist()))
    found = _first_row(storage, _likely_runs(storage, key), key)
    found = found or _first_row(storage, stored_runs(storage, newest_first=True), key)
    assert found is not None
    return found


def row_of_run(storage: Storage, run: StoredRun, name: str) -> CommittedRow:
    """Find the committed row of an image in one run.

    Args:
        storage: Output storage.
        run: The run.
        name: Key of the image, or any unique ending of it.

    Raises:
        JobError: No image of the run has this key, or several have this ending.
        StorageError: A committed file is missing or damaged.
    """
    if (found := _first_row(storage, [run], name)) is not None:
        return found
    tables = rows_of_run(storage, run.run_id)
    keys = (table["key"].filter(pc.ends_with(table["key"], name)) for table in tables)
    found = _first_row(storage, [run], chosen(name, (key for part in keys for key in part.to_pylist())))
    assert found is not None
    return found


def committed_row(storage: Storage, commits: Commits, shard: str, key: str) -> tuple[Commit, dict[str, Any]] | None:
    """Return the row of an image and the commit holding it; None if there is no commit yet.

    Args:
        storage: Output storage.
        commits: Commits of the run.
        shard: Shard of the image. If it was split, its halves are searched.
        key: Key of the image.
    """
    commit = commits.get(shard)
    if commit is None:
        return None
    if commit.split:
        halves = (committed_row(storage, commits, f"{shard}.{half}", key) for half in (0, 1))
        return next(filter(None, halves), None)
    table = rows_of(storage, commit)
    rows = table.filter(pc.equal(table["key"], key)).to_pylist()
    return (commit, rows[0]) if rows else None


def _first_row(storage: Storage, runs: Iterable[StoredRun], key: str) -> CommittedRow | None:
    for run in runs:
        try:
            planned = Manifest.stored(storage, run.run_id).find(key)
            found = planned and committed_row(storage, run.commits(storage), planned["shard"], key)
        except NotFound:  # interrupted before its plan was stored
            continue
        except Damaged:
            found = _row_without_plan(storage, run, key)
        if found:
            commit, row = found
            return CommittedRow(run=run, commit=commit, row=row)
    return None


def _row_without_plan(storage: Storage, run: StoredRun, key: str) -> tuple[Commit, dict[str, Any]] | None:
    """Search the intact shards of a damaged run."""
    for commit in run.committed(storage).values():
        with suppress(Damaged):
            if not commit.split and (found := committed_row(storage, run.commits(storage), commit.shard, key)):
                return found
    return None


def _likely_runs(storage: Storage, key: str) -> Iterator[StoredRun]:
    """Yield the runs likely to hold an image's newest row: an unfinished newest run, then the run in the catalog."""
    version = catalog.current(storage)
    runs = stored_runs(storage, newest_first=True)
    if not version.number:
        yield from runs
        return
    newest = next(runs, None)
    if newest is not None and state_of(storage, newest.run_id) == "unfinished":
        yield newest
    known = catalog.find(storage, version, key)
    if known is None:
        return
    if known["status"] == catalog.GONE:
        raise JobError(f"{key} was no longer in the input of run {known['run_id']}; earlier runs still have its masks")
    yield stored_run(storage, known["run_id"])
