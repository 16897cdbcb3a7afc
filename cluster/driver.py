"""The driver: starts workers on a Ray cluster, hands them shards, and decides what a dead worker means.

Only shards go out and only small reports come back; no pixel enters Ray's object store, and the
driver's memory does not grow with the images. Retries are all here, never Ray's: it alone can count
a shard's attempts, and the commit alone says whether an attempt took effect.
"""

import atexit
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from cluster.worker import Worker
from jobs.attempt import ShardReport
from jobs.backlog import Backlog, Task
from jobs.errors import MaskfleetError
from jobs.job import Job
from jobs.pipeline import SHARDS_IN_FLIGHT
from jobs.run import (
    OpenPipeline,
    Progress,
    Run,
    RunReport,
    Stopped,
    Tally,
    committed,
    execute,
    judge,
    pipeline_of_job,
)

_STARTS = 30
"""Times that a worker may be found dead or not yet back, a second apart, before it is ready; then it is the machine or
the job, not bad luck."""


class ClusterError(MaskfleetError):
    """There is no such cluster, or it cannot run the workers; the message says what to check."""


@dataclass
class _Seat:
    """A worker as the driver sees it."""

    actor: Any
    ready: bool = False
    starts: int = 0
    tasks: dict[Any, Task] = field(default_factory=dict)
    """What it was given, by the reference of the call."""

    @property
    def alone(self) -> bool:
        """Whether it must get nothing more for now."""
        return any(task.alone for task in self.tasks.values())


def run(
    job: Job, *, address: str | None = None, progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None, open_pipeline: OpenPipeline = pipeline_of_job,
) -> RunReport:  # fmt: skip
    """Run a job on Ray.

    Args:
        job: What to do.
        address: Of a Ray cluster; None for RAY_ADDRESS, else a Ray of this machine that ends with the run.
        progress: Called at the start, after every shard, and about once a second.
        stopped: Asked about once a second; True lets the shards in work end, and the run with them.
        open_pipeline: Makes each worker's pipeline; for tests and benchmarks.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        ClusterError: There is no such cluster, or no worker starts.
        StorageError: Storage goes on failing.
    """

    def attempts(this: Run, backlog: Backlog, tally: Tally) -> Generator[ShardReport | None, None, None]:
        with _connected(address):
            fleet = Fleet(this, open_pipeline)
            tally.started = time.monotonic()
            yield from fleet.attempts(backlog, tally, stopped)

    return execute(job, attempts, progress=progress)


class Fleet:
    """The workers of a run.

    Args:
        this: The run.
        open_pipeline: Makes each worker's pipeline.
    """

    def __init__(self, this: Run, open_pipeline: OpenPipeline) -> None:
        self._run = this
        self._open_pipeline = open_pipeline
        self._workers, self._cpus, self._gpus = _sizes(this.job)
        self._seats = [_Seat(self._actor()) for _ in range(self._workers)]
        self._calls: dict[Any, _Seat] = {seat.actor.ready.remote(): seat for seat in self._seats}

    def attempts(
        self, backlog: Backlog, tally: Tally, stopped: Callable[[], bool] | None
    ) -> Iterator[ShardReport | None]:
        """Hand out the backlog until it is done; yields each report on record, or None when a second has passed.

        Raises:
            Stopped: It was asked to, and what was in work has ended.
        """
        draining = False
        while backlog or any(seat.tasks for seat in self._seats):
            draining = draining or bool(stopped and stopped())
            if not draining:
                self._fill(backlog)
            elif not any(seat.tasks for seat in self._seats):
                raise Stopped
            finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=1)
            if not finished:
                yield None
            for call in finished:
                yield from self._ended(call, backlog, tally)

    def _fill(self, backlog: Backlog) -> None:
        # Every worker gets its first shard before any gets its second.
        for depth in range(SHARDS_IN_FLIGHT):
            for seat in self._seats:
                if not seat.ready or len(seat.tasks) != depth or seat.alone:
                    continue
                if task := backlog.take(idle=not seat.tasks):
                    call = seat.actor.run_shard.remote(task.shard)
                    seat.tasks[call] = task
                    self._calls[call] = seat

    def _ended(self, call: Any, backlog: Backlog, tally: Tally) -> Iterator[ShardReport]:
        seat = self._calls.pop(call, None)
        if seat is None:  # settled with another call of a worker that died
            return
        try:
            answer = ray.get(call)
        except RayActorError as error:
            yield from self._died(seat, call, error, backlog, tally)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MaskfleetError):
                raise cause from error
            task = seat.tasks.pop(call, None)
            if task is None:
                raise ClusterError(f"a worker does not start: {cause}; try the job with --no-ray") from error
            tally.deaths += 1
            # An error, unlike a death, says itself which shard it belongs to.
            yield from judge(self._run, backlog, task, cause, alone=True)
        else:
            task = seat.tasks.pop(call, None)
            if task is None:
                seat.ready, seat.starts = True, 0
            else:
                yield committed(self._run, answer)

    def _died(
        self, seat: _Seat, call: Any, error: RayActorError, backlog: Backlog, tally: Tally
    ) -> Iterator[ShardReport]:
        lost = {call: seat.tasks.pop(call)} if call in seat.tasks else {}
        for other in list(seat.tasks):
            # The worker's other shard may have ended just before it did.
            self._calls.pop(other)
            task = seat.tasks.pop(other)
            try:
                yield committed(self._run, ray.get(other))
            except (RayActorError, RayTaskError):
                lost[other] = task
        tally.deaths += seat.ready
        preempted = getattr(error, "preempted", False)
        for task in lost.values():
            if preempted:
                backlog.put_back(task)
            else:
                yield from judge(self._run, backlog, task, error, alone=len(lost) == 1)
        self._restart(seat, error)

    def _restart(self, seat: _Seat, error: RayActorError) -> None:
        if not seat.ready:
            seat.starts += 1
            if seat.starts >= _STARTS:
                raise ClusterError(
                    f"a worker does not get ready ({str(error).strip().splitlines()[0]}); "
                    "look at its log in Ray's session folder, or try the job with --no-ray"
                )
            time.sleep(min(1.0, 0.1 * 2**seat.starts))
        seat.ready = False
        if isinstance(error, ActorDiedError):  # Ray will not bring this one back
            seat.actor = self._actor()
        self._calls[seat.actor.ready.remote()] = seat

    def _actor(self) -> Any:
        options = {
            "num_cpus": self._cpus,
            "num_gpus": self._gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": SHARDS_IN_FLIGHT,
            # See `unet.segmenter.keep_freed_memory`: Ray's threads allocate before anything of ours runs.
            "runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        }
        cpus = max(1, int(self._cpus))
        return ray.remote(Worker).options(**options).remote(self._run.job, self._run.run_id, cpus, self._open_pipeline)


def _sizes(job: Job) -> tuple[int, float, float]:
    """Workers, and CPU cores and GPUs of each, for the cluster that is there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    wanted = job.cluster
    per_worker = wanted.gpus_per_worker
    if per_worker == "auto":
        per_worker = 1 if (gpus and job.inference.device != "cpu") or job.inference.device == "cuda" else 0
    if wanted.workers != "auto":
        workers = wanted.workers
    else:
        workers = max(1, int(gpus / per_worker) if per_worker else sum(1 for node in nodes if node.get("CPU")))
    cpus = wanted.cpus_per_worker
    if cpus == "auto":
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU") and (not per_worker or node.get("GPU"))]
        # Shared out so that the fullest node still fits its workers.
        cpus = max(1, min(cores, default=1) // math.ceil(workers / max(1, len(cores))))
    return workers, float(cpus), float(per_worker)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to Ray; a Ray of one's own is ended behind it.

    Raises:
        ClusterError: There is none at that address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _own_token()
        own = {"include_dashboard": False, "object_store_memory": 128 * 2**20}
    try:
        _check_reachable(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray at {address}: {str(error).strip().splitlines()[0]}; check --address and RAY_ADDRESS, "
            "or run with --no-ray"
        ) from error
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own there, which would end the run without draining
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail in seconds where nobody listens: Ray itself asks for minutes, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _own_token() -> None:
    """A token of its own for a local Ray: the one that Ray would write is readable by every user of the machine."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").exists():
        return
    folder = Path(tempfile.mkdtemp(prefix="maskfleet-"))  # open to this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "token").write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
