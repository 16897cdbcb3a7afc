"""A few of a job's images, decoded: what is measured before a run, and what a doctor looks at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.decoders import Decoders, Failure, Limits
from jobs.errors import Changed, Denied, NotFound
from jobs.inputs import Inputs
from jobs.job import Job
from jobs.parts import Fault
from jobs.sources import Record

IMAGES = 16
"""Looked at, at most."""

_SIDE = 768
"""Of larger images the upper left corner is enough, in px."""


class Example(NamedTuple):
    """An image of the sample.

    Attributes:
        record: Which.
        pixels: As the network sees it, (H, W, C), at most 768² px of it; None where it does not decode.
        failure: Why not.
    """

    record: Record
    pixels: NDArray[np.uint8] | None
    failure: Failure | None


def limits_of(job: Job, channels: int) -> Limits:
    """What one image of a job may cost, and what it becomes for a network of so many channels."""
    return Limits(
        channels=channels,
        scale=job.inference.scale,
        upright=job.inference.orientation == "upright",
        max_pixels=job.run.max_image_pixels,
        seconds=job.run.decode_seconds,
        memory=job.run.decode_memory,
    )


def sample(job: Job, channels: int, records: Sequence[Record]) -> list[Example]:
    """The images of some records, in their order."""
    reader = Inputs(profile=job.profile).reader(records)

    def fetched(record: Record) -> bytes | Failure:
        try:
            return reader.read(record)
        except (NotFound, Changed, Denied, Fault) as error:
            return Failure("fetch", "missing", str(error))

    with Decoders(limits_of(job, channels), processes=1) as decoders:
        decoded = decoders.decode((number, fetched(record)) for number, record in enumerate(records))
        return [
            Example(
                records[image.number],
                None if image.pixels is None else image.pixels[:_SIDE, :_SIDE].copy(),
                image.failure,
            )
            for image in decoded
        ]
