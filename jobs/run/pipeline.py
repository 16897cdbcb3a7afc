"""From records to masks and numbers: fetch → decode → batch → segment → encode, overlapping, bounded and timed.

Knows nothing about manifests and commits. The outcome of a record depends only on the records of the same call and
their order: batches are formed in record order, never in order of arrival.
"""

import gc
from collections.abc import Iterator, Sequence
from typing import Any, Self

from maskfleet.jobs.images.contract import Decoded, Limits
from maskfleet.jobs.images.decoders import CODEC, Decoders
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.masks.formats import Encoder
from maskfleet.jobs.run.stages.batch import batches
from maskfleet.jobs.run.stages.device import Device
from maskfleet.jobs.run.stages.encode import Encode
from maskfleet.jobs.run.stages.fetch import REQUESTS, Fetch
from maskfleet.jobs.run.stages.segment import Segment, SegmentInRows
from maskfleet.jobs.run.stages.shard_pass import Movement, Outcome, ShardPass
from maskfleet.jobs.timing.stage_timers import DEVICE, StageTimers

SHARDS_IN_FLIGHT = 2
"""Shards in one pipeline at once, so the device does not idle between two shards."""

_ALLOCATIONS = 20_000
"""Container allocations between two garbage collections. Python's default collects every thirty images, scans all rows
of the shard and finds nothing: 7 % of this process's CPU time, measured with small images and no network."""


class Pipeline:
    """A network on a device, with the processes and threads keeping it busy. Close it, or use it as a context manager.

    Args:
        segmenter: The network on its device.
        encoder: Mask encoder; None for statistics alone.
        limits: Limits for decoding.
        inputs: Reader of records.
        decoders: Number of decoding processes.
        encoders: Number of encoding threads.
        codec: Decoder as "module:function".
        forward: Speed of the bare forward pass, for reports; see `jobs.timing.bottleneck.Speed`.

    Attributes:
        concurrency: Threads, processes or streams by stage.
    """

    def __init__(
        self,
        segmenter: Device,
        *,
        encoder: Encoder | None,
        limits: Limits,
        inputs: Inputs,
        decoders: int = 1,
        encoders: int = 1,
        codec: str = CODEC,
        forward: dict[str, Any] | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.forward = forward
        self.concurrency = {
            "fetch": REQUESTS, "decode": decoders, "segment": segmenter.concurrency, "encode": encoders,
            "write": SHARDS_IN_FLIGHT, DEVICE: 1,
        }  # fmt: skip
        self._inputs = inputs
        self._movement = Movement()
        self._fetch = Fetch(inputs, self._movement)
        self.decoders = Decoders(limits, processes=decoders, users=SHARDS_IN_FLIGHT, codec=codec)
        self._segment = Segment(segmenter, self._movement)
        self._segment_in_rows = SegmentInRows(
            self._segment, inputs=inputs, encoder=encoder, limits=limits, movement=self._movement
        )
        self._encode = Encode(encoder, encoders, self._movement)
        first, *rarer = gc.get_threshold()
        if 0 < first < _ALLOCATIONS:  # 0 means never
            gc.set_threshold(_ALLOCATIONS, *rarer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End processes and threads."""
        self.decoders.close()
        self._inputs.close()
        self._fetch.close()
        self._encode.close()

    def still_for(self) -> float:
        """Return the seconds since an image last made progress."""
        return self._movement.seconds_ago

    def short_of_memory(self) -> dict[str, list[str]]:
        """Return the batch and tile sizes tried until they fitted, by image size; only sizes with several tries."""
        tried = self.segmenter.fits.copy()  # the thread of the other shard may be adding to it
        return {f"{width}×{height}": [str(fit) for fit in fits] for (height, width), fits in tried.items() if fits[1:]}

    def run(self, records: Sequence[Record], timers: StageTimers | None = None) -> list[Outcome]:
        """Pass the images of a shard through all stages. At most `SHARDS_IN_FLIGHT` threads may call this at once.

        Args:
            records: Images of the shard.
            timers: Timers to receive the seconds of each stage.

        Returns:
            The outcome of each image, in order.

        Raises:
            Denied: Credentials are missing or wrong.
            StorageError: Storage keeps failing, for other images too.
        """
        shard = ShardPass(records, timers or StageTimers())
        decoded = self.decoders.decode(self._fetch.run(shard), shard.timers)
        masks = self._encode.queue(shard)
        for batch in batches(_awaited(decoded, shard), shard, self.segmenter, self._movement):
            masks.put(batch, self._segment.run(batch, shard))
        for outcome in shard.too_large:
            self._segment_in_rows.run(outcome, shard)
        masks.finish()
        return shard.outcomes


def _awaited(decoded: Iterator[Decoded], shard: ShardPass) -> Iterator[Decoded]:
    """Yield the decoded images; count the time until each one arrives as waiting for input."""
    while True:
        with shard.wait.for_input():
            image = next(decoded, None)
        if image is None:
            return
        yield image
