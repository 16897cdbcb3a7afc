"""A run with its report: what the command line and the Python API call."""

import logging
from contextlib import nullcontext

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.outputs.report.gathered.material import gather
from maskfleet.jobs.outputs.report.write import write
from maskfleet.jobs.run import execute
from maskfleet.jobs.run.begin import Run, Stop
from maskfleet.jobs.run.executor import Executor
from maskfleet.jobs.run.progress import OnPhase
from maskfleet.jobs.run.summary import RunSummary
from maskfleet.jobs.training.loop import OnStep

_log = logging.getLogger("maskfleet")


def run(
    job: Job, executor: Executor | None = None, *, on_progress: execute.OnProgress | None = None,
    on_training_step: OnStep | None = None, on_phase: OnPhase | None = None, stopped: Stop | None = None,
    draining: execute.Draining = nullcontext,
) -> RunSummary:  # fmt: skip
    """Run a job: fine-tune first if the job asks for it, then segment every image that needs work.

    The same call on an output with an unfinished run of this job resumes that run. At its end a report with pictures is
    written, `runs/<run_id>/report.html`; if this fails, the outcome stays the same.

    Args:
        job: The job.
        executor: Executor of the attempts; None for this process.
        on_progress: Called at the start, after every shard, and about once a second.
        on_training_step: Called after every training step.
        on_phase: Called at the start of each phase with its name, such as "listing the input".
        stopped: Called before each shard and each training step. Once it returns True, the run stops after the shards
            in progress.
        draining: Entered while shards or training steps are in progress. Outside of it the caller may end the run by
            an exception at any moment: the same call resumes it.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Refused: The gate refused the new weights.
        Locked: Another run holds the output.
        Stopped: `stopped` returned True.
        Unfinished: The deadline passed before the last shard.
        Denied: Storage refuses most images.
        StorageError: Storage keeps failing.
        MaskfleetError: The executor failed; the message names the cause.
    """
    return execute.run(
        job, executor, on_progress=on_progress, on_training_step=on_training_step, on_phase=on_phase, stopped=stopped,
        draining=draining, on_finished=write_at_end,
    )  # fmt: skip


def write_at_end(run: Run, summary: RunSummary) -> None:
    """Write the report of a run that has just ended, fenced like its `run.json`. Never changes the run's outcome.

    Args:
        run: The run, still locked.
        summary: Its outcome.
    """
    try:
        storage = Fence(run.output.storage, run.generation).storage
        material = gather(storage, run.run_id, profile=run.job.profile, anew=False)
        write(storage, material)
    except Exception as error:  # the run is complete without it, whatever fails here
        _log.warning("the report of run %s could not be written: %s", run.run_id, error)
