"""The workers of a run: as many as the cluster has room for, replaced when they die or hang.

Knows nothing about the shards of a dead worker: `cluster.driver` handles them.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray._private.state
from ray.exceptions import ActorUnavailableError, RayError

from maskfleet.cluster import sizing
from maskfleet.cluster.breaker import NodeBreaker
from maskfleet.cluster.connection import ClusterError
from maskfleet.cluster.event_log import EventLog
from maskfleet.cluster.worker import Worker
from maskfleet.jobs.run.backlog import Task
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.executor import OpenPipeline
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT

LOOK_SECONDS = 1.0
"""Seconds between two checks of the cluster's nodes."""

_STARTS = 5
"""Consecutive worker deaths tolerated during startup, plus two per worker wanted. More deaths point to the machine or
the job."""

_HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats of a worker."""

_UNREACHABLE_SECONDS = 60.0
"""Seconds for which an unreachable worker is asked again before it is replaced."""


@dataclass(eq=False)
class WorkerHandle:
    """The driver's record of a worker.

    Attributes:
        actor: The Ray actor.
        needs: Resources reserved for it.
        node: Id of its node once it is ready; None before.
        tasks: Its shards, by the reference of the call.
        leaving: Whether it gets no further shards and is ended once it has none.
        broken: Whether it raised an unexpected error, from which a CUDA context, for example, does not recover.
        moved: Monotonic time of the last progress of any of its images.
        asked: Monotonic time of the last heartbeat call.
        heartbeat: Reference of the unanswered heartbeat call; None if there is none.
        unreachable: Monotonic time since which its connection is broken; None if it is not. It gets no shards then.
    """

    actor: Any
    needs: sizing.Needs
    node: str | None = None
    tasks: dict[Any, Task] = field(default_factory=dict)
    leaving: bool = False
    broken: bool = False
    moved: float = 0.0
    asked: float = 0.0
    heartbeat: Any = None
    unreachable: float | None = None

    @property
    def alone(self) -> bool:
        """Whether it must get no further shards for now, because it has a suspect."""
        return any(task.alone for task in self.tasks.values())


class Workers:
    """The workers of a run.

    Args:
        run: The run.
        open_pipeline: Opens the pipeline of each worker.
        runtime_env: Ray's runtime environment of each worker; None if inherited.
        log: Event log of the run.

    Attributes:
        calls: Workers of all unanswered calls, by reference of the call: worker starts and shards.
        drained: Ids of all nodes ever announced by Ray as leaving.
    """

    def __init__(
        self, run: Run, *, open_pipeline: OpenPipeline, runtime_env: dict[str, Any] | None, log: EventLog
    ) -> None:
        self.calls: dict[Any, WorkerHandle] = {}
        self.drained: set[str] = set()
        self._run = run
        self._open_pipeline = open_pipeline
        self._runtime_env = runtime_env
        self._log = log
        self._handles: list[WorkerHandle] = []
        self._breaker = NodeBreaker()
        self._starts = 0
        self._last_start_error = ""
        self._looked = 0.0

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(self._handles)

    @property
    def working(self) -> bool:
        """Whether any worker has a shard."""
        return any(handle.tasks for handle in self._handles)

    @property
    def ready(self) -> int:
        """Number of workers ready for shards."""
        return sum(handle.node is not None for handle in self._handles)

    def scale(self, shards_left: int) -> float | None:
        """Start and end workers to match the current nodes.

        Args:
            shards_left: Number of shards without a commit.

        Returns:
            Seconds since the last check of the nodes, 0 after a loss; None if it is too early for another check.

        Raises:
            ClusterError: Too many workers died before they were ready.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        passed, self._looked = (now - self._looked if self._looked else 0.0), now
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        # Nodes with a spot notice, and nodes being scaled down. Ray has only a private function for this.
        draining = set(ray._private.state.state.get_draining_nodes())
        self.drained |= draining
        staying = [resources for node, resources in nodes.items() if node not in draining]
        threads = self._run.threads
        needs = sizing.needs(self._run.job, staying, threads)
        able = {node for node, resources in nodes.items() if node not in draining and needs.fit(resources)}
        avoided = self._breaker.avoided(able, now)
        for handle in self._handles:
            handle.leaving = handle.broken or handle.node in draining or handle.node in avoided
        for handle in [handle for handle in self._handles if handle.leaving and not handle.tasks]:
            self.end(handle)
        wanted = sizing.target(self._run.job, staying, shards_left, threads)
        self._match(wanted, needs, avoided)
        if self._starts >= _STARTS + 2 * wanted:
            raise ClusterError(
                f"no worker became ready ({self._last_start_error}); read its log in Ray's session folder, or try the "
                "job with --no-ray"
            )
        return passed

    def _match(self, wanted: int, needs: sizing.Needs, avoided: set[str]) -> None:
        # A worker requested before any node had joined may have the wrong resources.
        for handle in [handle for handle in self._handles if handle.node is None and handle.needs != needs]:
            self.end(handle)
        staying = [handle for handle in self._handles if not handle.leaving]
        # First end workers that are not ready; never end workers with shards.
        spare = sorted((handle for handle in staying if not handle.tasks), key=lambda handle: handle.node is not None)
        for handle in spare[: max(0, len(staying) - wanted)]:
            self.end(handle)
        for _ in range(wanted - len(staying)):
            self._start(needs, avoided)

    def _start(self, needs: sizing.Needs, avoided: set[str]) -> None:
        options: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": SHARDS_IN_FLIGHT,
            "concurrency_groups": {"heartbeat": 1},
            # Spread over the nodes, workers compete less for cores, and a lost node costs fewer workers.
            "scheduling_strategy": "SPREAD",
            "runtime_env": self._runtime_env,
        }
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
        run = self._run
        actor = ray.remote(**options)(Worker).remote(
            run.job,
            run.run_id,
            cpus=max(1, int(needs.cpus)),
            gpu_share=needs.gpus if run.job.cluster.cpus_per_worker == "auto" else 0.0,
            open_pipeline=self._open_pipeline,
            generation=run.generation,
        )
        handle = WorkerHandle(actor, needs)
        self._handles.append(handle)
        self.calls[handle.actor.ready.remote()] = handle

    def give(self, handle: WorkerHandle, task: Task) -> None:
        """Hand a shard to a worker."""
        call = handle.actor.run_shard.remote(task.shard)
        if not handle.tasks:
            handle.moved = time.monotonic()
        handle.tasks[call] = task
        self.calls[call] = handle

    def started(self, handle: WorkerHandle, node: str) -> None:
        """Record that a worker is ready on a node."""
        handle.node, self._starts = node, 0

    def end(self, handle: WorkerHandle) -> None:
        """Remove a worker, and end it if it is still alive."""
        self._handles.remove(handle)
        self.calls = {call: other for call, other in self.calls.items() if other is not handle}
        with suppress(RayError):
            ray.kill(handle.actor)

    def lost(self, handle: WorkerHandle) -> None:
        """Remove a dead worker. The next call of `scale` starts its replacement."""
        self.end(handle)
        self._looked = 0.0

    def start_failed(self, handle: WorkerHandle, reason: str) -> None:
        """Count a worker that died before it was ready."""
        self._starts += 1
        self._last_start_error = reason
        self.node_failed(_node_of(handle.actor), f"start {self._starts}")

    def node_failed(self, node: str, what: str) -> None:
        """Count a failure against a node.

        Args:
            node: Id of the node; "" if unknown.
            what: Name of the failure. Equal names count once.
        """
        self._breaker.failed(node, what, time.monotonic())

    def check_heartbeats(self) -> list[WorkerHandle]:
        """Poll workers; kill those without progress or reply for `cluster.stall_seconds`.

        Returns:
            Workers to be given up, since nothing could be reached of them for a minute.
        """
        now = time.monotonic()
        given_up = []
        for handle in self._handles:
            if not handle.tasks and handle.unreachable is None:
                continue
            self._poll(handle, now)
            if handle.unreachable is not None and now - handle.unreachable > _UNREACHABLE_SECONDS:
                given_up.append(handle)
            elif handle.tasks and now - handle.moved > self._run.job.cluster.stall_seconds:
                handle.moved = now
                self._log.write("worker hangs", level=logging.WARNING, node=handle.node)
                ray.kill(handle.actor)  # its calls then fail like those of any dead worker
        return given_up

    def _poll(self, handle: WorkerHandle, now: float) -> None:
        """Take the answer to the last heartbeat call, if it is there, and make the next call when it is due."""
        if handle.heartbeat is not None and ray.wait([handle.heartbeat], timeout=0)[0]:
            try:
                handle.moved = max(handle.moved, now - ray.get(handle.heartbeat))
                handle.unreachable = None
            except ActorUnavailableError:
                pass  # asked again
            except RayError:  # it died; the calls of its shards report that, if it has any
                if handle.unreachable is not None:
                    handle.unreachable = -math.inf
            handle.heartbeat = None
        due = _HEARTBEAT_SECONDS if handle.unreachable is None else LOOK_SECONDS
        if handle.heartbeat is None and now - handle.asked >= due:
            handle.heartbeat, handle.asked = handle.actor.still_for.remote(), now


def _node_of(actor: Any) -> str:
    """Return the node id of an actor that never became ready, or "" if unknown."""
    known = ray._private.state.actors(actor._actor_id.hex())
    return str(known.get("Address", {}).get("NodeID", ""))
