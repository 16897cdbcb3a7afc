"""The rows of a run, and the nights before it to compare with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from maskfleet.jobs.errors import Damaged, NotFound, StorageError
from maskfleet.jobs.ledger.runs import StoredRun, state_of, stored_run, summary_of
from maskfleet.jobs.outputs.report.gathered.figures import COLUMNS, Distributions, collect
from maskfleet.jobs.run.recovery.derived import committed_rows, rows_of_finished
from maskfleet.jobs.storage.contract import Storage

FIGURES = "figures.json"
"""File beside `report.html` with the distributions of a run."""

BEFORE = 7
"""Nights that a report compares with."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """A finished run.

    Attributes:
        run: The run.
        summary: Content of its `run.json`.
        distributions: Its distributions; None if it has no image with a mask.
    """

    run: StoredRun
    summary: Mapping[str, Any]
    distributions: Distributions | None

    @property
    def day(self) -> str:
        """Month and day of its start, such as "11-28"."""
        return self.run.created[5:10]


def rows(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the rows of a run, finished or not, in batches of bounded size with `figures.COLUMNS`."""
    if state_of(storage, run_id) == "unfinished":
        yield from (table.select(list(COLUMNS)) for table in committed_rows(storage, run_id))
    else:
        yield from rows_of_finished(storage, run_id, COLUMNS)


def before(storage: Storage, run_id: str, *, count: int, anew: bool) -> list[Night]:
    """Return the finished runs with images before a run, the oldest first.

    Args:
        storage: Output storage.
        run_id: The run.
        count: Most nights returned.
        anew: Whether figures that an earlier version did not store are collected from the statistics. If not, such
            nights are left out.
    """
    found: list[Night] = []
    for earlier in reversed([name for name in storage.names("runs") if name < run_id]):
        if len(found) == count:
            break
        if (night := finished_night(storage, earlier, anew=anew)) is not None:
            found.append(night)
    return found[::-1]


def finished_night(storage: Storage, run_id: str, *, anew: bool) -> Night | None:
    """Return a finished run with images, or None. See `before`."""
    summary = summary_of(storage, run_id)
    if summary is None or not summary.get("images"):
        return None
    try:
        run = stored_run(storage, run_id)
        stored = _stored(storage, run_id)
        if stored is None and not anew:
            return None
        distributions = stored or collect(rows(storage, run_id), seed=run_id).distributions
    except (NotFound, Damaged):
        return None
    return Night(run=run, summary=summary, distributions=distributions)


def _stored(storage: Storage, run_id: str) -> Distributions | None:
    try:
        return Distributions.from_json(storage.read(f"runs/{run_id}/{FIGURES}"))
    except StorageError:
        return None
