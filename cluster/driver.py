"""The driver: starts workers on a Ray cluster, hands them shards, and decides what a dead worker means.

Only shards go out and only small reports come back; no pixel enters Ray's object store, and the
driver's memory does not grow with the images. Retries are all here, never Ray's: it alone can count
a shard's attempts, and the commit alone says whether an attempt took effect. A worker that is lost is
not restarted but replaced, wherever there is room: Ray would wait for the loss of a node to be certain.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray._private.state
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from maskfleet.cluster import sizing
from maskfleet.cluster.breaker import JobBreaker, NodeBreaker
from maskfleet.cluster.connection import ClusterError, Connection
from maskfleet.cluster.event_log import Journal
from maskfleet.cluster.metrics import Metrics
from maskfleet.cluster.train import on_ray
from maskfleet.cluster.worker import Worker
from maskfleet.jobs.errors import MaskfleetError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.run.backlog import Backlog, Task
from maskfleet.jobs.run.begin import Run, Stop
from maskfleet.jobs.run.execute import OpenPipeline, Progress, RunReport, committed, execute, judge, pipeline_of_job
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT
from maskfleet.jobs.run.progress import Tally
from maskfleet.jobs.stage_timers import DEVICE
from maskfleet.jobs.training.loop import Progress as Learning

_STARTS = 5
"""Workers that may die in a row before one gets ready, and two for each that is wanted; then it is the machine or the
job, not bad luck."""

_LOOK = 1.0
"""Seconds between looks at the cluster's nodes."""

_WAITED = 60.0
"""Seconds without any worker after which that is said, and again."""

_PULSE = 10.0
"""Seconds between questions to a worker whether its images move on."""

_LOST = (RayActorError, OutOfMemoryError, NodeDiedError)
"""That a worker is gone. Ray names what its memory monitor ends, and a node's end, otherwise than a death."""


@dataclass(eq=False)
class _Seat:
    """A worker as the driver sees it."""

    actor: Any
    needs: sizing.Needs
    node: str | None = None
    """Where it is, once it is ready."""
    tasks: dict[Any, Task] = field(default_factory=dict)
    """What it was given, by the reference of the call."""
    leaving: bool = False
    """Whether it gets nothing more, and goes when it has nothing left."""
    worn: bool = False
    """Whether it raised what nobody expected; a CUDA context, for one, does not recover from that."""
    moved: float = 0.0
    """When an image of its was last known to have moved on."""
    asked: float = 0.0
    pulse: Any = None
    """The question that it has not answered yet."""

    @property
    def alone(self) -> bool:
        """Whether it must get nothing more for now."""
        return any(task.alone for task in self.tasks.values())


def run(
    job: Job, *, address: str | None = None, connection: Connection | None = None, progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None, learning: Learning | None = None,
    open_pipeline: OpenPipeline = pipeline_of_job,
) -> RunReport:  # fmt: skip
    """Run a job on Ray.

    Args:
        job: What to do.
        address: Of a Ray cluster; None for RAY_ADDRESS, else a Ray of this machine that ends with the run.
        connection: Where it was begun already, in place of an address.
        progress: Called at the start, after every shard, and about once a second.
        stopped: Asked about once a second; True lets the shards in work end, and the run with them.
        learning: Called after every training step, where the job has a `finetune` section.
        open_pipeline: Makes each worker's pipeline; for tests and benchmarks.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Refused: The gate refused the new weights.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        ClusterError: There is no such cluster, no worker starts, or most shards cost their workers.
        StorageError: Storage goes on failing.
    """
    ray_ = connection or Connection(address)

    def attempts(this: Run, backlog: Backlog, tally: Tally, stop: Stop) -> Generator[ShardReport | None, None, None]:
        with ray_ as runtime_env:
            tally.reached("ray")
            fleet = Fleet(this, open_pipeline, runtime_env)
            tally.started = time.monotonic()
            yield from fleet.attempts(backlog, tally, stop)

    return execute(job, attempts, progress=progress, stopped=stopped, learning=learning, train=on_ray(ray_.address))


class Fleet:
    """The workers of a run.

    Args:
        this: The run.
        open_pipeline: Makes each worker's pipeline.
        runtime_env: Ray's, of each worker.
    """

    def __init__(self, this: Run, open_pipeline: OpenPipeline, runtime_env: dict[str, Any] | None) -> None:
        self._run = this
        self._open_pipeline = open_pipeline
        self._runtime_env = runtime_env
        self._seats: list[_Seat] = []
        self._calls: dict[Any, _Seat] = {}
        self._nodes = NodeBreaker()
        self._shards = JobBreaker()
        self._starts = 0
        self._why = ""
        self._looked = 0.0
        self._drained: set[str] = set()
        self._journal = Journal(this)
        self._metrics = Metrics(this.job.name)
        self._served = time.monotonic()
        self._device_seconds = self._ready_seconds = 0.0

    def attempts(
        self, backlog: Backlog, tally: Tally, stopped: Callable[[], bool] | None
    ) -> Iterator[ShardReport | None]:
        """Hand out the backlog until it is done; yields each report on record, or None when a second has passed.

        Raises:
            Stopped: It was asked to, and what was in work has ended.
        """
        self._journal.write("started", images=tally.images, done=tally.done)
        try:
            yield from self._handed_out(backlog, tally, stopped)
        finally:
            self._journal.write("ended", images=tally.images, done=tally.done, failed=tally.failed)
            self._journal.flush()

    def _handed_out(
        self, backlog: Backlog, tally: Tally, stopped: Callable[[], bool] | None
    ) -> Iterator[ShardReport | None]:
        draining = False
        while backlog or any(seat.tasks for seat in self._seats):
            draining = draining or bool(stopped and stopped())
            if draining and not any(seat.tasks for seat in self._seats):
                raise Stopped
            if not draining:
                self._scale(tally)
                self._fill(backlog)
            self._watch()
            finished: list[Any] = []
            if self._calls:
                # A new part of the plan is worth a look soon; it is the listing that holds us back then.
                finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.05 if backlog.waits else _LOOK)
            else:
                time.sleep(0.05)
            if not finished:
                yield None
            for call in finished:
                for report in self._ended(call, backlog, tally):
                    self._note(report)
                    yield report

    def _note(self, report: ShardReport) -> None:
        self._shards.done(report.shard.group)
        self._metrics.report(report)
        self._device_seconds += report.busy.get(DEVICE, 0.0)
        self._journal.write(
            "shard done", shard=report.shard.id, attempt=report.commit.attempt, worker=report.worker,
            images=report.commit.images, failed=report.commit.failed, seconds=round(report.seconds, 3),
        )  # fmt: skip

    # The fleet follows the cluster ---------------------------------------------------------------

    def _scale(self, tally: Tally) -> None:
        """As many workers as are wanted of the nodes that there are now."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        # After a loss `_looked` is 0, which is no time.
        passed, self._looked = (now - self._looked if self._looked else 0.0), now
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        # The notice that a spot machine gets, and a node that scales down. Ray has it under a private name only.
        draining = set(ray._private.state.state.get_draining_nodes())
        self._drained |= draining
        there = [resources for node, resources in nodes.items() if node not in draining]
        threads = int(self._run.record["threads"])
        needs = sizing.needs(self._run.job, there, threads)
        able = {node for node, resources in nodes.items() if node not in draining and needs.fit(resources)}
        avoided = self._nodes.avoided(able, now)
        for seat in self._seats:
            seat.leaving = seat.worn or seat.node in draining or seat.node in avoided
        for seat in [seat for seat in self._seats if seat.leaving and not seat.tasks]:
            self._dismiss(seat)
        wanted = sizing.target(self._run.job, there, self._shards_left(tally), threads)
        self._fit(wanted, needs, avoided)
        self._say(now, passed, needs, tally)
        if self._starts >= _STARTS + 2 * wanted:
            raise ClusterError(
                f"a worker does not get ready ({self._why}); look at its log in Ray's session folder, or try the job "
                "with --no-ray"
            )

    def _say(self, now: float, passed: float, needs: sizing.Needs, tally: Tally) -> None:
        """How things stand, for Prometheus; and in the log when there is nobody to work."""
        ready = sum(seat.node is not None for seat in self._seats)
        in_work = [len(task.shard) for seat in self._seats for task in seat.tasks.values()]
        self._ready_seconds += ready * passed
        self._metrics.fleet(
            ready=ready,
            pending=len(self._seats) - ready,
            waiting=(
                max(0, self._shards_left(tally) - len(in_work)),
                max(0, tally.images - tally.done - sum(in_work)),
            ),
            in_work=(len(in_work), sum(in_work)),
            device_share=min(1.0, self._device_seconds / self._ready_seconds) if self._ready_seconds else 0.0,
        )
        if ready:
            self._served = now
        elif now - self._served > _WAITED:
            self._served = now
            self._journal.write("no worker yet", level=logging.WARNING, asked_for=len(self._seats), **needs._asdict())

    def _shards_left(self, tally: Tally) -> int:
        return -(-(tally.images - tally.done) * self._run.shards // max(1, tally.images))

    def _fit(self, wanted: int, needs: sizing.Needs, avoided: set[str]) -> None:
        # One that was asked for before there was a node to go by may have been asked for wrongly.
        for seat in [seat for seat in self._seats if seat.node is None and seat.needs != needs]:
            self._dismiss(seat)
        staying = [seat for seat in self._seats if not seat.leaving]
        # Those that are not even there go first; nobody goes who has work.
        spare = sorted((seat for seat in staying if not seat.tasks), key=lambda seat: seat.node is not None)
        for seat in spare[: max(0, len(staying) - wanted)]:
            self._dismiss(seat)
        for _ in range(wanted - len(staying)):
            seat = _Seat(self._actor(needs, avoided), needs)
            self._seats.append(seat)
            self._calls[seat.actor.ready.remote()] = seat

    def _actor(self, needs: sizing.Needs, avoided: set[str]) -> Any:
        options: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": SHARDS_IN_FLIGHT,
            "concurrency_groups": {"pulse": 1},
            # Fewer workers than there is room for have a node's cores for decoding, and a node's loss costs fewer.
            "scheduling_strategy": "SPREAD",
            "runtime_env": self._runtime_env,
        }
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
        share = needs.gpus if self._run.job.cluster.cpus_per_worker == "auto" else 0.0
        actor = ray.remote(**options)(Worker)
        return actor.remote(
            self._run.job, self._run.run_id, max(1, int(needs.cpus)), share, self._open_pipeline, self._run.generation
        )

    def _dismiss(self, seat: _Seat) -> None:
        """End a worker, if it is still there."""
        self._seats.remove(seat)
        self._calls = {call: other for call, other in self._calls.items() if other is not seat}
        with suppress(RayError):
            ray.kill(seat.actor)

    # Shards go out and come back -----------------------------------------------------------------

    def _fill(self, backlog: Backlog) -> None:
        # Every worker gets its first shard before any gets its second.
        for depth in range(SHARDS_IN_FLIGHT):
            for seat in self._seats:
                if seat.node is None or seat.leaving or len(seat.tasks) != depth or seat.alone:
                    continue
                if task := backlog.take(idle=not seat.tasks):
                    call = seat.actor.run_shard.remote(task.shard)
                    if not seat.tasks:
                        seat.moved = time.monotonic()
                    seat.tasks[call] = task
                    self._calls[call] = seat

    def _watch(self) -> None:
        """Ask workers whether their images move on, and end those that do not, or do not even answer."""
        now = time.monotonic()
        for seat in self._seats:
            if not seat.tasks:
                continue
            if seat.pulse is not None and ray.wait([seat.pulse], timeout=0)[0]:
                with suppress(RayError):  # it died, which its shards will say too
                    seat.moved = max(seat.moved, now - ray.get(seat.pulse))
                seat.pulse = None
            if seat.pulse is None and now - seat.asked >= _PULSE:
                seat.pulse, seat.asked = seat.actor.still_for.remote(), now
            if now - seat.moved > self._run.job.cluster.stall_seconds:
                seat.moved = now
                self._journal.write("worker hangs", level=logging.WARNING, node=seat.node)
                ray.kill(seat.actor)  # its calls end with this, and so come by `_died`

    def _ended(self, call: Any, backlog: Backlog, tally: Tally) -> Iterator[ShardReport]:
        seat = self._calls.pop(call, None)
        if seat is None:  # settled with another call of a worker that died
            return
        try:
            answer = ray.get(call)
        except _LOST as error:
            yield from self._died(seat, call, error, backlog, tally)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MaskfleetError):
                raise cause from error
            task = seat.tasks.pop(call, None)
            if task is None:
                raise ClusterError(f"a worker does not start: {cause}; try the job with --no-ray") from error
            # An error, unlike a death, says itself which shard it belongs to; but only a worker's first does.
            yield from self._judged(seat, task, cause, backlog, tally, alone=not seat.worn)
            seat.worn = seat.leaving = True
            self._metrics.lost()
            tally.deaths += 1
        else:
            task = seat.tasks.pop(call, None)
            if task is None:
                seat.node, self._starts = answer, 0
                tally.reached("worker")
                self._journal.write("worker ready", node=seat.node)
            else:
                yield committed(self._run, answer)

    def _died(self, seat: _Seat, call: Any, error: RayError, backlog: Backlog, tally: Tally) -> Iterator[ShardReport]:
        lost = {call: seat.tasks.pop(call)} if call in seat.tasks else {}
        for other in list(seat.tasks):
            # The worker's other shard may have ended just before it did.
            task = seat.tasks.pop(other)
            try:
                yield committed(self._run, ray.get(other))
            except (*_LOST, RayTaskError):
                lost[other] = task
        self._dismiss(seat)
        self._looked = 0.0  # its successor is asked for at once
        preempted = getattr(error, "preempted", False) or seat.node in self._drained
        self._journal.write(
            "worker lost", level=logging.WARNING, node=seat.node, preempted=preempted,
            shards=[task.shard.id for task in lost.values()], why=str(error).strip().splitlines()[0],
        )  # fmt: skip
        if preempted:
            for task in lost.values():
                backlog.put_back(task)
            return
        if seat.node is None:
            self._starts += 1
            self._why = str(error).strip().splitlines()[-1].strip()
            self._nodes.failed(_node_of(seat.actor), f"start {self._starts}", time.monotonic())
        else:
            self._metrics.lost()
            tally.deaths += 1
        for task in lost.values():
            yield from self._judged(seat, task, error, backlog, tally, alone=len(lost) == 1)

    def _judged(
        self, seat: _Seat, task: Task, error: Exception, backlog: Backlog, tally: Tally, *, alone: bool
    ) -> Iterator[ShardReport]:
        self._journal.write(
            "attempt failed", level=logging.WARNING, shard=task.shard.id, attempt=task.deaths + 1, alone=alone,
            node=seat.node, why=str(error).strip().splitlines()[-1].strip(),
        )  # fmt: skip
        yield from judge(self._run, backlog, task, error, alone=alone)
        self._nodes.failed(seat.node or "", str(task.shard.group), time.monotonic())
        self._shards.failed(task.shard.group)
        if self._shards.open:
            raise ClusterError(
                f"most shards cost their workers ({str(error).strip().splitlines()[-1].strip()}), so it is the job or "
                "the machines, not the images; try a few of them with --no-ray, then run the same command to go on"
            )


def _node_of(actor: Any) -> str:
    """Where an actor was that never got ready, or ''."""
    known = ray._private.state.actors(actor._actor_id.hex())
    return str(known.get("Address", {}).get("NodeID", ""))
