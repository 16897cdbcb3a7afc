"""The bottleneck of a run and its remedy, from the stage timers. Takes plain numbers and returns sentences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.timing.stage_timers import DEVICE

_GOOD = 0.97
"""Busy share from which on the device itself is the limit."""

_SHORT_SECONDS = 60.0
"""Seconds of work up to which the ends of shards, and the first requests to storage, weigh too much for advice."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Seconds of one stage, summed over all workers.

    Attributes:
        busy_seconds: Seconds of work.
        starved_seconds: Seconds of waiting for input.
        blocked_seconds: Seconds of waiting on a full output queue.
        lanes: Number of threads, processes or streams per worker. The name is the key in `run.json`.
    """

    busy_seconds: float = 0.0
    starved_seconds: float = 0.0
    blocked_seconds: float = 0.0
    lanes: int = 1


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The measured speed of a run.

    Attributes:
        stages: Seconds by stage.
        worker_seconds: Time span of each worker's shards in seconds, summed over all workers.
        measured_pixels: Number of pixels in those shards, after scaling.
        forward: The bare forward pass of the median worker: `seconds_per_image`, `height` and `width` in px, `device`
            and `precision`. None if it was not measured.
        device: "cuda", "cpu", or None if no worker ran.
        loose: Whether masks are also written as loose files.
    """

    stages: Mapping[str, StageTime]
    worker_seconds: float
    measured_pixels: float
    forward: Mapping[str, Any] | None
    device: str | None
    loose: bool

    @property
    def forward_share(self) -> float | None:
        """End-to-end speed per worker as a share of the speed of the bare forward pass. None if unknown.

        Both speeds are in pixels per second: images differ in size, and the forward pass was measured at one size.
        """
        if not self.forward or not self.worker_seconds or not self.measured_pixels:
            return None
        seconds_per_pixel = self.forward["seconds_per_image"] / (self.forward["height"] * self.forward["width"])
        return float(self.measured_pixels / self.worker_seconds * seconds_per_pixel)

    @property
    def idle_share(self) -> float | None:
        """Share of the workers' time with an idle device. None if no worker ran."""
        if not self.worker_seconds or "segment" not in self.stages:
            return None
        if self.device == "cuda" and DEVICE in self.stages:
            # Streams of one GPU wait for each other, so the GPU is idle only while no stream works.
            return max(0.0, 1 - self.stages[DEVICE].busy_seconds / self.worker_seconds)
        return self._idle_share_of_lanes

    @property
    def limit(self) -> str | None:
        """One sentence with the idle share of the device, its cause and the remedy. None if no worker ran."""
        idle = self.idle_share
        if idle is None:
            return None
        device = "GPU" if self.device == "cuda" else "network"
        if 1 - idle >= _GOOD:
            return f"{device} busy {1 - idle:.0%} of the time: it is the limit; add more of them to go faster"
        return f"{device} idle {idle:.0%}: {self._cause(idle)}"

    @property
    def _lane_seconds(self) -> float:
        return self.worker_seconds * self.stages["segment"].lanes

    @property
    def _idle_share_of_lanes(self) -> float:
        return max(0.0, 1 - self.stages["segment"].busy_seconds / self._lane_seconds)

    def _cause(self, idle: float) -> str:
        segment = self.stages["segment"]
        starved, blocked = segment.starved_seconds, segment.blocked_seconds
        between_shards = max(0.0, self._idle_share_of_lanes * self._lane_seconds - starved - blocked)
        if blocked >= max(starved, between_shards):
            more = self._more_cores("encode", idle)
            return f"PNG encoding; give the worker {more}"
        if starved >= between_shards:
            decode = self.stages["decode"]
            # Busy decoders are the limit; starved decoders point to storage.
            if decode.starved_seconds > decode.busy_seconds:
                return "reading the images; move them nearer to the workers, or into faster storage"
            return f"decoding the images; give the worker {self._more_cores('decode', idle)}"
        if self.stages.get("write", StageTime()).busy_seconds >= between_shards / 2:
            return f"writing the masks; {self._faster_writing}"
        return f"mostly shard overhead; {'normal for a short run' if self._is_short else 'raise run.shard_size'}"

    @property
    def _is_short(self) -> bool:
        return self.worker_seconds < _SHORT_SECONDS

    @property
    def _faster_writing(self) -> str:
        if self._is_short:
            return "normal for a short run"
        tars = ", or set masks.format = 'tar' if you need no loose PNG files" if self.loose else ""
        return f"write to faster storage{tars}"

    def _more_cores(self, stage: str, idle: float) -> str:
        """Return the number of CPU cores to add so that the stage keeps the device busy, as text."""
        lanes = self.stages[stage].lanes
        cores = max(1, math.ceil(lanes * idle / (1 - idle))) if idle < 1 else lanes
        return f"{cores} more CPU{'s' if cores > 1 else ''} (cluster.cpus_per_worker)"
