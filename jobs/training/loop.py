"""The steps of a fine-tuning: what is trained, on what, and exactly on where it was cut off.

All that is drawn follows from the seed and the step's number, and a checkpoint holds the rest of the state. So on a CPU
a training that was killed and started again gives the bytes that it would have given undisturbed.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Object
from maskfleet.jobs.network.inference_config import device_of
from maskfleet.jobs.training.checkpoints import Checkpoints
from maskfleet.jobs.training.crops import Crops
from maskfleet.jobs.training.pairs import Pairs
from maskfleet.jobs.training.scores import scores_of
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.inference.precision import DTYPES, DeviceError
from maskfleet.unet.memory import ran_out
from maskfleet.unet.model import UNet
from maskfleet.unet.training.process_group import Peers
from maskfleet.unet.training.trainer import LEARNING_RATES, NotFinite, Step, Training
from maskfleet.unet.weights import Weights

TRAINING = 2
"""Of pairs to weights. Raised when a release trains otherwise; what is trained already stays as it is."""

_RANDOM_RATE = 1e-3
"""Learning rate of a new network, by the recipe "default"."""

_ROUNDS = 10
"""Of validation, where the job leaves it to us."""

_IRRELEVANT = {"unpaired", "save_every", "checkpointing", "gate", "on_refused"}
"""Settings that the result does not depend on."""

_STATE, _METRICS, _BEST = "state.safetensors", "metrics.parquet", "best.safetensors"
"""Files of a checkpoint."""

_COLUMNS = {
    "step": (pa.int64(), "number of the optimizer step, from 1"),
    "loss": (pa.float64(), "of its batch"),
    "learning_rate": (pa.float64(), "that it was made with"),
    "dice": (pa.float64(), "mean over the held-back images, where this step was validated"),
    "seconds": (pa.float64(), "that the step took"),
    "data_seconds": (pa.float64(), "that it waited for its crops before"),
    "memory": (pa.int64(), "bytes at the peak so far: of the GPU's tensors, or of the process"),
    "checkpointing": (pa.bool_(), "whether activations were made again"),
    "parts": (pa.int32(), "that the batch went through in"),
}
METRICS = pa.schema([pa.field(name, kind, metadata={"meaning": text}) for name, (kind, text) in _COLUMNS.items()])
"""Columns of `metrics.parquet`."""


class Moment(NamedTuple):
    """How far a training is.

    Attributes:
        step: The newest.
        steps: In all.
        dice: Of the newest validation, or None.
        images_per_second: Crops, since this command began.
        seconds_left: At that speed.
    """

    step: Step
    steps: int
    dice: float | None
    images_per_second: float
    seconds_left: float


Progress = Callable[[Moment], None]


class Plan:
    """What is trained, from what, and on what."""

    def __init__(self, job: Job, base: Weights, pairs: Pairs) -> None:
        self.job, self.base, self.pairs = job, base, pairs
        settings = job.finetune
        of_epochs = -(-settings.epochs * len(pairs.training) // settings.batch_size)
        self.steps = of_epochs if settings.steps == "auto" else settings.steps
        every = settings.validate_every
        self.validate_every = max(1, self.steps // _ROUNDS) if every == "auto" else every
        self.new = settings.start == "random"
        usual = _RANDOM_RATE if self.new and settings.recipe == "default" else LEARNING_RATES[settings.recipe]
        self.rate = usual if settings.learning_rate == "auto" else settings.learning_rate
        self.about = {
            "training": TRAINING,
            "base": base.id,
            "data": pairs.digest,
            "scale": job.inference.scale,
            "orientation": job.inference.orientation,
            "threshold": job.inference.threshold,
            "tta": job.inference.tta,
            **settings.model_dump(mode="json", exclude=_IRRELEVANT | {"images", "masks", "mask_name"}),
            "steps": self.steps,
            "learning_rate": self.rate,
        }
        self.id = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = f"finetune/{self.id}"

    @property
    def comparable(self) -> bool:
        """Whether base and new network tell the same classes apart."""
        return len(self.pairs.values) == max(2, self.base.model.n_classes)

    def network(self) -> UNet:
        """What training begins with."""
        if not self.new:
            assert isinstance(self.base.model, UNet)
            return copy.deepcopy(self.base.model)
        torch.manual_seed(self.job.finetune.seed)
        return UNet(self.base.model.n_channels, len(self.pairs.values), width=self.job.finetune.width)

    def weights(self, network: UNet, metadata: dict[str, str]) -> bytes:
        """A network as a file."""
        return unet_weights.save(
            network,
            mask_values=self.pairs.values if self.new else self.base.mask_values,
            normalize=None if self.new else self.base.normalize,
            metadata=metadata,
            dtype=DTYPES[self.job.finetune.store],
        )


class Trained(NamedTuple):
    """What came of all steps.

    Attributes:
        last: Weights after the last one.
        best: Those of the best validation.
        metrics: A Parquet file of `METRICS`, a row per step.
    """

    last: bytes
    best: bytes
    metrics: bytes


class Train(Protocol):
    """Makes all steps of a training that are not made yet; see `train`."""

    def __call__(
        self, plan: Plan, checkpoints: Checkpoints, *, threads: int, progress: Progress | None,
        stopped: Callable[[], bool],
    ) -> Trained: ...  # fmt: skip


def train(
    plan: Plan, checkpoints: Checkpoints, *, threads: int, progress: Progress | None, stopped: Callable[[], bool],
) -> Trained:  # fmt: skip
    """Make all steps that are not made yet, together with the other ranks where this process is one of several.

    Every rank makes every step, on its share of the batch. Rank 0 alone reads and writes checkpoints, validates, and
    gives the result; of the others the value is empty.

    Args:
        plan: What is trained.
        checkpoints: Where it is kept.
        threads: Of a network on a CPU.
        progress: Called after every step, on rank 0.
        stopped: Asked before every step, on every rank; one that is told so is enough.

    Raises:
        JobError: The device is not there, memory does not suffice, or the loss is no number.
        PeerFailed: It is so on another rank.
        Stopped: `stopped` said so; what is done is kept.
    """
    settings = plan.job.finetune
    peers = Peers()
    first_rank = peers.rank == 0
    training = _begun(plan, peers)
    rows: list[dict[str, Any]] = []
    best: Object | None = None
    newest = state = b""
    if first_rank and (found := checkpoints.newest()) is not None:
        checkpoint, files = found
        state = files[_STATE]
        rows = rows_of(files[_METRICS])
        best = checkpoint.objects.get(_BEST)
        newest = files.get(_BEST, b"")
    if state := peers.bytes_of_first(state):
        training.restore(state)

    def save(**files: bytes) -> Object | None:
        if not first_rank:
            return None
        kept = {} if best is None else {_BEST: best}
        state = {_STATE: training.state(), _METRICS: _parquet(rows)}
        return checkpoints.save(training.number, state | files, kept).objects.get(_BEST)

    crops = Crops(plan.pairs.training, side=settings.crop, batch_size=settings.batch_size, seed=settings.seed)
    saved = first = training.number
    dice = next((row["dice"] for row in reversed(rows) if row["dice"] is not None), None)
    began = time.monotonic()
    with closing(_ahead(crops, peers.share, first, plan.steps)) as batches:
        while training.number < plan.steps:
            if peers.any(stopped()):
                if training.number > saved:
                    save()
                raise Stopped
            asked = time.perf_counter()
            pixels, truth = next(batches)
            waited = time.perf_counter() - asked
            step = _step(training, crops, pixels, truth)
            rows.append({"step": step.number, "dice": None, "data_seconds": waited, **_measured(step)})
            better = {}
            if due := step.number % plan.validate_every == 0 or step.number == plan.steps:
                weights = plan.weights(training.result, {})
                dice = peers.number_of_first(_dice(plan, weights, threads) if first_rank else 0.0)
                rows[-1]["dice"] = dice
                if training.validated(dice):
                    newest = better[_BEST] = weights
            if due or step.number % settings.save_every == 0:
                best = save(**better)
                saved = step.number
            if progress and first_rank:
                rate = (step.number - first) * settings.batch_size / (time.monotonic() - began)
                left = (plan.steps - step.number) * settings.batch_size / rate
                progress(Moment(step, plan.steps, dice, rate, left))
    return Trained(plan.weights(training.result, {}), newest, _parquet(rows))


def _dice(plan: Plan, weights: bytes, threads: int) -> float:
    return scores_of(plan.job, unet_weights.load(weights), plan.pairs.validation, threads=threads).mean


def _begun(plan: Plan, peers: Peers) -> Training:
    settings = plan.job.finetune
    try:
        return Training(
            plan.network(),
            recipe=settings.recipe,
            steps=plan.steps,
            learning_rate=plan.rate,
            checkpointing=settings.checkpointing,
            device=device_of(plan.job),
            normalize=None if plan.new else plan.base.normalize,
            peers=peers,
            sync_batchnorm=settings.sync_batchnorm,
        )
    except DeviceError as error:
        raise JobError(str(error)) from error


def _measured(step: Step) -> dict[str, Any]:
    found = asdict(step)
    del found["number"]
    return found


def _step(training: Training, crops: Crops, pixels: Tensor, truth: Tensor) -> Step:
    try:
        return training.step(pixels, truth)
    except NotFinite as error:
        keys = ", ".join(dict.fromkeys(crops.keys(training.number)))
        raise JobError(f"{error}, on crops of {keys}; look at these pairs, or lower finetune.learning_rate") from error
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        remedy = "'on'" if training.synced else "'auto'"
        raise JobError(
            f"step {training.number + 1} does not fit into memory ({training.device}); set finetune.checkpointing to "
            f"{remedy}, or lower finetune.crop or finetune.batch_size"
        ) from error


def rows_of(metrics: bytes) -> list[dict[str, Any]]:
    """A row of `METRICS` for each step."""
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(metrics)).to_pylist()
    return rows


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=METRICS), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _ahead(crops: Crops, share: slice, first: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
    """Batches, each drawn while the one before is computed."""
    with ThreadPoolExecutor(1, "crops") as pool:
        coming = pool.submit(crops.batch, first, share)
        for number in range(first + 1, stop + 1):
            batch = coming.result()
            if number < stop:
                coming = pool.submit(crops.batch, number, share)
            yield batch
