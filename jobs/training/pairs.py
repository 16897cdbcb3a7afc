"""Pairs of image and mask: matched by name, decoded once, split by content; all that is wrong is named before training.

Images are decoded as inference decodes them. A pair's side of the split is decided by the bytes of its image alone, so
that no name, order, copy or later pair moves it: what was held back once is never trained on.
"""

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, MaskfleetError
from maskfleet.jobs.images.decoders import CODEC, Decoders, Limits
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.training import truth
from maskfleet.jobs.training.classes import Found, classes_of

_IN_FLIGHT = 16
_MOST_DECODERS = 8


class Pair(NamedTuple):
    """An image and its truth.

    Attributes:
        key: The image's.
        image: (H, W, C), uint8, as the network sees it.
        truth: Class of each pixel, (H, W), uint8.
    """

    key: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a job.

    Attributes:
        training: To train on.
        validation: Held back.
        values: What a mask shows for each class.
        digest: Of every image's and mask's bytes and of the split, 64 hexadecimal digits.
    """

    training: Sequence[Pair]
    validation: Sequence[Pair]
    values: tuple[Any, ...]
    digest: str


def held_back(content: bytes, share: float) -> bool:
    """Whether an image file is for validation."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < share * 2**32


def read_pairs(job: Job, *, channels: int, classes: int | None, own: Sequence[Any] | None) -> Pairs:
    """Read every pair of a job.

    Args:
        job: With a `finetune` section.
        channels: What the network takes.
        classes: That it tells apart; None where that follows from the masks.
        own: What its own masks show for them; None where nobody says.

    Raises:
        JobError: A file is missing, double, unreadable or wrong; the message names it.
    """
    if not job.finetune.images:
        raise JobError("the job says nothing of what to train on; state finetune.images and finetune.masks")
    matched = list(_matched(job))
    inputs = Inputs(profile=job.profile)
    try:
        images, held, digests = _decoded(job, inputs, [image for image, _ in matched], limits_of(job, channels))
        codes, _, of_masks = _decoded(
            job, inputs, [mask for _, mask in matched], limits_of(job, truth.CHANNELS), codec=truth.CODEC
        )
    finally:
        inputs.close()
    found = Found()
    for (image, mask), pixels, code in zip(matched, images, codes, strict=True):
        if pixels.shape[:2] != code.shape[:2]:
            raise JobError(
                f"mask {mask.url} is {code.shape[1]}×{code.shape[0]} px and its image {image.url} "
                f"{pixels.shape[1]}×{pixels.shape[0]}; export the mask at the image's size"
            )
        found.add(mask.url, code.view("<u4"))
    values = found.values(stated=job.finetune.values, classes=classes, own=own)
    pairs = [
        Pair(image.key, pixels, classes_of(code.view("<u4")[..., 0], values))
        for (image, _), pixels, code in zip(matched, images, codes, strict=True)
    ]
    training = [pair for pair, back in zip(pairs, held, strict=True) if not back]
    validation = [pair for pair, back in zip(pairs, held, strict=True) if back]
    if not training or not validation:
        raise JobError(
            f"of {len(pairs)} pairs {len(validation)} are held back for validation, and both parts need some; give "
            "more pairs, or change finetune.validation_share"
        )
    parts = [*digests, *of_masks, str(job.finetune.validation_share), repr(values)]
    return Pairs(training, validation, values, hashlib.sha256(" ".join(parts).encode()).hexdigest())


def _matched(job: Job) -> Iterator[tuple[Record, Record]]:
    """Images with their masks, in order of key."""
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
                    f"mask {mask.url} belongs to {used[mask.url]} and to {image.url}; name one image's mask by "
                    "{stem} in finetune.mask_name"
                )
            used[mask.url] = image.url
            yield image, mask
        elif settings.unpaired == "refuse":
            raise JobError(
                f"image {image.url} has no mask {wanted}.* in {settings.masks}; add it, set finetune.mask_name, or "
                "leave such images out with finetune.unpaired = 'skip'"
            )
    if settings.unpaired == "refuse":
        for mask in masks.values():
            if mask.url not in used:
                raise JobError(
                    f"mask {mask.url} has no image in {settings.images}; add it, set finetune.mask_name, or leave such "
                    "masks out with finetune.unpaired = 'skip'"
                )
    if not used:
        raise JobError(
            f"no image in {settings.images} has a mask in {settings.masks}; correct the folders or finetune.mask_name"
        )


def _by_stem(job: Job, place: str, name: str) -> dict[str, Record]:
    """Of a folder or glob, by key without its ending."""
    found: dict[str, Record] = {}
    for record in Source(place, output=job.output, profile=job.profile):
        stem = os.path.splitext(record.key)[0]
        if stem in found:
            raise JobError(
                f"{name} has both {found[stem].url} and {record.url}, and a pair needs one; remove one of them"
            )
        found[stem] = record
    return found


def _decoded(
    job: Job, inputs: Inputs, records: Sequence[Record], limits: Limits, *, codec: str = CODEC
) -> tuple[list[NDArray[np.uint8]], list[bool], list[str]]:
    """Pixels, whether each file is for validation, and the sha256 of each.

    Pixels are decoded once, into a file without a name, so that they need not fit into memory.
    """
    held: list[bool] = []
    digests: list[str] = []

    def encoded() -> Iterator[tuple[int, bytes]]:
        for number, data in enumerate(_read(inputs, records)):
            held.append(held_back(data, job.finetune.validation_share))
            digests.append(hashlib.sha256(data).hexdigest())
            yield number, data

    processes = job.cluster.decoders if job.cluster.decoders != "auto" else min(_MOST_DECODERS, cores())
    arrays: list[tuple[int, tuple[int, ...]]] = []
    with Decoders(limits, processes=processes, codec=codec) as decoders, tempfile.TemporaryFile() as file:
        end = 0
        for item in decoders.decode(encoded()):
            if item.pixels is None:
                message = item.failure.message if item.failure else "it is no image"
                raise JobError(f"{records[item.number].url} cannot be trained on: {message}")
            arrays.append((end, item.pixels.shape))
            file.write(np.ascontiguousarray(item.pixels).data)
            end += item.pixels.size
        file.flush()
        whole = np.memmap(file, np.uint8, "r", shape=(end,))
    return [whole[start : start + int(np.prod(shape))].reshape(shape) for start, shape in arrays], held, digests


def _read(inputs: Inputs, records: Sequence[Record]) -> Iterator[bytes]:
    """Their bytes, some ahead."""
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
