"""Segmenting: batches on the device, and images too large for memory in rows."""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Failure, Limits
from maskfleet.jobs.images.streams import Stream, Unreadable
from maskfleet.jobs.inputs.fetch import Inputs, read_or_fail
from maskfleet.jobs.inputs.pages.names import page_of
from maskfleet.jobs.masks.formats import Encoder
from maskfleet.jobs.run.stages.batch import Batch
from maskfleet.jobs.run.stages.device import Device
from maskfleet.jobs.run.stages.shard_pass import Movement, Outcome, ShardPass
from maskfleet.jobs.timing.stage_timers import ResourcePool

if TYPE_CHECKING:  # `verify` and `status` import this module and must not wait for torch
    from maskfleet.unet.inference.statistics import Statistics

_NON_FINITE = Failure("segment", "non_finite", "the network returned NaN or infinity, even in fp32; use other weights")


class Segment:
    """Runs batches through the device.

    Args:
        device: The network on its device.
        movement: Records progress, to detect stalls.
    """

    def __init__(self, device: Device, movement: Movement) -> None:
        self.device = device
        self.resources = ResourcePool("segment", device.concurrency)
        self._movement = movement

    def run(self, batch: Batch, shard: ShardPass) -> NDArray[np.uint8]:
        """Segment a batch and fill in the statistics of its images.

        Returns:
            Class maps at the stored size, (B, H, W), uint8; (B, 0, 0) if the batch failed.
        """
        alone = self.device.concurrency_of(*batch.pixels.shape[1:3]) == 1
        with self.resources.work(shard.timers, shard.wait, alone=alone):
            started = time.perf_counter()
            try:
                class_maps, statistics = self.device.segment(batch.pixels, batch.size, levels=batch.levels or None)
            except (ValueError, MemoryError) as error:
                for outcome in batch.outcomes:
                    outcome.fail(_failure(error))
                return np.empty((len(batch.outcomes), 0, 0), np.uint8)
            self._movement.note()
            seconds = (time.perf_counter() - started) / len(batch.outcomes)
        for outcome in batch.outcomes:
            outcome.seconds["segment"] = seconds
        _fill(batch.outcomes, statistics)
        return class_maps


class SegmentInRows:
    """Passes an image too large for memory through all stages in rows, with exclusive use of the device.

    Args:
        segment: The stage owning the device.
        inputs: Reader of records.
        encoder: Mask encoder; None if masks are not stored.
        limits: Limits for decoding.
        movement: Records progress, to detect stalls.
    """

    def __init__(
        self, segment: Segment, *, inputs: Inputs, encoder: Encoder | None, limits: Limits, movement: Movement
    ) -> None:
        self._segment = segment
        self._inputs = inputs
        self._encoder = encoder
        self._limits = limits
        self._movement = movement

    def run(self, outcome: Outcome, shard: ShardPass) -> None:
        """Read, segment and encode one image."""
        started = time.perf_counter()
        records = [other.record for other in shard.outcomes]
        segmented = partial(self._run, outcome, shard)
        try:
            failure = read_or_fail(self._inputs, outcome.record, records, segmented, segmented)
            if failure is not None:
                outcome.fail(failure)
        except Unreadable as error:
            outcome.fail(error.failure)
        except (ValueError, MemoryError) as error:
            outcome.fail(_failure(error))
        outcome.seconds["segment"] = time.perf_counter() - started

    def _run(self, outcome: Outcome, shard: ShardPass) -> None:
        def read(top: int, bottom: int) -> NDArray[Any]:
            self._movement.note()
            return stream.read(top, bottom)

        page = page_of(outcome.record.url).number
        with self._inputs.opened(outcome.record) as file, Stream(file.fileno(), self._limits, page=page) as stream:
            outcome.size = stream.height, stream.width
            mask = self._encoder.row_encoder(*outcome.size) if self._encoder is not None else None
            write = mask.write if mask is not None else _discard
            with self._segment.resources.work(shard.timers, shard.wait, alone=True):
                statistics = self._segment.device.segment_rows(read, *outcome.size, write, levels=stream.levels)
        if mask is not None:
            outcome.mask = mask.finish()
        _fill([outcome], statistics)


def _fill(outcomes: Sequence[Outcome], statistics: "Statistics") -> None:
    for outcome, finite, columns in zip(outcomes, statistics.finite, statistics.rows(), strict=True):
        if finite:
            outcome.columns = columns
        else:
            outcome.fail(_NON_FINITE)


def _failure(error: ValueError | MemoryError) -> Failure:
    """Return the failure of an image that cannot be tiled exactly, or does not fit into memory even in tiles."""
    error_class = "out_of_memory" if isinstance(error, MemoryError) else "not_tileable"
    return Failure("segment", error_class, str(error))


def _discard(_: NDArray[np.uint8]) -> None:
    """Discard rows of a mask, for jobs without masks."""
