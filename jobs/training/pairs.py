"""Image and mask pairs: matched by name, decoded once, checked, and split into training and validation sets.

Images are decoded exactly as for inference. The split depends on the bytes of the image file alone, so renaming,
reordering, copying or adding pairs never moves a validation image into the training set.
"""

import hashlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, MaskfleetError
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoders import CODEC, Decoders
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.outputs import FOLDERS
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.places import below
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import Finetune
from maskfleet.jobs.storage.contract import Fault, Options
from maskfleet.jobs.training.truth import codes, orientation
from maskfleet.jobs.training.truth.classes import Legend, Observed
from maskfleet.unet.pixels.numbers import seen

_IN_FLIGHT = 16
_MAX_DECODERS = 8


@dataclass(frozen=True)
class Pair:
    """An image and its ground truth.

    Attributes:
        key: Key of the image.
        image: Pixels as the network sees them, (H, W, C): uint8, seen as v / 255, or float32, normalised already.
        truth: Class of each pixel, (H, W), uint8; `classes.IGNORED` for none.
    """

    key: str
    image: NDArray[Any]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a job.

    Attributes:
        training: Training set.
        validation: Validation set.
        values: Mask value of each class.
        digest: SHA-256 over the bytes of all images and masks and the split, 64 hexadecimal digits.
        places: Place of each image among all possible contents, 0 to 1, in order: a share holds back those below it.
    """

    training: Sequence[Pair]
    validation: Sequence[Pair]
    values: tuple[Any, ...]
    digest: str
    places: Sequence[float] = ()

    def share_of(self, count: int) -> float | None:
        """Return the smallest share, in hundredths, that holds back at least `count` images; None beyond a half."""
        shares = (percent / 100 for percent in range(1, 51))
        return next((share for share in shares if sum(place < share for place in self.places) >= count), None)


@dataclass(frozen=True)
class _Decoded:
    """Decoded files, in the order of their records.

    Attributes:
        pixels: Pixels of each file, (H, W, C), uint8 or float32, memory-mapped.
        places: Place of each file among all possible contents, 0 to 1.
        digests: SHA-256 of each file.
        orientations: Orientation that each file states, 1 to 8.
    """

    pixels: list[NDArray[Any]]
    places: list[float]
    digests: list[str]
    orientations: list[int]


def place_of(content: bytes) -> float:
    """Return the place of an image file among all possible contents, 0 to 1. A share holds back the files below it."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32


def read_pairs(job: Job, limits: Limits, *, classes: int | None, base_values: Sequence[Any] | None) -> Pairs:
    """Read every pair of a job.

    Args:
        job: Job with a `finetune` section.
        limits: Limits of the images, as for inference.
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
        images = _decoded(job, inputs, [image for image, _ in matched], limits, codec=CODEC)
        limits = replace(limits, channels=codes.CHANNELS, min_side=1, scale=1.0, bands=(), normalize=None)
        masks = _decoded(job, inputs, [mask for _, mask in matched], limits, codec=codes.CODEC)
    finally:
        inputs.close()
    observed = Observed(ignore=settings.ignore, instances=settings.instances)

    def aligned(place: int, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return orientation.aligned(
            classes, image=images.orientations[place], mask=masks.orientations[place],
            wanted=job.inference.orientation, drawn=settings.mask_orientation,
        )  # fmt: skip

    for place, (image, mask) in enumerate(matched):
        orientation.refuse_doubt(
            image=(image.url, images.orientations[place]), mask=(mask.url, masks.orientations[place]),
            wanted=job.inference.orientation, drawn=settings.mask_orientation,
        )  # fmt: skip
        size = _size(job, aligned(place, masks.pixels[place][..., 0]).shape)
        _refuse_other_size(image, mask, images.pixels[place].shape, size)
        observed.add(mask.url, codes.codes_of(masks.pixels[place]))
    legend = observed.legend(stated=settings.values, classes=classes, base_values=base_values, written=job.masks.values)
    pairs = []
    for place, (image, _) in enumerate(matched):
        classes_HW = aligned(place, legend.classes(codes.codes_of(masks.pixels[place])))
        size = _size(job, classes_HW.shape)
        if size != classes_HW.shape:
            nearest = Image.fromarray(classes_HW).resize(size[::-1], Image.Resampling.NEAREST)
            classes_HW = np.asarray(nearest)
        pairs.append(Pair(image.key, images.pixels[place], classes_HW))
    return _split(job, pairs, images, masks, legend)


def _size(job: Job, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width of a mask after scaling."""
    return int(job.inference.scale * shape[0]), int(job.inference.scale * shape[1])


def _split(job: Job, pairs: Sequence[Pair], images: _Decoded, masks: _Decoded, legend: Legend) -> Pairs:
    """Split pairs into the two sets.

    Raises:
        JobError: One of the sets is empty.
    """
    settings = job.finetune
    share = settings.validation_share
    training = [pair for pair, place in zip(pairs, images.places, strict=True) if place >= share]
    validation = [pair for pair, place in zip(pairs, images.places, strict=True) if place < share]
    if not training or not validation:
        raise JobError(
            f"the split gives {len(training)} training and {len(validation)} validation pairs, but both sets need at "
            "least one; add pairs or change finetune.validation_share"
        )
    meaning = (settings.ignore, settings.mask_orientation, legend.instances, legend.shown)
    parts = [*images.digests, *masks.digests, str(settings.validation_share), repr(legend.values)]
    parts += [repr(meaning)] if any(item not in (None, False) for item in meaning) else []
    hashed = " ".join(parts)
    digest = hashlib.sha256(hashed.encode()).hexdigest()
    return Pairs(training, validation, legend.values, digest, sorted(images.places))


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
    """Return the files of a folder or glob by their key without extension.

    Raises:
        JobError: Two files have the same name, or the place is in a folder of the job's own output.
    """
    path = below(place, job.output)
    if path is not None and path.partition("/")[0] in FOLDERS:
        raise JobError(
            f"{setting} {place} is inside the job's own output {job.output}; copy the corrected files elsewhere"
        )
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
    places: list[float] = []
    digests: list[str] = []

    def encoded() -> Iterator[tuple[int, bytes]]:
        for number, data in enumerate(_prefetched(inputs, records)):
            places.append(place_of(data))
            digests.append(hashlib.sha256(data).hexdigest())
            yield number, data

    processes = job.cluster.decoders if job.cluster.decoders != "auto" else min(_MAX_DECODERS, cores())
    arrays: list[tuple[int, tuple[int, ...], np.dtype[Any]]] = []
    orientations: list[int] = []
    again, once = tee(encoded())
    with (
        Decoders(limits, processes=processes, codec=codec) as decoders,
        Decoders(
            replace(limits, channels=1, bands=(), normalize=None), processes=1, codec=orientation.CODEC
        ) as orienting,
        tempfile.TemporaryFile() as file,
    ):
        end = 0
        for item, stated in zip(decoders.decode(once), orienting.decode(again), strict=True):
            if item.pixels is None:
                message = item.failure.message if item.failure else "it is not an image"
                raise JobError(f"{records[item.number].url} cannot be used for training: {message}")
            orientations.append(orientation.UPRIGHT if stated.pixels is None else int(stated.pixels[0, 0, 0]))
            pixels = item.pixels if item.levels is None else seen(item.pixels, item.levels)
            end += file.write(bytes(-end % pixels.itemsize))
            arrays.append((end, pixels.shape, pixels.dtype))
            end += file.write(np.ascontiguousarray(pixels).data)
        file.flush()
        stored = np.memmap(file, np.uint8, "r", shape=(end,))
    placed = [
        stored[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        for start, shape, dtype in arrays
    ]
    return _Decoded(placed, places, digests, orientations)


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
