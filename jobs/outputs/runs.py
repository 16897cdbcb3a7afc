"""The runs of an output and their logs, from storage alone: no cluster needed."""

from dataclasses import dataclass

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.ledger.runs import SET_ASIDE, set_aside_of, stored_run, summary_of
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass(frozen=True)
class RunEntry:
    """A run of an output.

    Attributes:
        id: Id of the run. It starts with the run's start time in UTC, so ids sort by age.
        name: Name of the job; None if it has none.
        state: `complete`, `incomplete` (too many images failed), `unfinished`, or `set_aside` (damaged).
        exit_code: Exit code of the command; None while the run is unfinished.
        images: Number of planned images; None while the run is unfinished.
        failed: Number of failed images; None while the run is unfinished.
        problem: Damage because of which the run was set aside, or "".
    """

    id: str
    name: str | None
    state: str
    exit_code: int | None
    images: int | None
    failed: int | None
    problem: str = ""


def runs(output: str, *, profile: str | None = None) -> list[RunEntry]:
    """Return the runs of an output, the newest first."""
    storage = open_storage(output, profile=profile)
    return [entry for run_id in reversed(storage.names("runs")) if (entry := _entry(storage, run_id)) is not None]


def _entry(storage: Storage, run_id: str) -> RunEntry | None:
    """Return the entry of a run; None if it was interrupted before its description was written."""
    summary = dict(summary_of(storage, run_id) or {})
    aside = {} if summary else dict(set_aside_of(storage, run_id) or {})
    name, problem = None, aside.get("reason", "")
    try:
        name = stored_run(storage, run_id).job.get("name")
    except NotFound:
        if not aside:
            return None
    except Damaged as error:
        problem = problem or str(error)
    return RunEntry(
        id=run_id,
        name=name,
        state=summary.get("status", SET_ASIDE if aside else "unfinished"),
        exit_code=summary.get("exit_code"),
        images=summary.get("images", aside.get("planned")),
        failed=summary.get("failed", aside.get("failed")),
        problem=problem,
    )


def log(output: str, *, profile: str | None = None) -> str:
    """Return the log of the newest run with a log.

    Raises:
        JobError: No run has a log.
    """
    storage = open_storage(output, profile=profile)
    for run_id in reversed(storage.names("runs")):
        if names := storage.names(f"runs/{run_id}/logs"):
            return "".join(storage.read(f"runs/{run_id}/logs/{name}").decode() for name in names)
    raise JobError(f"no run in {output} has a log; a run with --no-ray keeps none; for a submission, give --address")
