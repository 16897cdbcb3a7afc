"""Executors process shards: the protocol, and the one without Ray.

An executor starts attempts and reports how each one ended. It does not decide what follows: the loop in
`jobs.run.execute` commits, counts, and decides whether to retry, split or give up.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, Stopped, StorageError
from maskfleet.jobs.run.attempt import ShardReport, run_shard
from maskfleet.jobs.run.backlog import Backlog, Task
from maskfleet.jobs.run.begin import Run, Stop
from maskfleet.jobs.run.open_pipeline import open_pipeline
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT, Pipeline
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.training.loop import TrainingLoop
from maskfleet.jobs.training.loop import train as train_in_this_process

OpenPipeline = Callable[[Run, int], Pipeline]
"""Opens the pipeline of a worker, given the run and the worker's number of CPU cores."""


@dataclass(frozen=True, kw_only=True)
class FailedAttempt:
    """An attempt ended by its worker's death or by an error.

    Attributes:
        task: The shard and its history.
        error: The error.
        alone: Whether the worker had no other shard, so this one is certainly to blame.
    """

    task: Task
    error: Exception
    alone: bool


Ended = ShardReport | FailedAttempt | None
"""How an attempt ended. None is a periodic tick: no attempt ended within the last second or so."""


class Attempts(Protocol):
    """The attempts of one run, in progress."""

    def __iter__(self) -> Iterator[Ended]:
        """Yield how each attempt ended, until the backlog is empty and nothing is in progress.

        Raises:
            Stopped: The run was asked to stop and no shard is in progress any more.
            MaskfleetError: No attempt can succeed, or storage failed.
        """

    def recorded(self, report: ShardReport) -> None:
        """Record a newly committed shard in logs and metrics."""


class Executor(Protocol):
    """Processes the shards of a run."""

    train: TrainingLoop
    """Training loop for fine-tuning before the run."""

    def attempts(
        self, run: Run, backlog: Backlog, progress: Progress, stop: Stop
    ) -> AbstractContextManager[Attempts]:  # fmt: skip
        """Start processing the shards of a backlog. Not called for an empty backlog.

        Args:
            run: The run.
            backlog: Shards without a commit. The caller puts failed shards back.
            progress: Receives startup steps and the number of lost workers.
            stop: Returns True once no further shard may start.
        """


class InProcess:
    """Processes shards in this process, in one pipeline.

    Args:
        open_pipeline: Opens the pipeline. Tests and benchmarks pass their own.
    """

    def __init__(self, open_pipeline: OpenPipeline = open_pipeline) -> None:
        self.train: TrainingLoop = train_in_this_process
        self._open_pipeline = open_pipeline

    @contextmanager
    def attempts(self, run: Run, backlog: Backlog, progress: Progress, stop: Stop) -> Iterator["InProcessAttempts"]:
        """See `Executor.attempts`."""
        progress.enter("preparing the network")
        with self._open_pipeline(run, cores()) as pipeline, ThreadPoolExecutor(SHARDS_IN_FLIGHT, "shard") as pool:
            progress.reached("worker")
            progress.enter("segmenting")
            yield InProcessAttempts(run, backlog, progress, stop, pipeline=pipeline, pool=pool)


class InProcessAttempts:
    """The attempts of one run in this process. As on a worker, one shard is written while the next is decoded.

    Args:
        run: The run.
        backlog: Shards without a commit.
        progress: Receives the number of attempts that raised an error.
        stop: Returns True once no further shard may start.
        pipeline: The pipeline.
        pool: One thread per shard in progress.
    """

    def __init__(
        self,
        run: Run,
        backlog: Backlog,
        progress: Progress,
        stop: Stop,
        *,
        pipeline: Pipeline,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._run = run
        self._backlog = backlog
        self._progress = progress
        self._stop = stop
        self._pipeline = pipeline
        self._pool = pool

    def __iter__(self) -> Iterator[Ended]:
        """See `Attempts`."""
        working: dict[Future[ShardReport], Task] = {}
        draining = False
        while working or (self._backlog and not draining):
            draining = draining or self._stop()
            while len(working) < SHARDS_IN_FLIGHT and not draining and (task := self._backlog.take(idle=True)):
                working[self._pool.submit(run_shard, self._run.output, task.shard, self._pipeline)] = task
            if not working:  # the next shard is not planned yet
                time.sleep(0.01)
            for future in wait(working, timeout=0.1, return_when=FIRST_COMPLETED).done:
                yield self._ended(future, working.pop(future))
        if self._backlog:
            raise Stopped

    def _ended(self, future: Future[ShardReport], task: Task) -> ShardReport | FailedAttempt:
        try:
            return future.result()
        except (StorageError, JobError):
            raise
        except Exception as error:
            self._progress.deaths += 1
            return FailedAttempt(task=task, error=error, alone=True)

    def recorded(self, report: ShardReport) -> None:
        """Do nothing: this process has neither event log nor metrics."""
