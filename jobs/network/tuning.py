"""Precision and batches of a run, measured by its first worker and used by all.

They are stored as `runs/<run_id>/tuning.json`, created once, so that a run's masks depend neither on the worker nor on
how busy its machine was at the start.
"""

import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Mode
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.network import batches
from maskfleet.jobs.network.inference_config import device_of, image_limits, segmenter_of
from maskfleet.jobs.network.sample import IMAGES, sample
from maskfleet.jobs.storage.contract import Storage
from maskfleet.unet.inference.agreement import compared
from maskfleet.unet.inference.roofline import best_batch, images_per_second, seconds_of
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.precision import DeviceError, Resolved, above, device_named, fastest, native, resolved
from maskfleet.unet.weights import Weights

_SECONDS = 0.1

_PAIRS = 3
_CLEARLY_FASTER = 1.02
"""Least speed-up by fused layers; a smaller one may be noise."""

_SHAPES = 4
"""Largest number of shapes with a measured batch; others get batches of as many pixels as the usual shape."""

LEAST_IMAGES = 100
"""Runs with fewer images do not measure their bare forward pass."""

LEAST_BYTES = 2**15
"""Runs with fewer than `LEAST_IMAGES` images, smaller than this on average, measure nothing: fp32 is done sooner."""


@dataclass(frozen=True)
class Tuning:
    """Settings of the network in a run.

    Attributes:
        device: Name of the measuring device.
        precision: Type of the convolutions.
        batch_pixels: Pixels per batch; None for the job's batch size, or the Segmenter's.
        shape: Height and width of most sampled images; None without a sample.
        seconds_per_image: Seconds by precision, if there was a choice.
        compared: For each tested precision below fp32, its `unet.inference.agreement.Agreement` with fp32, the number
            of images, and the key of the worst.
        batches: Height, width and images per batch of the measured shapes; see `jobs.network.batches`.
        fused: Whether convolution and ReLU are one pass on a GPU; None if not measured.
    """

    device: str
    precision: Resolved
    batch_pixels: int | None = None
    shape: tuple[int, int] | None = None
    seconds_per_image: dict[str, float] = field(default_factory=dict)
    compared: list[dict[str, Any]] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    fused: bool | None = None

    @property
    def batches_by_shape(self) -> dict[tuple[int, int], int]:
        """Images per batch, by height and width in px."""
        return {(height, width): batch for height, width, batch in self.batches}

    @property
    def sentence(self) -> str | None:
        """A sentence about the agreement with fp32; None if only fp32 was considered."""
        if not self.compared:
            return None
        sentences = [
            f"{each['precision']} agrees with fp32 in {each['agreement']:.4%} of the pixels "
            f"of {_counted(each['images'])}"
            for each in self.compared
        ]
        return f"{'; '.join(sentences)}; computing in {self.precision}"


def read(storage: Storage, run_id: str) -> Tuning | None:
    """Return the stored tuning of a run, or None.

    Raises:
        Damaged: It is unreadable.
    """
    try:
        return Tuning(**json.loads(storage.read(_path(run_id))))
    except NotFound:
        return None
    except (ValueError, TypeError) as error:
        raise Damaged(f"{storage.url(_path(run_id))} is unreadable; run the same command again") from error


def settled(storage: Storage, run_id: str, mode: Mode, mine: Tuning) -> Tuning:
    """Store a worker's tuning unless there is one. Return the stored one."""
    data = json.dumps(asdict(mine), indent=1).encode()
    if mode == "worker" and not storage.create(_path(run_id), data):
        return read(storage, run_id) or mine
    if mode == "driver":
        storage.write(_path(run_id), data)
    return mine


def _path(run_id: str) -> str:
    return f"runs/{run_id}/tuning.json"


def tune(job: Job, weights: Weights, manifest: Manifest, storage: Storage, *, threads: int) -> Tuning:
    """Choose precision and batches by this machine's speed and the job's own images.

    Args:
        job: The job.
        weights: Its weights.
        manifest: The run's manifest.
        storage: Output storage, with measured batches.
        threads: CPU threads of the network.

    Raises:
        JobError: The device is missing or cannot compute as the job asks.
    """
    try:
        device = device_named(device_of(job))
        choices = native(device) if job.inference.precision == "auto" else (resolved(job.inference.precision, device),)
    except DeviceError as error:
        raise JobError(str(error)) from error
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    measures = _measures_batches(device) and job.inference.batch_size == "auto"
    plain = choices == ("fp32",) and not measures
    if plain and manifest.images < LEAST_IMAGES:
        return Tuning(name, "fp32")
    records = manifest.sample(1 if plain else IMAGES)
    if job.inference.precision == "auto" and manifest.images < LEAST_IMAGES and _bytes(records) < LEAST_BYTES:
        return Tuning(name, "fp32")
    examples = sample(job, records, image_limits(job, weights))
    images = {example.record.key: example.pixels for example in examples if example.pixels is not None}
    if not images:  # an unmeasured agreement is not trusted
        return Tuning(name, "fp32")
    shapes = _shapes(list(images.values()))
    if plain:
        return Tuning(name, "fp32", shape=shapes[0])
    trial = _Trial(job, weights, device, threads)
    tuned = trial.precision(name, choices, images, shapes[0])
    if not measures or tuned.shape is None:
        return tuned
    measured = _measured(trial.segmenter(tuned.precision), weights, name, shapes, storage)
    height, width, batch = measured[0]
    return replace(tuned, batch_pixels=batch * height * width, batches=measured)


class _Trial:
    """Segmenters of one job in several precisions, made when first used.

    Args:
        job: The job.
        weights: Its weights.
        device: Its device.
        threads: CPU threads of the network.
    """

    def __init__(self, job: Job, weights: Weights, device: torch.device, threads: int) -> None:
        self._job, self._weights, self._device, self._threads = job, weights, device, threads
        self._segmenters: dict[Resolved, Segmenter] = {}

    def segmenter(self, precision: Resolved) -> Segmenter:
        """Return the segmenter of a precision."""
        if precision not in self._segmenters:
            self._segmenters[precision] = self._made(precision)
        return self._segmenters[precision]

    def precision(
        self, device: str, choices: tuple[Resolved, ...], images: dict[str, NDArray[Any]], shape: tuple[int, int]
    ) -> Tuning:
        """Return the fastest precision that agrees with fp32 as the job demands.

        Args:
            device: Name of the device.
            choices: Precisions to choose from.
            images: Sampled images by key.
            shape: Height and width of most images.

        Returns:
            Plain fp32 without a shape if images of this shape do not fit into memory.
        """
        seconds: dict[Resolved, float] = {}
        if len(choices) > 1:
            try:
                seconds = {choice: seconds_of(self.segmenter(choice), shape) for choice in choices}
            except MemoryError:  # such images fail; the others must not
                return Tuning(device, "fp32")
        precision = timed = fastest(seconds) if seconds else choices[0]
        fused = self._try_fused(timed, shape) if _fuses_by_measurement(self._device) else None
        keys = list(images)
        judged = []
        while precision != "fp32":
            found = compared(self.segmenter(precision), self.segmenter("fp32"), list(images.values()))
            judged.append({"precision": precision, **found._asdict(), "worst_image": keys[found.worst_image]})
            if found.agreement >= self._job.inference.min_agreement:
                break
            precision = above(precision, self._device)
        return Tuning(
            device,
            precision,
            shape=shape,
            seconds_per_image={choice: round(value, 6) for choice, value in seconds.items()},
            compared=judged,
            fused=fused and precision == timed,  # fusing was not timed in a more exact precision
        )

    def _try_fused(self, precision: Resolved, shape: tuple[int, int]) -> bool:
        """Use convolution and ReLU as one pass if this device supports it and is clearly faster."""
        separate = self.segmenter(precision)
        try:
            fused = self._made(precision, fused=True)
            pairs = [(seconds_of(separate, shape), seconds_of(fused, shape)) for _ in range(_PAIRS)]
        except (RuntimeError, MemoryError):
            return False
        if median(before / after for before, after in pairs) < _CLEARLY_FASTER:
            return False
        self._segmenters[precision] = fused
        return True

    def _made(self, precision: Resolved, *, fused: bool | None = None) -> Segmenter:
        return segmenter_of(self._job, self._weights, threads=self._threads, precision=precision, fused=fused)


def _bytes(records: list[Record]) -> float:
    """Mean stored size of images in bytes; infinite if unknown."""
    return sum(math.inf if record.size is None else record.size for record in records) / max(1, len(records))


def _measured(
    segmenter: Segmenter, weights: Weights, device: str, shapes: list[tuple[int, int]], storage: Storage
) -> list[list[int]]:
    """Return height, width and best batch of each shape of the network's input, from storage or measured now."""
    found = []
    for shape in dict.fromkeys(segmenter.forward_shape(*shape) for shape in shapes):
        subject = batches.subject_of(device, segmenter.precision, weights, shape)
        batch = batches.known(storage, subject)
        if batch is None:
            batch = best_batch(segmenter, *shape)
            batches.keep(storage, subject, batch)
        found.append([*shape, batch])
    return found


def _fuses_by_measurement(device: torch.device) -> bool:
    """Whether fusing is a choice: a CPU always fuses, which changes no bit there."""
    return device.type == "cuda"


def _measures_batches(device: torch.device) -> bool:
    """Whether batches are measured: on a CPU one number suits every shape, and decoders disturb the measurement."""
    return device.type == "cuda"


def forward_of(segmenter: Segmenter, shape: tuple[int, int] | None, images: int) -> dict[str, Any] | None:
    """Measure the bare forward pass on this device, for a tenth of a second or a hundredth of the run.

    Args:
        segmenter: The network on its device.
        shape: Height and width of most images in px, or None.
        images: Number of images in the run.

    Returns:
        The entry "forward" of run.json; None if the run is too short, or no shape is known.
    """
    if shape is None or images < LEAST_IMAGES:
        return None
    shape = segmenter.forward_shape(*shape)
    one = 1 / images_per_second(segmenter, 1, *shape, least_seconds=0.0)
    batch = max(1, min(segmenter.batch_size(*shape), int(max(images / LEAST_IMAGES, _SECONDS / one) / 2)))
    return {
        "height": shape[0],
        "width": shape[1],
        "device": segmenter.device.type,
        "batch": batch,
        "precision": segmenter.precision,
        "seconds_per_image": 1 / images_per_second(segmenter, batch, *shape, least_seconds=_SECONDS / 2),
    }


def _counted(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"


def _shapes(images: list[NDArray[Any]]) -> list[tuple[int, int]]:
    """Return the shapes worth a measurement: the most frequent one, then others of several images."""
    counted = Counter((pixels.shape[0], pixels.shape[1]) for pixels in images).most_common(_SHAPES)
    return [shape for index, (shape, count) in enumerate(counted) if not index or count > 1]
