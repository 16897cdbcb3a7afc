"""What a report is made of: the records of a run, its figures and pictures, and the nights before it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.errors import Damaged, MaskfleetError, NotFound, redacted
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun, described, set_aside_of, summary_of
from maskfleet.jobs.outputs.report.gathered import nights as nights_of
from maskfleet.jobs.outputs.report.gathered import pace as pace_of
from maskfleet.jobs.outputs.report.gathered.figures import Figures, collect
from maskfleet.jobs.outputs.report.gathered.nights import Night
from maskfleet.jobs.outputs.report.gathered.pace import Pace
from maskfleet.jobs.outputs.report.gathered.picks import Group, groups
from maskfleet.jobs.outputs.report.gathered.pictures import Picture, pictures
from maskfleet.jobs.storage.contract import Storage


@dataclass(frozen=True, kw_only=True)
class Material:
    """The material of a report.

    Attributes:
        record: Content of `job.json`.
        summary: Content of `run.json`; empty if the run is not finished.
        planned: Number of planned images, as far as known.
        problem: Why the run was set aside; "" otherwise.
        figures: Figures of its rows.
        nights: Finished runs before it with the same classes, the oldest first.
        groups: Images to show.
        pictures: Their pictures by key, as far as they could be drawn.
        unpictured: Why pictures could not be made, in one sentence; "" if they could.
        pace: Its rate over time, or None.
        seconds: Seconds that collecting all this took.
    """

    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    planned: int
    problem: str
    figures: Figures
    nights: list[Night]
    groups: list[Group]
    pictures: Mapping[str, Picture]
    unpictured: str
    pace: Pace | None
    seconds: float

    @property
    def run(self) -> StoredRun:
        """The run."""
        return StoredRun.of(self.record)

    @property
    def output(self) -> str:
        """Output of the job."""
        return str(self.run.job["output"])


def gather(storage: Storage, run_id: str, *, profile: str | None, anew: bool) -> Material:
    """Gather the material of a run's report.

    Args:
        storage: Output storage.
        run_id: The run.
        profile: AWS profile, if the job names none for its input.
        anew: Whether earlier nights without stored figures are read again.

    Raises:
        NotFound: There is no such run.
        Damaged: Its records are unreadable.
    """
    began = time.monotonic()
    record = described(storage, run_id)
    run = StoredRun.of(record)
    summary = summary_of(storage, run_id) or {}
    figures = collect(nights_of.rows(storage, run_id), seed=run_id)
    chosen = groups(figures)
    shown, problem = _pictures(storage, run, chosen, profile)
    return Material(
        record=record,
        summary=summary,
        planned=int(summary["images"]) if summary else _planned(storage, run_id),
        problem="" if summary else str((set_aside_of(storage, run_id) or {}).get("reason", "")),
        figures=figures,
        nights=_nights(storage, run_id, figures, anew=anew),
        groups=chosen,
        pictures=shown,
        unpictured=problem,
        pace=pace_of.pace(
            storage, run_id, figures.attempts, created=run.created, finished=str(summary.get("finished", ""))
        ),
        seconds=time.monotonic() - began,
    )


def _pictures(
    storage: Storage, run: StoredRun, chosen: list[Group], profile: str | None
) -> tuple[dict[str, Picture], str]:
    """Return the pictures that can be made, and why others cannot: a report without pictures is better than none."""
    rows = [pick.row for group in chosen for pick in group.picks]
    found: dict[str, Picture] = {}
    try:
        if rows:
            found.update(pictures(storage, run, rows, profile=profile))  # keeps those made before an error
    except (MaskfleetError, OSError) as error:
        return found, redacted(str(error))
    late = len(rows) - len(found)
    return found, f"{late} could not be drawn in time, or their masks are damaged" if late else ""


def _planned(storage: Storage, run_id: str) -> int:
    try:
        return Manifest.stored(storage, run_id).images
    except (NotFound, Damaged):
        return 0


def _nights(storage: Storage, run_id: str, figures: Figures, *, anew: bool) -> list[Night]:
    if figures.distributions is None:
        return []
    classes = len(figures.distributions.areas)
    found = nights_of.before(storage, run_id, count=nights_of.BEFORE, anew=anew)
    return [night for night in found if night.distributions and len(night.distributions.areas) == classes]
