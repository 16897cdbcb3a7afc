"""Training on several workers: Ray Train places and connects them, and restarts all of them if one dies.

Each worker runs `jobs.training.loop.train` on its share of every batch. They resume from that loop's own committed
checkpoints; Ray Train stores none of our state. One worker, several workers and a process without Ray can therefore
resume each other's trainings.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.loop import OnStep, StepReport, TrainingLoop, TrainingResult, train
from maskfleet.jobs.training.plan import TrainingPlan, plan_training

_MAX_RESTARTS = 5
"""Largest number of restarts of all workers after the death of one."""

_POLL_SECONDS = 0.5
"""Seconds between two exchanges of progress and stop requests."""


@dataclass(frozen=True, kw_only=True)
class _WorkerConfig:
    """Instructions for each worker.

    Attributes:
        job: Job with a `finetune` section.
        plan_id: Id of the training plan; workers reject pairs or weights changed since.
        generation: Lock generation of the driver.
        threads: Number of CPU threads per worker.
        gpu: Whether each worker has a GPU.
        loop: Training loop of each worker.
        mailbox: Handle of the `_Mailbox` actor.
    """

    job: Job
    plan_id: str
    generation: int
    threads: int
    gpu: bool
    loop: TrainingLoop
    mailbox: Any


def on_ray(address: str | None, *, worker_loop: TrainingLoop = train) -> TrainingLoop:
    """Return a training loop with as many workers as the job asks for: one in this process, more on Ray.

    Args:
        address: Address of a Ray cluster; None for RAY_ADDRESS, else a local Ray.
        worker_loop: Training loop of each worker; tests replace it.
    """

    def loop(
        plan: TrainingPlan, checkpoints: Checkpoints, *, threads: int, on_step: OnStep | None,
        stopped: Callable[[], bool],
    ) -> TrainingResult:  # fmt: skip
        if plan.job.finetune.workers > 1 and not checkpoints.reached(plan.steps):
            with connected(address, WORKER_ENVIRONMENT) as runtime_env:
                needs = needs_of(plan.job, own=runtime_env is None)
                mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
                config = _WorkerConfig(
                    job=plan.job, plan_id=plan.id, generation=checkpoints.generation, threads=int(max(1, needs.cpus)),
                    gpu=needs.gpus > 0, loop=worker_loop, mailbox=mailbox,
                )  # fmt: skip
                _train_on_workers(config, needs, runtime_env, on_step=on_step, stopped=stopped)
        # By now all steps are done: this call only returns the result.
        return train(plan, checkpoints, threads=threads, on_step=on_step, stopped=stopped)

    return loop


class _Mailbox:
    """Messages between the driver and the workers. Runs as a Ray actor."""

    def __init__(self) -> None:
        self._report: StepReport | None = None
        self._stop = False
        self._error: Exception | None = None

    def post(self, report: StepReport) -> None:
        """Post progress, from rank 0."""
        self._report = report

    def exchange(self, stop: bool) -> StepReport | None:
        """Set the stop request and return progress since the last call, for the driver."""
        report, self._report, self._stop = self._report, None, stop
        return report

    def stop_requested(self) -> bool:
        """Return whether the driver asks all workers to stop."""
        return self._stop

    def fail(self, error: Exception) -> None:
        """Post an error no restart can fix; the first one is kept."""
        self._error = self._error or error

    def error(self) -> Exception | None:
        """Return the first error posted."""
        return self._error


def _train_on_workers(
    config: _WorkerConfig, needs: sizing.Needs, runtime_env: dict[str, Any] | None, *, on_step: OnStep | None,
    stopped: Callable[[], bool],
) -> None:  # fmt: skip
    """Run all steps on the workers.

    Raises:
        JobError: Ray Train is not installed, or a worker raised it.
        ClusterError: Workers keep dying.
        Stopped: `stopped` returned True.
    """
    workers = config.job.finetune.workers
    try:
        from ray import train as ray_train
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise JobError(
            f"finetune.workers = {workers} needs Ray Train; pip install 'maskfleet[train]', or set it to 1"
        ) from error
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # the job's paths may be relative
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"config": config},
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers,
                use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {}),
            ),
            run_config=ray_train.RunConfig(
                name=config.plan_id,
                storage_path=folder,  # only Ray Train's own bookkeeping, not needed afterwards
                failure_config=ray_train.FailureConfig(max_failures=_MAX_RESTARTS),
                worker_runtime_env=runtime_env or {},  # type: ignore[call-arg]
            ),
        )
        failure = _fit(trainer, config.mailbox, on_step=on_step, stopped=stopped)
    posted = ray.get(config.mailbox.error.remote())
    if posted is not None:
        raise posted
    if failure is not None:
        raise ClusterError(
            f"training workers keep dying ({_last_line(failure)}); read their logs in Ray's session folder, or set "
            "finetune.workers = 1"
        ) from failure


def _fit(trainer: Any, mailbox: Any, *, on_step: OnStep | None, stopped: Callable[[], bool]) -> Exception | None:
    """Run a trainer while forwarding progress and stop requests; return its error, if any."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # any error of the thread is handed to the caller
            failures.append(error)

    # On the main thread, `fit` would install its own signal handler and block the forwarding of progress.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        report = ray.get(mailbox.exchange.remote(stopped()))
        if report is not None and on_step:
            on_step(report)
    return failures[0] if failures else None


def needs_of(job: Job, *, own: bool) -> sizing.Needs:
    """Return the resources of each training worker: as for inference with the same number of workers.

    Args:
        job: Job with a `finetune` section.
        own: Whether this process started its own local Ray.

    Raises:
        ClusterError: The local Ray is too small for the workers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    workers = job.finetune.workers
    cluster = job.cluster.model_copy(update={"workers": workers})
    needs = sizing.needs(job.model_copy(update={"cluster": cluster}), nodes, cores())
    needs = needs._replace(gpus=float(needs.gpus > 0))  # each rank has a GPU to itself
    capacity = sum(_capacity(node, needs) for node in nodes)
    if own and capacity < workers:
        raise ClusterError(
            f"finetune.workers = {workers} needs {needs.cpus:g} CPU and {needs.gpus:g} GPU per worker, but this "
            f"machine has room for {capacity}; lower it, or name a cluster with --address or RAY_ADDRESS"
        )
    return needs


def _capacity(node: sizing.Resources, needs: sizing.Needs) -> int:
    """Return the number of workers a node has room for."""
    limits = [node.get("CPU", 0) / needs.cpus] + ([node.get("GPU", 0) / needs.gpus] if needs.gpus else [])
    return int(min(limits))


def _work(arguments: dict[str, _WorkerConfig]) -> None:
    """Run one worker. Ray Train passes its configuration as a dictionary."""
    config = arguments["config"]
    mailbox = config.mailbox
    if ray.get(mailbox.error.remote()) is not None:
        return  # restarted after an error that would only recur
    try:
        _run_loop(config)
    except Stopped as error:
        ray.get(mailbox.fail.remote(error))  # all ranks stop at the same step, so none waits for this one
    except MaskfleetError as error:
        ray.get(mailbox.fail.remote(error))
        raise  # Ray Train then ends the other ranks, which may be waiting for this one


def _run_loop(config: _WorkerConfig) -> None:
    if config.gpu:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())  # Ray Train has set it for the main thread only
    torch.set_num_threads(config.threads)
    plan = plan_training(config.job)
    if plan.id != config.plan_id:
        raise JobError("pairs or weights changed while training was starting; run the same command again")
    storage = open_storage(config.job.output, profile=config.job.profile)
    fence = Fence(storage, config.generation)
    checkpoints = Checkpoints(fence.storage, f"{plan.folder}/checkpoints", fence)
    config.loop(
        plan,
        checkpoints,
        threads=config.threads,
        on_step=config.mailbox.post.remote,
        stopped=_rate_limited(lambda: bool(ray.get(config.mailbox.stop_requested.remote()))),
    )


def _rate_limited(question: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function with a cached answer at most `_POLL_SECONDS` old, so steps rarely wait for Ray."""
    asked, answer = -_POLL_SECONDS, False

    def ask() -> bool:
        nonlocal asked, answer
        if time.monotonic() - asked > _POLL_SECONDS:
            asked, answer = time.monotonic(), question()
        return answer

    return ask


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
