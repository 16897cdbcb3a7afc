"""The runs of an output and their logs, from storage alone: no cluster needed."""

from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.runs import stored_runs, summary_of
from maskfleet.jobs.storage.schemes import open_storage


@dataclass(frozen=True)
class RunEntry:
    """A run of an output.

    Attributes:
        id: Id of the run. It starts with the run's start time in UTC, so ids sort by age.
        name: Name of the job; None if it has none.
        state: `complete`, `incomplete` (too many images failed) or `unfinished`.
        exit_code: Exit code of the command; None while the run is unfinished.
        images: Number of planned images; None while the run is unfinished.
        failed: Number of failed images; None while the run is unfinished.
    """

    id: str
    name: str | None
    state: str
    exit_code: int | None
    images: int | None
    failed: int | None


def runs(output: str, *, profile: str | None = None) -> list[RunEntry]:
    """Return the runs of an output, the newest first."""
    storage = open_storage(output, profile=profile)
    entries = []
    for run in stored_runs(storage, newest_first=True):
        summary: dict[str, Any] = dict(summary_of(storage, run.run_id) or {})
        entries.append(
            RunEntry(
                id=run.run_id,
                name=run.job.get("name"),
                state=summary.get("status", "unfinished"),
                exit_code=summary.get("exit_code"),
                images=summary.get("images"),
                failed=summary.get("failed"),
            )
        )
    return entries


def log(output: str, *, profile: str | None = None) -> str:
    """Return the log of the newest run with a log.

    Raises:
        JobError: No run has a log.
    """
    storage = open_storage(output, profile=profile)
    for run_id in reversed(storage.names("runs")):
        if names := storage.names(f"runs/{run_id}/logs"):
            return "".join(storage.read(f"runs/{run_id}/logs/{name}").decode() for name in names)
    raise JobError(f"no run in {output} has a log; correct the path, or ask the cluster with --address")
