"""A few decoded images of a job, for measurements and checks before a run."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray

from maskfleet.jobs.images.contract import STREAM, Failure, Fetched, Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.images.streams import STREAM_BYTES, Stream, Unreadable
from maskfleet.jobs.inputs.fetch import Inputs, options_of, read_or_fail
from maskfleet.jobs.inputs.pages.names import encoded, page_of
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.unet.pixels.normalization import Levels, Normalization
from maskfleet.unet.pixels.numbers import seen

IMAGES = 16
"""Largest number of images in a sample."""

_LARGE = 1
"""Number of sampled images that are read in rows: from a bucket, such an image is downloaded completely."""

_SIDE = 768
"""Side of the sampled upper left corner of larger images, in px."""


class Example(NamedTuple):
    """An image of the sample.

    Attributes:
        record: Record of the image.
        pixels: The network's input, (H, W, C), at most its upper left 768² px: uint8 for 8 bits without a declared
            normalisation, else float32 and normalised. None if the image does not decode, or is read in rows and enough
            of those are sampled.
        failure: Reason for not decoding, or None.
    """

    record: Record
    pixels: NDArray[Any] | None = None
    failure: Failure | None = None


def limits_of(
    job: Job, *, channels: int, min_side: int, bands: tuple[int, ...] = (), normalize: Normalization | None = None
) -> Limits:
    """Return what one image of a job becomes and may cost.

    Args:
        job: The job.
        channels: Number of channels that the network takes.
        min_side: Smallest side of an image that the network takes, in px.
        bands: Bands that it takes, counted from 1; empty for those of the table in `jobs.images.channels`.
        normalize: Declared normalisation.
    """
    return Limits(
        channels=channels,
        min_side=min_side,
        scale=job.inference.scale,
        upright=job.inference.orientation == "upright",
        max_pixels=job.run.max_image_pixels,
        seconds=job.run.decode_seconds,
        memory=job.run.decode_memory,
        bands=bands,
        normalize=normalize,
    )


def sample(job: Job, records: Sequence[Record], limits: Limits) -> list[Example]:
    """Read and decode the images of some records, in their order.

    Args:
        job: The job.
        records: The records.
        limits: See `limits_of`.

    Raises:
        Denied: Credentials are missing or wrong.
        StorageError: Storage fails for every image.
    """
    inputs = Inputs(options_of(job))
    reader = inputs.reader(records)

    def fetched(record: Record) -> Fetched:
        if (record.size or 0) > STREAM_BYTES:
            return Failure("decode", STREAM, "larger than the limit for reading at once")
        data = read_or_fail(inputs, record, records, partial(reader.read, record), partial(reader.read_alone, record))
        return encoded(record.url, data) if isinstance(data, bytes) else data

    with Decoders(limits, processes=1) as decoders:
        decoded = decoders.decode((number, fetched(record)) for number, record in enumerate(records))
        examples = [
            Example(
                records[image.number],
                None if image.pixels is None else _seen(image.pixels[:_SIDE, :_SIDE], image.levels),
                image.failure,
            )
            for image in decoded
        ]
    large = [
        number for number, example in enumerate(examples) if example.failure and example.failure.error_class == STREAM
    ]
    for number in large:
        looked_at = number in large[:_LARGE]
        examples[number] = _corner(inputs, records[number], records, limits) if looked_at else Example(records[number])
    return examples


def _seen(pixels: NDArray[Any], levels: Levels | None) -> NDArray[Any]:
    return pixels.copy() if levels is None else seen(pixels, levels)


def _corner(inputs: Inputs, record: Record, others: Sequence[Record], limits: Limits) -> Example:
    """Return the corner of an image that is read in rows."""

    def corner() -> Example:
        with inputs.opened(record) as file, Stream(file.fileno(), limits, page=page_of(record.url).number) as stream:
            rows = stream.read(0, min(_SIDE, stream.height))[0, :, :_SIDE]
            return Example(record, _seen(rows, stream.levels))

    try:
        found = read_or_fail(inputs, record, others, corner, corner)
    except Unreadable as error:
        found = error.failure
    return Example(record, failure=found) if isinstance(found, Failure) else found
