"""Training on several workers: Ray Train places them, connects them, and starts all again when one is lost.

Each makes the steps of `jobs.training.loop.train` on its share of every batch. What they are restored from are that
loop's own committed checkpoints; Ray Train holds no state of ours, so that a run by one worker, by several, or by a
process without Ray goes on from the same files.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from maskfleet.cluster import sizing
from maskfleet.cluster.connection import WORKER_ENVIRONMENT, ClusterError, connected
from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, MaskfleetError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.training import loop
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.finetune import plan_of
from maskfleet.jobs.training.loop import Moment, Plan, Progress, Train, Trained

_LOSSES = 5
"""Times that all workers are started again because one was lost."""

_LOOK = 0.5
"""Seconds between looks at how far it is, and at whether to stop."""


def on_ray(address: str | None, *, steps_of: Train = loop.train) -> Train:
    """What trains on as many workers as the job says: one in this process, more on Ray.

    Args:
        address: Of a Ray cluster; None for RAY_ADDRESS, else a Ray of one's own.
        steps_of: Makes the steps in each worker; for tests.
    """

    def train(
        plan: Plan, checkpoints: Checkpoints, *, threads: int, progress: Progress | None, stopped: Callable[[], bool]
    ) -> Trained:
        if plan.job.finetune.workers > 1 and not checkpoints.reached(plan.steps):
            with connected(address, WORKER_ENVIRONMENT) as runtime_env:
                needs = needs_of(plan.job, own=runtime_env is None)
                _together(plan, checkpoints, needs, runtime_env, steps_of, progress, stopped)
        # All steps are made by now, so this makes none, and gives what came of them.
        return loop.train(plan, checkpoints, threads=threads, progress=progress, stopped=stopped)

    return train


class _Desk:
    """What driver and workers tell each other. Becomes an actor."""

    def __init__(self) -> None:
        self._moment: Moment | None = None
        self._stop = False
        self._error: Exception | None = None

    def tell(self, moment: Moment) -> None:
        self._moment = moment

    def look(self, stop: bool) -> Moment | None:
        """Of the driver: how far it is since the last look, and whether to stop."""
        moment, self._moment, self._stop = self._moment, None, stop
        return moment

    def stop(self) -> bool:
        return self._stop

    def end(self, error: Exception) -> None:
        """Of a worker: why it makes no sense to go on."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        return self._error


def _together(
    plan: Plan, checkpoints: Checkpoints, needs: sizing.Needs, runtime_env: dict[str, Any] | None, steps_of: Train,
    progress: Progress | None, stopped: Callable[[], bool],
) -> None:  # fmt: skip
    """Have the workers make all steps.

    Raises:
        JobError: Ray Train is not installed, or a worker says so.
        ClusterError: The workers are lost again and again.
        Stopped: `stopped` said so.
    """
    workers = plan.job.finetune.workers
    try:
        from ray import train as ray_train
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise JobError(
            f"finetune.workers = {workers} needs Ray Train ({error}); pip install 'maskfleet[train]', or set it to 1"
        ) from error
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a job's paths may be relative
    desk: Any = ray.remote(num_cpus=0)(_Desk).remote()
    config = {
        "job": plan.job, "id": plan.id, "generation": checkpoints.generation, "threads": int(max(1, needs.cpus)),
        "gpu": needs.gpus > 0, "steps_of": steps_of, "desk": desk,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers,
                use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {}),
            ),
            run_config=ray_train.RunConfig(
                name=plan.id,
                storage_path=folder,  # of Ray Train's own notes, worth nothing afterwards
                failure_config=ray_train.FailureConfig(max_failures=_LOSSES),
                worker_runtime_env=runtime_env or {},  # type: ignore[call-arg]
            ),
        )
        failures = _fit(trainer, desk, progress, stopped)
    if (ended := ray.get(desk.error.remote())) is not None:
        raise ended
    if failures:
        raise ClusterError(
            f"the workers of the training are lost again and again ({_last_line(failures[0])}); look at their logs in "
            "Ray's session folder, or set finetune.workers = 1"
        ) from failures[0]


def _fit(trainer: Any, desk: Any, progress: Progress | None, stopped: Callable[[], bool]) -> list[Exception]:
    """Run a trainer while listening to its workers; what it ended with, if not well."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever it is, the caller's thread is to hear of it
            failures.append(error)

    # In a thread: in the main one it would put a signal handler of its own, and nobody would be told how far it is.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK)
        moment = ray.get(desk.look.remote(stopped()))
        if moment is not None and progress:
            progress(moment)
    return failures


def needs_of(job: Job, *, own: bool) -> sizing.Needs:
    """Of each worker, as for inference by as many.

    Raises:
        ClusterError: A Ray of one's own has no room for them, and none will come.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    workers = job.finetune.workers
    cluster = job.cluster.model_copy(update={"workers": workers})
    needs = sizing.needs(job.model_copy(update={"cluster": cluster}), nodes, cores())
    needs = needs._replace(gpus=float(needs.gpus > 0))  # a rank is alone on its GPU
    room = sum(_room(node, needs) for node in nodes)
    if own and room < workers:
        raise ClusterError(
            f"finetune.workers = {workers} asks for {needs.cpus:g} CPUs and {needs.gpus:g} GPUs each, and this machine "
            f"has room for {room}; lower it, or name a cluster by --address or RAY_ADDRESS"
        )
    return needs


def _room(node: sizing.Resources, needs: sizing.Needs) -> int:
    """Workers that a node has room for."""
    rooms = [node.get("CPU", 0) / needs.cpus] + ([node.get("GPU", 0) / needs.gpus] if needs.gpus else [])
    return int(min(rooms))


def _work(config: dict[str, Any]) -> None:
    """One worker's part."""
    desk = config["desk"]
    if ray.get(desk.error.remote()) is not None:
        return  # started again after an error that would only come again
    try:
        _steps(config["job"], config)
    except Stopped as error:
        ray.get(desk.end.remote(error))  # all ranks stop at the same step, so nobody waits for this one
    except MaskfleetError as error:
        ray.get(desk.end.remote(error))
        raise  # so that Ray Train ends the others, who may wait for this one


def _steps(job: Job, config: dict[str, Any]) -> None:
    if config["gpu"]:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())  # this thread's; Ray Train has set the main one's
    torch.set_num_threads(config["threads"])
    plan = plan_of(job)
    if plan.id != config["id"]:
        raise JobError("the pairs or weights changed while the training started; run the same command again")
    storage = open_storage(job.output, profile=job.profile)
    checkpoints = Checkpoints(storage, f"{plan.folder}/checkpoints", Fence(storage, config["generation"]))
    desk = config["desk"]
    config["steps_of"](
        plan,
        checkpoints,
        threads=config["threads"],
        progress=desk.tell.remote,
        stopped=_asked_now_and_then(lambda: bool(ray.get(desk.stop.remote()))),
    )


def _asked_now_and_then(question: Callable[[], bool]) -> Callable[[], bool]:
    """The answer of a moment ago, where it is that new: a step must not wait for it."""
    asked, answer = -_LOOK, False

    def ask() -> bool:
        nonlocal asked, answer
        if time.monotonic() - asked > _LOOK:
            asked, answer = time.monotonic(), question()
        return answer

    return ask


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
