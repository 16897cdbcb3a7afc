"""The driver: hands shards to workers on a Ray cluster, and reports how each attempt ended.

Only shards go out and only small reports come back. No pixels enter Ray's object store, and the driver's memory does
not grow with the number of images. Ray retries nothing: only the driver can count the attempts at a shard, and only
the commit tells whether an attempt took effect. A lost worker is replaced wherever there is room. Ray's own restart
would first wait until the loss of a node is certain.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from maskfleet.cluster.breaker import JobBreaker, NetworkBreaker
from maskfleet.cluster.connection import ClusterError, Connection
from maskfleet.cluster.event_log import EventLog
from maskfleet.cluster.metrics import Metrics
from maskfleet.cluster.train import on_ray
from maskfleet.cluster.workers import LOOK_SECONDS, WorkerHandle, Workers
from maskfleet.jobs.errors import MaskfleetError, Stopped
from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.run.backlog import Backlog, Task
from maskfleet.jobs.run.begin import Run, Stop
from maskfleet.jobs.run.executor import Ended, FailedAttempt, OpenPipeline
from maskfleet.jobs.run.open_pipeline import open_pipeline
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.timing.stage_timers import DEVICE
from maskfleet.jobs.training.loop import TrainingLoop

_WAITED_SECONDS = 60.0
"""Seconds between two warnings while no worker is ready."""

_LOST = (RayActorError, OutOfMemoryError, NodeDiedError)
"""Errors meaning a lost worker; Ray has separate ones for its memory monitor and for dead nodes."""


class Fleet:
    """An executor on Ray: one worker per GPU, or per group of CPU cores, on every node of a cluster.

    Args:
        connection: Connection to Ray. An address, such as "10.0.0.5:6379", connects to that cluster; None means
            RAY_ADDRESS, else a local Ray that ends with the run.
        open_pipeline: Opens the pipeline of each worker. Tests and benchmarks pass their own.
    """

    def __init__(
        self, connection: Connection | str | None = None, *, open_pipeline: OpenPipeline = open_pipeline
    ) -> None:
        self._connection = connection if isinstance(connection, Connection) else Connection(connection)
        self._open_pipeline = open_pipeline
        self.train: TrainingLoop = on_ray(self._connection.address)

    @contextmanager
    def attempts(self, run: Run, backlog: Backlog, progress: Progress, stop: Stop) -> Iterator["FleetAttempts"]:
        """See `jobs.run.executor.Executor.attempts`.

        Raises:
            ClusterError: There is no such cluster, or no worker starts.
        """
        progress.enter("starting Ray")
        with self._connection as runtime_env:
            progress.reached("ray")
            progress.enter("starting workers")
            log = EventLog(run)
            workers = Workers(run, open_pipeline=self._open_pipeline, runtime_env=runtime_env, log=log)
            progress.started = time.monotonic()
            log.write("started", images=progress.images, done=progress.done)
            try:
                yield FleetAttempts(run, backlog, progress, stop, workers=workers, log=log)
            finally:
                log.write("ended", images=progress.images, done=progress.done, failed=progress.failed)
                log.flush()


class FleetAttempts:
    """The attempts of one run on a fleet.

    Args:
        run: The run.
        backlog: Shards without a commit.
        progress: Receives startup steps and the number of lost workers.
        stop: Returns True once no further shard may start.
        workers: The workers.
        log: Event log of the run.
    """

    def __init__(
        self, run: Run, backlog: Backlog, progress: Progress, stop: Stop, *, workers: Workers, log: EventLog
    ) -> None:
        self._run = run
        self._backlog = backlog
        self._progress = progress
        self._stop = stop
        self._workers = workers
        self._log = log
        self._metrics = Metrics(run.job.name)
        self._breaker = JobBreaker()
        self._network = NetworkBreaker()
        self._had_workers = time.monotonic()
        self._device_seconds = self._ready_seconds = 0.0

    def __iter__(self) -> Iterator[Ended]:
        """Yield how each attempt ended; see `jobs.run.executor.Attempts`."""
        draining = False
        while self._backlog or self._workers.working:
            draining = draining or self._stop()
            if draining and not self._workers.working:
                raise Stopped
            if not draining:
                self._scale()
                self._hand_out()
            for worker in self._workers.check_heartbeats():
                self._give_up(worker)
            finished = self._finished_calls()
            if not finished:
                yield None
            for call in finished:
                yield from self._ended(call)

    def recorded(self, report: ShardReport) -> None:
        """Record a committed shard in the event log and the metrics."""
        self._breaker.done(report.shard.group)
        self._network.done()
        self._metrics.report(report)
        self._device_seconds += report.busy.get(DEVICE, 0.0)
        self._log.write(
            "shard done", shard=report.shard.id, attempt=report.commit.attempt, worker=report.worker,
            images=report.commit.images, failed=report.commit.failed, seconds=round(report.seconds, 3),
        )  # fmt: skip

    # Shards go out -------------------------------------------------------------------------------

    def _scale(self) -> None:
        passed = self._workers.scale(self._shards_left())
        if passed is not None:
            self._publish(passed)

    def _hand_out(self) -> None:
        # Every worker gets its first shard before any worker gets its second.
        for depth in range(SHARDS_IN_FLIGHT):
            for worker in self._workers:
                if worker.node is None or worker.leaving or len(worker.tasks) != depth or worker.alone:
                    continue
                if worker.unreachable is not None:
                    continue
                if task := self._backlog.take(idle=not worker.tasks):
                    self._workers.give(worker, task)

    def _finished_calls(self) -> list[Any]:
        """Wait at most a second, and return the references of finished calls."""
        if not self._workers.calls:
            time.sleep(0.05)
            return []
        # While planning is the bottleneck, the next shards are due soon.
        seconds = 0.05 if self._backlog.waits else LOOK_SECONDS
        finished, _ = ray.wait(list(self._workers.calls), num_returns=1, timeout=seconds)
        return list(finished)

    # Reports come back ---------------------------------------------------------------------------

    def _ended(self, call: Any) -> Iterator[ShardReport | FailedAttempt]:
        worker = self._workers.calls.pop(call, None)
        if worker is None:  # already handled with another call of a dead worker
            return
        try:
            answer = ray.get(call)
        except ActorUnavailableError as error:
            if call in worker.tasks:
                self._lose_touch(worker, call, error)
            else:
                yield from self._lost(worker, call, error)
        except _LOST as error:
            yield from self._lost(worker, call, error)
        except RayTaskError as error:
            yield from self._raised(worker, call, error)
        else:
            task = worker.tasks.pop(call, None)
            if task is not None:
                yield answer
                return
            self._workers.started(worker, node=answer)
            if "worker" not in self._progress.start:
                self._progress.reached("worker")
                self._progress.enter("segmenting")
            self._log.write("worker ready", node=worker.node)

    def _raised(self, worker: WorkerHandle, call: Any, error: RayTaskError) -> Iterator[FailedAttempt]:
        """Fail the attempt and replace the worker after an error."""
        if isinstance(error.cause, MaskfleetError):
            raise error.cause from error
        task = worker.tasks.pop(call, None)
        if task is None:
            raise ClusterError(f"a worker failed to start: {error.cause}; try the job with --no-ray") from error
        # Unlike a death, an error identifies the shard to blame, but only a worker's first error: later ones may follow
        # from it.
        alone = not worker.broken
        worker.broken = worker.leaving = True
        self._metrics.lost()
        self._progress.deaths += 1
        yield from self._failed(worker, task, error.cause, alone=alone)

    def _lost(self, worker: WorkerHandle, call: Any, error: RayError) -> Iterator[ShardReport | FailedAttempt]:
        """Handle the death of a worker or its node."""
        lost = [worker.tasks.pop(call)] if call in worker.tasks else []
        for other in list(worker.tasks):
            # Its other shard may have finished just before the death.
            task = worker.tasks.pop(other)
            try:
                yield ray.get(other)
            except (*_LOST, RayTaskError):
                lost.append(task)
        self._workers.lost(worker)
        preempted = getattr(error, "preempted", False) or worker.node in self._workers.drained
        self._log.write(
            "worker lost", level=logging.WARNING, node=worker.node, preempted=preempted,
            shards=[task.shard.id for task in lost], why=str(error).strip().splitlines()[0],
        )  # fmt: skip
        if preempted:
            for task in lost:
                self._backlog.put_back(task)
            return
        if worker.node is None:
            self._workers.start_failed(worker, _last_line(error))
        else:
            self._metrics.lost()
            self._progress.deaths += 1
        for task in lost:
            yield from self._failed(worker, task, error, alone=len(lost) == 1)

    def _lose_touch(self, worker: WorkerHandle, call: Any, error: RayError) -> None:
        """Put a shard back after its worker's connection broke, and ask the worker until it answers again.

        Neither the shard nor the worker is to blame. The attempt may still be running: then the first commit counts.
        """
        task = worker.tasks.pop(call)
        self._backlog.put_back(task)
        worker.unreachable = worker.unreachable or time.monotonic()
        self._log.write(
            "worker unreachable", level=logging.WARNING, node=worker.node, shards=[task.shard.id],
            why=_last_line(error),
        )  # fmt: skip

    def _give_up(self, worker: WorkerHandle) -> None:
        """Replace a worker that stays unreachable."""
        lost = list(worker.tasks.values())
        for task in lost:
            self._backlog.put_back(task)
        self._workers.lost(worker)
        self._workers.node_failed(worker.node or "", f"unreachable at {time.monotonic()}")
        self._metrics.lost()
        self._progress.deaths += 1
        self._log.write(
            "worker lost", level=logging.WARNING, node=worker.node, preempted=False,
            shards=[task.shard.id for task in lost], why="unreachable",
        )  # fmt: skip
        self._network.failed()
        if self._network.open:
            raise ClusterError(
                "no worker stays reachable long enough for a shard; check the network between the driver and the "
                "nodes, then run the same command to resume"
            )

    def _failed(self, worker: WorkerHandle, task: Task, error: Exception, *, alone: bool) -> Iterator[FailedAttempt]:
        self._log.write(
            "attempt failed", level=logging.WARNING, shard=task.shard.id, attempt=task.deaths + 1, alone=alone,
            node=worker.node, why=_last_line(error),
        )  # fmt: skip
        yield FailedAttempt(task=task, error=error, alone=alone)
        self._workers.node_failed(worker.node or "", str(task.shard.group))
        self._breaker.failed(task.shard.group)
        if self._breaker.open:
            raise ClusterError(
                f"most shards crash their workers ({_last_line(error)}), which points to the job or the machines, not "
                "the images; try a few images with --no-ray, then run the same command to resume"
            )

    # Metrics -------------------------------------------------------------------------------------

    def _shards_left(self) -> int:
        progress = self._progress
        return -(-(progress.images - progress.done) * self._run.shards // max(1, progress.images))

    def _publish(self, passed: float) -> None:
        """Publish the state of the fleet as metrics, and log a warning now and then while no worker is ready."""
        ready, workers = self._workers.ready, list(self._workers)
        in_work = [len(task.shard) for worker in workers for task in worker.tasks.values()]
        self._ready_seconds += ready * passed
        self._metrics.fleet(
            ready=ready,
            pending=len(workers) - ready,
            waiting=(
                max(0, self._shards_left() - len(in_work)),
                max(0, self._progress.images - self._progress.done - sum(in_work)),
            ),
            in_work=(len(in_work), sum(in_work)),
            device_share=min(1.0, self._device_seconds / self._ready_seconds) if self._ready_seconds else 0.0,
        )
        now = time.monotonic()
        if ready:
            self._had_workers = now
        elif now - self._had_workers > _WAITED_SECONDS:
            self._had_workers = now
            needs = workers[0].needs._asdict() if workers else {}
            self._log.write("no worker yet", level=logging.WARNING, asked_for=len(workers), **needs)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()
