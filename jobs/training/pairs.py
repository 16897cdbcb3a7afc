"""Image and mask pairs: matched by name, decoded once, checked, and split into training and validation sets.

Images are decoded exactly as for inference. The split depends on the bytes of the image file alone, so renaming,
reordering, copying or adding pairs never moves a validation image into the training set.
"""

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, MaskfleetError
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoders import CODEC, Decoders
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.storage.contract import Fault, Options
from maskfleet.jobs.training import truth
from maskfleet.jobs.training.classes import ObservedCodes, classes_of

_IN_FLIGHT = 16
_MAX_DECODERS = 8


@dataclass(frozen=True)
class Pair:
    """An image and its ground truth.

    Attributes:
        key: Key of the image.
        image: Pixels as the network sees them, (H, W, C), uint8.
        truth: Class of each pixel, (H, W), uint8.
    """

    key: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a job.

    Attributes:
        training: Training set.
        validation: Validation set.
        values: Mask value of each class.
        digest: SHA-256 over the bytes of all images and masks and the split, 64 hexadecimal digits.
    """

    training: Sequence[Pair]
    validation: Sequence[Pair]
    values: tuple[Any, ...]
    digest: str


@dataclass(frozen=True)
class _Decoded:
    """Decoded files, in the order of their records.

    Attributes:
        pixels: Pixels of each file, (H, W, C), uint8, memory-mapped.
        validation: Whether each file belongs to the validation set.
        digests: SHA-256 of each file.
    """

    pixels: list[NDArray[np.uint8]]
    validation: list[bool]
    digests: list[str]


def is_validation(content: bytes, share: float) -> bool:
    """Return whether an image file belongs to the validation set.

    Args:
        content: Bytes of the file.
        share: Expected share of validation images, 0 to 1.
    """
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < share * 2**32


def read_pairs(
    job: Job, *, channels: int, min_side: int, classes: int | None, base_values: Sequence[Any] | None
) -> Pairs:
    """Read every pair of a job.

    Args:
        job: Job with a `finetune` section.
        channels: Number of input channels of the network.
        min_side: Smallest side of an image that the network takes, in px.
        classes: Number of classes of the network; None to infer it from the masks.
        base_values: Mask value of each class in the base weights; None if unknown.

    Raises:
        JobError: A file is missing, ambiguous, unreadable or wrong; the message names it.
    """
    settings = job.finetune
    if not settings.images:
        raise JobError("the job names no training pairs; set finetune.images and finetune.masks")
    matched = list(_matched(job))
    inputs = Inputs(Options(job.profile))
    try:
        limits = limits_of(job, channels=channels, min_side=min_side)
        images = _decoded(job, inputs, [image for image, _ in matched], limits, codec=CODEC)
        limits = limits_of(job, channels=truth.CHANNELS, min_side=1)
        masks = _decoded(job, inputs, [mask for _, mask in matched], limits, codec=truth.CODEC)
    finally:
        inputs.close()
    codes = [pixels.view("<u4")[..., 0] for pixels in masks.pixels]
    observed = ObservedCodes()
    for (image, mask), pixels, code in zip(matched, images.pixels, codes, strict=True):
        _refuse_other_size(image, mask, pixels.shape, code.shape)
        observed.add(mask.url, code)
    values = observed.mask_values(stated=settings.values, classes=classes, base_values=base_values)
    pairs = [
        Pair(image.key, pixels, classes_of(code, values))
        for (image, _), pixels, code in zip(matched, images.pixels, codes, strict=True)
    ]
    training = [pair for pair, held in zip(pairs, images.validation, strict=True) if not held]
    validation = [pair for pair, held in zip(pairs, images.validation, strict=True) if held]
    if not training or not validation:
        raise JobError(
            f"the split gives {len(training)} training and {len(validation)} validation pairs, but both sets need at "
            "least one; add pairs or change finetune.validation_share"
        )
    hashed = " ".join([*images.digests, *masks.digests, str(settings.validation_share), repr(values)])
    return Pairs(training, validation, values, hashlib.sha256(hashed.encode()).hexdigest())


def _refuse_other_size(image: Record, mask: Record, image_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    if image_shape[:2] != mask_shape:
        raise JobError(
            f"mask {mask.url} has {mask_shape[1]}×{mask_shape[0]} px, but image {image.url} has "
            f"{image_shape[1]}×{image_shape[0]} px; export the mask at the size of the image"
        )


def _matched(job: Job) -> Iterator[tuple[Record, Record]]:
    """Yield each image with its mask, in order of the image's key."""
    settings = job.finetune
    images = _by_stem(job, settings.images, "finetune.images")
    masks = _by_stem(job, settings.masks, "finetune.masks")
    used: dict[str, str] = {}
    for stem, image in sorted(images.items()):
        folder, _, name = stem.rpartition("/")
        wanted = settings.mask_name.format(stem=stem, folder=folder, name=name).lstrip("/")
        mask = masks.get(wanted)
        if mask is not None:
            if mask.url in used:
                raise JobError(
                    f"mask {mask.url} matches two images, {used[mask.url]} and {image.url}; use {{stem}} in "
                    "finetune.mask_name to tell them apart"
                )
            used[mask.url] = image.url
            yield image, mask
        elif settings.unpaired == "refuse":
            raise JobError(
                f"image {image.url} has no mask {wanted}.* in {settings.masks}; add it, set finetune.mask_name, or "
                "skip images without a mask with finetune.unpaired = 'skip'"
            )
    _refuse_unmatched(settings, masks, used)


def _refuse_unmatched(settings: Finetune, masks: dict[str, Record], used: dict[str, str]) -> None:
    if settings.unpaired == "refuse":
        for mask in masks.values():
            if mask.url not in used:
                raise JobError(
                    f"mask {mask.url} has no image in {settings.images}; add it, set finetune.mask_name, or skip masks "
                    "without an image with finetune.unpaired = 'skip'"
                )
    if not used:
        raise JobError(
            f"no image in {settings.images} has a mask in {settings.masks}; correct the folders or finetune.mask_name"
        )


def _by_stem(job: Job, place: str, setting: str) -> dict[str, Record]:
    """Return the files of a folder or glob by their key without extension."""
    found: dict[str, Record] = {}
    for record in Source(place, output=job.output, options=Options(job.profile)):
        stem = os.path.splitext(record.key)[0]
        if stem in found:
            raise JobError(
                f"{setting} has two files of the same name, {found[stem].url} and {record.url}; remove one of them"
            )
        found[stem] = record
    return found


def _decoded(job: Job, inputs: Inputs, records: Sequence[Record], limits: Limits, *, codec: str) -> _Decoded:
    """Decode every file once.

    Pixels go to an unnamed temporary file, so they need not fit into memory.
    """
    validation: list[bool] = []
    digests: list[str] = []

    def encoded() -> Iterator[tuple[int, bytes]]:
        for number, data in enumerate(_prefetched(inputs, records)):
            validation.append(is_validation(data, job.finetune.validation_share))
            digests.append(hashlib.sha256(data).hexdigest())
            yield number, data

    processes = job.cluster.decoders if job.cluster.decoders != "auto" else min(_MAX_DECODERS, cores())
    arrays: list[tuple[int, tuple[int, ...]]] = []
    with Decoders(limits, processes=processes, codec=codec) as decoders, tempfile.TemporaryFile() as file:
        end = 0
        for item in decoders.decode(encoded()):
            if item.pixels is None:
                message = item.failure.message if item.failure else "it is not an image"
                raise JobError(f"{records[item.number].url} cannot be used for training: {message}")
            arrays.append((end, item.pixels.shape))
            file.write(np.ascontiguousarray(item.pixels).data)
            end += item.pixels.size
        file.flush()
        stored = np.memmap(file, np.uint8, "r", shape=(end,))
    pixels = [stored[start : start + int(np.prod(shape))].reshape(shape) for start, shape in arrays]
    return _Decoded(pixels, validation, digests)


def _prefetched(inputs: Inputs, records: Sequence[Record]) -> Iterator[bytes]:
    """Yield the bytes of each file, fetching up to `_IN_FLIGHT` files ahead."""
    reader = inputs.reader(records)

    def read(record: Record) -> bytes:
        try:
            return reader.read(record)
        except (MaskfleetError, Fault) as error:
            raise JobError(f"{record.url} cannot be read: {error}") from error

    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for record in records:
            waiting.append(pool.submit(read, record))
            if len(waiting) > _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
