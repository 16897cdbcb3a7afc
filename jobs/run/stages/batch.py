"""Batching: groups decoded images of one shape and type, in the order of the shard, never in order of arrival."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from numpy.typing import NDArray

from maskfleet.jobs.images.contract import STREAM, Decoded
from maskfleet.jobs.run.stages.device import Device
from maskfleet.jobs.run.stages.shard_pass import Movement, Outcome, ShardPass
from maskfleet.unet.pixels.normalization import Levels

_OPEN_BYTES = 256 * 2**20
"""Largest total size of unfinished batches in bytes."""


class Batch(NamedTuple):
    """Images of one shape and type.

    Attributes:
        outcomes: The images.
        pixels: Their pixels, (B, H, W, C), after scaling, of a type of `unet.pixels.normalization.DTYPES`.
        size: Stored height and width in px.
        levels: Levels of each image; empty for 8 bits without a declared normalisation.
    """

    outcomes: list[Outcome]
    pixels: NDArray[Any]
    size: tuple[int, int]
    levels: list[Levels]

    @property
    def trimmed(self) -> "Batch":
        """The batch, cut to its number of images."""
        return self._replace(pixels=self.pixels[: len(self.outcomes)])


def batches(decoded: Iterable[Decoded], shard: ShardPass, device: Device, movement: Movement) -> Iterator[Batch]:
    """Yield each batch as soon as it is full, then the incomplete ones in the order of their first images.

    Args:
        decoded: Images of the shard, in order. Those too large to be decoded whole are added to `shard.too_large`.
        shard: The shard.
        device: Provides batch sizes and buffers.
        movement: Records progress, to detect stalls.
    """
    unfinished: dict[tuple[Any, ...], Batch] = {}
    held = 0
    for image in decoded:
        movement.note()
        outcome = shard.outcomes[image.number]
        outcome.seconds["decode"] = image.seconds
        if image.reading:
            outcome.seconds["fetch"] = image.reading
        if image.failure is not None and image.failure.error_class == STREAM:
            shard.too_large.append(outcome)
            continue
        if image.pixels is None:
            outcome.failure = image.failure
            continue
        outcome.size = image.size
        height, width, _ = image.pixels.shape
        key = (image.pixels.dtype, *image.pixels.shape, *image.size)
        if key not in unfinished:
            pixels = device.pinned_buffer(device.batch_size(height, width), height, width, image.pixels.dtype.name)
            unfinished[key] = Batch([], pixels, image.size, [])
            held += pixels.nbytes
        batch = unfinished[key]
        batch.pixels[len(batch.outcomes)] = image.pixels
        batch.outcomes.append(outcome)
        if image.levels is not None:
            batch.levels.append(image.levels)
        full = len(batch.outcomes) == len(batch.pixels)
        # Images of many shapes would hold many unfinished batches; the oldest is handed on incomplete. This, too,
        # depends only on the records.
        while full or (held > _OPEN_BYTES and len(unfinished) > 1):
            ready = unfinished.pop(key if full else next(iter(unfinished)))
            held -= ready.pixels.nbytes
            full = False
            yield ready.trimmed
    for batch in unfinished.values():
        yield batch.trimmed
