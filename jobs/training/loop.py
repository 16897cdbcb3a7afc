"""The training loop: makes the missing optimizer steps, validates, and saves checkpoints.

Every random choice follows from the seed and the step's number, and a checkpoint holds all remaining state. On a CPU, a
killed and restarted training therefore produces the same bytes as an undisturbed one.
"""

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.ledger.commit import Object
from maskfleet.jobs.network.inference_config import device_of
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.crops import Crops
from maskfleet.jobs.training.plan import TrainingPlan
from maskfleet.jobs.training.scores import scores_of
from maskfleet.jobs.training.truth.classes import IGNORED
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.memory import ran_out
from maskfleet.unet.precision import DeviceError
from maskfleet.unet.training.process_group import Peers
from maskfleet.unet.training.trainer import NotFinite, Step, Training

_STATE, _METRICS, _BEST = "state.safetensors", "metrics.parquet", "best.safetensors"
"""Files of a checkpoint."""

_COLUMNS = {
    "step": (pa.int64(), "number of the optimizer step, from 1"),
    "loss": (pa.float64(), "training loss of the batch"),
    "learning_rate": (pa.float64(), "learning rate of the step"),
    "dice": (pa.float64(), "mean Dice over the validation images; null for steps without validation"),
    "seconds": (pa.float64(), "duration of the step"),
    "data_seconds": (pa.float64(), "time spent waiting for the batch"),
    "memory": (pa.int64(), "peak memory so far in bytes: GPU tensors, or the process on a CPU"),
    "checkpointing": (pa.bool_(), "whether activations were recomputed in the backward pass"),
    "parts": (pa.int32(), "number of micro-batches"),
}
METRICS = pa.schema([pa.field(name, kind, metadata={"meaning": text}) for name, (kind, text) in _COLUMNS.items()])
"""Columns of `metrics.parquet`."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Progress of a training after one step.

    Attributes:
        step: The finished step.
        steps: Total number of steps.
        dice: Mean Dice of the latest validation; None before the first.
        images_per_second: Crops per second since this command started.
        seconds_left: Remaining seconds at that speed.
    """

    step: Step
    steps: int
    dice: float | None
    images_per_second: float
    seconds_left: float


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Weights and metrics of a finished training. Empty on ranks other than 0.

    Attributes:
        last: Weights file after the last step.
        best: Weights file of the best validation.
        metrics: Parquet file of `METRICS`, one row per step.
    """

    last: bytes
    best: bytes
    metrics: bytes


class TrainingLoop(Protocol):
    """Makes all missing steps of a training; see `train`."""

    def __call__(
        self, plan: TrainingPlan, checkpoints: Checkpoints, *, threads: int, on_step: OnStep | None,
        stopped: Callable[[], bool],
    ) -> TrainingResult: ...  # fmt: skip


def train(
    plan: TrainingPlan, checkpoints: Checkpoints, *, threads: int, on_step: OnStep | None, stopped: Callable[[], bool]
) -> TrainingResult:
    """Make all missing steps, together with the other ranks if this process is one of several.

    Every rank makes every step on its share of the batch. Only rank 0 reads and writes checkpoints, validates and
    returns a result.

    Args:
        plan: What to train.
        checkpoints: Checkpoints of this training.
        threads: Number of CPU threads for validation.
        on_step: Called after every step, on rank 0.
        stopped: Called before every step, on every rank. If any rank's returns True, all ranks save and stop.

    Raises:
        JobError: The device is missing, memory is too small, or the loss is not finite.
        PeerFailed: The same on another rank.
        Stopped: `stopped` returned True; all finished steps are saved.
    """
    session = _Session(plan, checkpoints, threads=threads)
    training, peers, settings = session.training, session.peers, plan.job.finetune
    crops = Crops(plan.pairs.training, side=settings.crop, batch_size=settings.batch_size, seed=settings.seed)
    first, began = training.number, time.monotonic()
    with closing(_prefetched(crops, peers.share, first, plan.steps)) as batches:
        while training.number < plan.steps:
            if peers.any(stopped()):
                session.save_unsaved()
                raise Stopped
            asked = time.perf_counter()
            pixels, truth = next(batches)
            waited = time.perf_counter() - asked
            step = _step(training, crops, pixels, truth)
            session.finish_step(step, waited)
            if on_step and session.first_rank:
                rate = (step.number - first) * settings.batch_size / (time.monotonic() - began)
                left = (plan.steps - step.number) * settings.batch_size / rate
                on_step(
                    StepReport(
                        step=step, steps=plan.steps, dice=session.dice, images_per_second=rate, seconds_left=left
                    )
                )
    return session.result()


class _Session:
    """A training being executed by this process, resumed from its newest checkpoint.

    Args:
        plan: What to train.
        checkpoints: Checkpoints of this training.
        threads: Number of CPU threads for validation.

    Attributes:
        training: Network and optimizer state.
        peers: All ranks of this training.
        first_rank: Whether this process is rank 0.
        dice: Mean Dice of the latest validation; None before the first.
    """

    def __init__(self, plan: TrainingPlan, checkpoints: Checkpoints, *, threads: int) -> None:
        self._plan, self._checkpoints, self._threads = plan, checkpoints, threads
        self.peers = Peers()
        self.first_rank = self.peers.rank == 0
        self.training = _new_training(plan, self.peers)
        self._rows: list[dict[str, Any]] = []
        self._best_weights = b""
        self._best_object: Object | None = None
        self._restore()
        self._saved = self.training.number
        self.dice: float | None = next((row["dice"] for row in reversed(self._rows) if row["dice"] is not None), None)

    def _restore(self) -> None:
        state = b""
        if self.first_rank and (found := self._checkpoints.newest()) is not None:
            checkpoint, files = found
            state = files[_STATE]
            self._rows = read_metrics(files[_METRICS])
            self._best_object = checkpoint.objects.get(_BEST)
            self._best_weights = files.get(_BEST, b"")
        if state := self.peers.bytes_of_first(state):
            self.training.restore(state)

    def finish_step(self, step: Step, waited: float) -> None:
        """Record a step; validate and save a checkpoint if one is due.

        Args:
            step: The finished step.
            waited: Seconds spent waiting for its batch.
        """
        self._rows.append(_row(step, waited))
        plan = self._plan
        better: dict[str, bytes] = {}
        due = step.number % plan.validate_every == 0 or step.number == plan.steps
        if due:
            weights = plan.weights_file(self.training.result, {})
            self.dice = self.peers.number_of_first(self._validate(weights) if self.first_rank else 0.0)
            self._rows[-1]["dice"] = self.dice
            if self.training.validated(self.dice):
                self._best_weights = better[_BEST] = weights
        if due or step.number % plan.job.finetune.save_every == 0:
            self._save(better)

    def save_unsaved(self) -> None:
        """Save a checkpoint if any step was made since the last one."""
        if self.training.number > self._saved:
            self._save({})

    def result(self) -> TrainingResult:
        """Return the weights and metrics after the last step."""
        last = self._plan.weights_file(self.training.result, {})
        return TrainingResult(last=last, best=self._best_weights, metrics=_parquet(self._rows))

    def _validate(self, weights: bytes) -> float:
        plan = self._plan
        return scores_of(plan.job, unet_weights.load(weights), plan.pairs.validation, threads=self._threads).mean

    def _save(self, better: dict[str, bytes]) -> None:
        self._saved = self.training.number
        if not self.first_rank:
            return
        earlier = {} if self._best_object is None else {_BEST: self._best_object}
        files = {_STATE: self.training.state(), _METRICS: _parquet(self._rows)} | better
        self._best_object = self._checkpoints.save(self.training.number, files, earlier).objects.get(_BEST)


def _new_training(plan: TrainingPlan, peers: Peers) -> Training:
    settings = plan.job.finetune
    try:
        return Training(
            plan.network(),
            recipe=settings.recipe,
            steps=plan.steps,
            learning_rate=plan.learning_rate,
            checkpointing=settings.checkpointing,
            device=device_of(plan.job),
            normalize=plan.normalize,
            peers=peers,
            sync_batchnorm=settings.sync_batchnorm,
            ignored=None if settings.ignore is None else IGNORED,
        )
    except DeviceError as error:
        raise JobError(str(error)) from error


def _row(step: Step, waited: float) -> dict[str, Any]:
    """Return the row of `METRICS` for a step without validation."""
    return {
        "step": step.number,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "dice": None,
        "seconds": step.seconds,
        "data_seconds": waited,
        "memory": step.memory,
        "checkpointing": step.checkpointing,
        "parts": step.micro_batches,
    }


def _step(training: Training, crops: Crops, pixels: Tensor, truth: Tensor) -> Step:
    try:
        return training.step(pixels, truth)
    except NotFinite as error:
        keys = ", ".join(dict.fromkeys(crops.keys(training.number)))
        raise JobError(f"{error}, on crops of {keys}; check these pairs, or lower finetune.learning_rate") from error
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        remedy = "'on'" if training.synced else "'auto'"
        raise JobError(
            f"step {training.number + 1} does not fit into memory ({training.device}); set finetune.checkpointing = "
            f"{remedy}, or lower finetune.crop or finetune.batch_size"
        ) from error


def read_metrics(metrics: bytes) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.parquet` file, one per step."""
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(metrics)).to_pylist()
    return rows


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=METRICS), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _prefetched(crops: Crops, share: slice, first: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
    """Yield the batches `first` to `stop - 1`, preparing each during the step before."""
    with ThreadPoolExecutor(1, "crops") as pool:
        coming = pool.submit(crops.batch, first, share)
        for number in range(first + 1, stop + 1):
            batch = coming.result()
            if number < stop:
                coming = pool.submit(crops.batch, number, share)
            yield batch
