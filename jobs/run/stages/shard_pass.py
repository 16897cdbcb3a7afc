"""One shard on its way through the pipeline, and the outcome of each of its images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskfleet.jobs.images.contract import Failure
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.masks.formats import EncodedMask
from maskfleet.jobs.timing.stage_timers import StageTimers, Wait


@dataclass
class Outcome:
    """The outcome of an image, filled in stage by stage.

    Attributes:
        record: The image.
        mask: Encoded mask; None for a failed image, or if the job stores no masks.
        size: Stored height and width in px; None if the image was not decoded.
        failure: Reason of the failure; None for a successful image.
        columns: Statistics columns filled by the segmenter.
        seconds: Seconds by stage.
    """

    record: Record
    mask: EncodedMask | None = None
    size: tuple[int, int] | None = None
    failure: Failure | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def fail(self, failure: Failure) -> None:
        """Record a failure and discard earlier results."""
        self.failure = failure
        self.mask, self.columns = None, {}


class ShardPass:
    """One shard on its way through the pipeline.

    Args:
        records: Images of the shard, in order.
        timers: Stage timers of the shard.

    Attributes:
        outcomes: Outcome of each image, in order.
        too_large: Images too large to be decoded whole, segmented in rows after all others.
        timers: Stage timers of the shard.
        wait: Time spent waiting for input to the device, and for free space in its output queue.
        began: Start of the pass, by `time.perf_counter`.
    """

    def __init__(self, records: Sequence[Record], timers: StageTimers) -> None:
        self.outcomes = [Outcome(record) for record in records]
        self.too_large: list[Outcome] = []
        self.timers = timers
        self.wait = Wait()
        self.began = self.wait.since


class Movement:
    """The time at which any image last made progress, so the driver can detect a hanging worker."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def note(self) -> None:
        """Record that an image made progress."""
        self._last = time.monotonic()

    @property
    def seconds_ago(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._last
