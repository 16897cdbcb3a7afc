"""What the first worker of a run finds out about device, weights and images; all workers then do the same.

On record as `runs/<run_id>/tuning.json`, created once, so that a run's masks do not depend on which worker
made them, nor on how busy its machine was when it started.
"""

import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Mode
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.network import batches
from maskfleet.jobs.network.inference_config import device_of, segmenter_of
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
"""By less the choice would be noise's."""

_SHAPES = 4
"""Shapes of a sample, at most, whose batch is measured; others get as many pixels as the usual one."""

LEAST_IMAGES = 100
"""Shorter runs do not measure their bare forward pass, and,"""

LEAST_BYTES = 2**15
"""where images are smaller than this on the average, nothing at all: they are done in fp32 before it is known what
is faster."""


@dataclass(frozen=True)
class Tuning:
    """How the network is run.

    Attributes:
        device: What it was found out on.
        precision: To compute in.
        batch_pixels: Pixels per batch; None for the Segmenter's own number, or the job's.
        batches: Images per batch of the shapes that it was measured for: height, width, number; see `batches`.
        fused: Whether convolution and ReLU are one pass on a GPU, which was measured too; None where it was not.
        seconds_per_image: Of each precision, where there was a choice.
        shape: Height and width of most images of a sample; None where none was looked at.
        compared: Of each precision below fp32 that was judged: `unet.inference.precision.Agreement` with fp32, the
            number of images, and the key of the worst.
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
        """`batches` by height and width in px."""
        return {(height, width): batch for height, width, batch in self.batches}

    @property
    def sentence(self) -> str | None:
        """What a person should know; None where it is plain fp32."""
        if not self.compared:
            return None
        sentences = [
            f"{each['precision']} gives {each['agreement']:.4%} of fp32's pixels on {each['images']} images"
            for each in self.compared
        ]
        return f"{'; '.join(sentences)}: computing in {self.precision}"


def read(storage: Storage, run_id: str) -> Tuning | None:
    """What is on record of a run."""
    try:
        return Tuning(**json.loads(storage.read(_path(run_id))))
    except NotFound:
        return None


def settled(storage: Storage, run_id: str, mode: Mode, mine: Tuning) -> Tuning:
    """Put this on record, unless another worker's is: the one that counts."""
    data = json.dumps(asdict(mine), indent=1).encode()
    if mode == "worker" and not storage.create(_path(run_id), data):
        return read(storage, run_id) or mine
    if mode == "driver":
        storage.write(_path(run_id), data)
    return mine


def _path(run_id: str) -> str:
    return f"runs/{run_id}/tuning.json"


def tune(job: Job, weights: Weights, manifest: Manifest, storage: Storage, *, threads: int) -> Tuning:
    """Choose precision and batch on this machine, by its speed and by the job's own images.

    Args:
        job: What to do.
        weights: The job's.
        manifest: The run's.
        storage: The output, where measured batches are.
        threads: Of a network on a CPU.

    Raises:
        JobError: The device is not there or cannot do what the job asks.
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
    examples = sample(job, weights.model.n_channels, records)
    images = [(example.record.key, example.pixels) for example in examples if example.pixels is not None]
    if not images:  # what cannot be judged is not trusted
        return Tuning(name, "fp32")
    shape = _usual([pixels for _, pixels in images])
    if plain:
        return Tuning(name, "fp32", shape=shape)
    segmenters: dict[Resolved, Segmenter] = {}

    def resident(precision: Resolved) -> Segmenter:
        if precision not in segmenters:
            segmenters[precision] = segmenter_of(job, weights, threads=threads, precision=precision)
        return segmenters[precision]

    seconds: dict[Resolved, float] = {}
    if len(choices) > 1:
        try:
            seconds = {choice: seconds_of(resident(choice), shape) for choice in choices}
        except MemoryError:  # such images will fail; the others shall not with them
            return Tuning(name, "fp32")
    precision = fastest(seconds) if seconds else choices[0]
    timed, fused = precision, None
    if _fuses_by_measurement(device):
        trial = _faster_fused(job, weights, resident(timed), shape, threads)
        segmenters[timed], fused = trial or resident(timed), trial is not None
    judged = []
    while precision != "fp32":
        found = compared(resident(precision), resident("fp32"), [pixels for _, pixels in images])
        judged.append({"precision": precision, **found._asdict(), "worst_image": images[found.worst_image][0]})
        if found.agreement >= job.inference.min_agreement:
            break
        precision = above(precision, device)
    rounded: dict[str, float] = {choice: round(value, 6) for choice, value in seconds.items()}
    fused = fused and precision == timed  # a more exact one that was needed has not been tried
    tuned = Tuning(name, precision, None, shape, rounded, judged, fused=fused)
    if not measures:
        return tuned
    measured = _measured(resident(precision), weights, name, _shapes([pixels for _, pixels in images]), storage)
    height, width, batch = measured[0]
    return replace(tuned, batch_pixels=batch * height * width, batches=measured)


def _bytes(records: list[Record]) -> float:
    """Mean size of images in storage; infinite where it is not known."""
    return sum(math.inf if record.size is None else record.size for record in records) / max(1, len(records))


def _measured(
    segmenter: Segmenter, weights: Weights, device: str, shapes: list[tuple[int, int]], storage: Storage
) -> list[list[int]]:
    """The best batch of each shape that goes through the network, as it is known or measured now."""
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
    """On a CPU they always are one pass, which changes no bit there."""
    return device.type == "cuda"


def _faster_fused(
    job: Job, weights: Weights, separate: Segmenter, shape: tuple[int, int], threads: int
) -> Segmenter | None:
    """The same with convolution and ReLU as one pass, if this device can do that, and does it clearly faster."""
    try:
        fused = segmenter_of(job, weights, threads=threads, precision=separate.precision, fused=True)
        pairs = [(seconds_of(separate, shape), seconds_of(fused, shape)) for _ in range(_PAIRS)]
    except (RuntimeError, MemoryError):
        return None
    return fused if median(before / after for before, after in pairs) >= _CLEARLY_FASTER else None


def _measures_batches(device: torch.device) -> bool:
    """On a CPU one number serves every shape, and what measures beside decoders measures the decoders."""
    return device.type == "cuda"


def forward_of(segmenter: Segmenter, shape: tuple[int, int] | None, images: int) -> dict[str, Any] | None:
    """The bare forward pass on this device, for a tenth of a second or a hundredth of a run of so many images.

    Returns:
        For run.json; None where the run is too short to pay for it, or no shape is known.
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


def _usual(images: list[NDArray[np.uint8]]) -> tuple[int, int]:
    """The shape that most have."""
    return _shapes(images)[0]


def _shapes(images: list[NDArray[np.uint8]]) -> list[tuple[int, int]]:
    """The shapes that are worth a measurement: the one that most have, then what more than one has."""
    counted = Counter((pixels.shape[0], pixels.shape[1]) for pixels in images).most_common(_SHAPES)
    return [shape for index, (shape, count) in enumerate(counted) if not index or count > 1]
