"""A run, read from top to bottom: begin → attempts → finish.

`begin` lists the input, locks the output and freezes a plan; the executor attempts every shard of it; `finish` writes
everything derived from the commits. The executor is this process or a fleet of Ray workers; the rest is identical.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

from maskfleet.jobs.errors import MaskfleetError, Stopped, StorageError, Unfinished
from maskfleet.jobs.images.contract import Failure
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.catalog import Unreadable
from maskfleet.jobs.ledger.commit import pending
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.run import webhook
from maskfleet.jobs.run.attempt import ShardReport, fail_shard, settle
from maskfleet.jobs.run.backlog import Backlog
from maskfleet.jobs.run.begin import Run, Stop, begin
from maskfleet.jobs.run.executor import Ended, Executor, FailedAttempt, InProcess
from maskfleet.jobs.run.finish import finish
from maskfleet.jobs.run.progress import OnPhase, Progress
from maskfleet.jobs.run.recovery.unfinished import forget_catalog, set_aside
from maskfleet.jobs.run.refusals import Refusals
from maskfleet.jobs.run.summary import RunSummary
from maskfleet.jobs.training.finetune import apply_finetuning
from maskfleet.jobs.training.loop import OnStep

_SET_ASIDE = 3
"""Damaged runs that one command sets aside. With more, storage itself loses records."""

OnProgress = Callable[[Run, Progress], None]
"""Called at the start, after every shard, and about once a second."""

OnFinished = Callable[[Run, RunSummary], None]
"""Called once a run is finished, while its output is still locked. Raises nothing."""

Draining = Callable[[], AbstractContextManager[object]]


def run(
    job: Job, executor: Executor | None = None, *, on_progress: OnProgress | None = None,
    on_training_step: OnStep | None = None, on_phase: OnPhase | None = None, stopped: Stop | None = None,
    draining: Draining = nullcontext, on_finished: OnFinished | None = None,
) -> RunSummary:  # fmt: skip
    """Run a job: fine-tune first if the job asks for it, then segment every image that needs work.

    The same call on an output with an unfinished run of this job resumes that run.

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
        on_finished: Called once a run is finished, while its output is still locked. Must raise nothing.

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
    notices = webhook.check(job)
    executor = executor or InProcess()
    seconds = job.run.deadline_seconds
    deadline = math.inf if seconds is None else time.monotonic() + seconds

    def stop() -> bool:
        return time.monotonic() > deadline or bool(stopped and stopped())

    try:
        with draining() if job.finetune.images else nullcontext():
            job = apply_finetuning(job, on_step=on_training_step, stopped=stop, loop=executor.train)
        watched = _Watched(on_progress or _nothing, on_phase or _nothing, stop, draining, notices, on_finished)
        summary = _run_on(job, executor, watched)
    except Stopped:
        if time.monotonic() <= deadline:
            raise
        late = Unfinished(
            f"the deadline ({job.run.deadline}) passed before the last shard; run the same command to resume"
        )
        webhook.post(job, {"name": job.name, "output": job.output, "status": "unfinished", "error": str(late)})
        raise late from None
    except MaskfleetError as error:
        webhook.post(job, {"name": job.name, "output": job.output, "status": "error", "error": str(error)})
        raise
    webhook.post(job, {"name": job.name, "output": job.output, **summary.to_json()})
    return summary


class _Watched(NamedTuple):
    """How a caller watches and stops a run.

    Attributes:
        on_progress: See `run`.
        on_phase: See `run`.
        stop: See `run`.
        draining: See `run`.
        notices: Sentences for people, shown with the progress.
        on_finished: See `run`.
    """

    on_progress: OnProgress
    on_phase: OnPhase
    stop: Stop
    draining: Draining
    notices: list[str]
    on_finished: OnFinished | None


def _nothing(*_: object) -> None:
    pass


def _run_on(job: Job, executor: Executor, watched: _Watched) -> RunSummary:
    """Carry out runs until one has listed the input to its end. A damaged run is set aside for the next one."""
    summary: RunSummary | None = None
    aside = 0
    while summary is None or not summary.listed_to_its_end:
        # A resumed run may have an incomplete plan; another run processes the remaining images.
        rest = _run_once(job, executor, watched, may_set_aside=aside < _SET_ASIDE)
        if rest is None:
            aside += 1
        else:
            summary = rest if summary is None else _joined(summary, rest)
    return summary


def _joined(first: RunSummary, rest: RunSummary) -> RunSummary:
    """Return the summary of the last run, with what an earlier run of the same command complained about."""
    known = {each["check"] for each in rest.warnings}
    warnings = [*(each for each in first.warnings if each["check"] not in known), *rest.warnings]
    return replace(rest, exit_code=max(first.exit_code, rest.exit_code), warnings=warnings)


def _run_once(job: Job, executor: Executor, watched: _Watched, *, may_set_aside: bool) -> RunSummary | None:
    """Carry out one run. Returns None if it, or the catalog, had to be set aside."""
    try:
        return _begun(job, executor, watched, may_set_aside=may_set_aside)
    except Unreadable as error:
        if not may_set_aside:
            raise
        watched.notices.append(forget_catalog(job, error, watched.stop))
        return None


def _begun(job: Job, executor: Executor, watched: _Watched, *, may_set_aside: bool) -> RunSummary | None:
    """Carry out one run. Returns None if it had to be set aside."""
    progress = Progress(watched.notices, watched.on_phase)
    with begin(job, watched.stop, progress) as run:
        try:
            _process(run, executor, watched, progress)
            progress.enter("writing tables")
            summary = finish(run, progress)
        except Unreadable:
            raise
        except StorageError as error:
            if not may_set_aside:
                raise
            if run.live is not None:
                run.live.close()
            watched.notices.append(
                set_aside(run.output.storage, run.run_id, error, Fence(run.output.storage, run.generation))
            )
            return None
        if watched.on_finished is not None:
            progress.enter("writing the report")
            watched.on_finished(run, summary)
    return summary


def _process(run: Run, executor: Executor, watched: _Watched, progress: Progress) -> None:
    backlog = backlog_of(run, progress)
    watched.on_progress(run, progress)
    if not backlog:
        return
    refusals = Refusals()
    with executor.attempts(run, backlog, progress, watched.stop) as attempts, watched.draining():
        for ended in attempts:
            if (report := _settled(run, backlog, ended)) is not None:
                progress.add(report)
                attempts.recorded(report)
                refusals.add(report)
            progress.images = run.images
            watched.on_progress(run, progress)


def backlog_of(run: Run, progress: Progress) -> Backlog:
    """Return the shards without a commit; count the others as done."""
    commits = run.output.commits.all()
    progress.images = run.images
    failed = sum(commit.failed for commit in commits.values())
    progress.resumed(ok=sum(commit.images for commit in commits.values()) - failed, failed=failed)
    progress.reached("plan")
    progress.started = time.monotonic()
    shards = run.live.shards() if run.live else pending(run.output.manifest.shards(), commits)
    return Backlog(shards, attempts=run.job.run.attempts)


def _settled(run: Run, backlog: Backlog, ended: Ended) -> ShardReport | None:
    """Commit the attempt if needed; return the report of the committed shard, or None."""
    match ended:
        case None:
            return None
        case FailedAttempt():
            return _judged(run, backlog, ended)
        case ShardReport(committed=True):
            return ended
        case ShardReport():  # only the driver may commit to this storage
            return replace(ended, commit=settle(run.output, ended.commit), committed=True)


def _judged(run: Run, backlog: Backlog, failed: FailedAttempt) -> ShardReport | None:
    """Retry, split or give up on a shard after a failed attempt.

    Returns:
        The report of a given-up image, or of an attempt found to be committed; None otherwise.
    """
    task = failed.task
    verdict = backlog.died(task, alone=failed.alone)
    if verdict == "split":
        # The split is committed first, so an attempt still running elsewhere cannot be committed beside the halves.
        commit = run.output.commits.split(task.shard)
        if not commit.split:  # an attempt has committed in the meantime
            return ShardReport(shard=task.shard, commit=commit, committed=True)
        backlog.halves(task)
    elif verdict == "give_up":
        attempts = f"{task.deaths + 1} attempt{'s' if task.deaths else ''}"
        message = f"this image failed {attempts} ({_line(failed.error)}); inspect this file"
        return fail_shard(run.output, task.shard, Failure("worker", _class_of(failed.error), message))
    return None


def _class_of(error: Exception) -> str:
    # torch and Ray each define their own OutOfMemoryError.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "out_of_memory" if out_of_memory else "crash"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
