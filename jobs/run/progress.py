"""The progress of a run, counted by the driver."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskfleet.jobs.run.attempt import ShardReport
from maskfleet.jobs.timing import stage_timers
from maskfleet.jobs.timing.bottleneck import Speed, StageTime

OnPhase = Callable[[str], None]
"""Called at the start of each phase with its name, such as "listing the input"."""


@dataclass
class Progress:
    """Counts and seconds of a run. Its size does not grow with the number of images.

    Attributes:
        notices: Sentences for people, such as one about a run set aside.
        enter: Called at the start of each phase.
        images: Images planned so far.
        ok: Images processed successfully.
        failed: Failed images.
        before: Images finished by an earlier command of this run.
        shards: Shards finished by this command.
        deaths: Workers lost, and attempts that raised an error.
        errors: Failed images by error class.
        start: Seconds of each startup step, in order: plan, ray, worker, shard.
        measured: Images in shards with stage timers.
        short_of_memory: By image size, the batch and tile sizes tried until they fitted.
        isolation: Means of the kernel that held every decoding process so far; None before the first.
        serving: First start and last end of each worker's shards in seconds, by its own clock.
        begun: Monotonic time at the start of the command.
        started: Monotonic time since which shards can be handed out.
    """

    notices: list[str] = field(default_factory=list)
    enter: OnPhase = lambda _: None
    images: int = 0
    ok: int = 0
    failed: int = 0
    before: int = 0
    shards: int = 0
    deaths: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    start: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    short_of_memory: dict[str, list[str]] = field(default_factory=dict)
    isolation: list[str] | None = None
    serving: dict[str, tuple[float, float]] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    _busy: Counter[str] = field(default_factory=Counter)
    _starved: Counter[str] = field(default_factory=Counter)
    _blocked: Counter[str] = field(default_factory=Counter)
    _concurrency: dict[str, int] = field(default_factory=dict)
    _pixels: float = 0.0
    _forward: list[Mapping[str, Any]] = field(default_factory=list)
    """Speed of the bare forward pass of each worker."""

    def reached(self, step: str) -> None:
        """Record the end of a startup step. Only the first call for a step counts."""
        if step not in self.start:
            self.start[step] = time.monotonic() - self.begun - sum(self.start.values())

    def resumed(self, *, ok: int, failed: int) -> None:
        """Count images finished by an earlier command of this run."""
        self.ok += ok
        self.failed += failed
        self.before += ok + failed

    def add(self, report: ShardReport) -> None:
        """Count a committed shard."""
        self.reached("shard")
        self.ok += report.commit.images - report.commit.failed
        self.failed += report.commit.failed
        self.shards += 1
        self.errors.update(report.errors)
        self._busy.update(report.busy)
        self._starved.update(report.starved)
        self._blocked.update(report.blocked)
        if report.worker:
            self._add_worker(report)
        for size, tried in report.short_of_memory.items():
            if len(tried) > len(self.short_of_memory.get(size, ())):
                self.short_of_memory[size] = tried

    def _add_worker(self, report: ShardReport) -> None:
        if report.worker not in self.serving and report.forward:
            self._forward.append(report.forward)
        self._concurrency.update(report.concurrency)
        if report.isolation is not None:
            before = report.isolation if self.isolation is None else self.isolation
            self.isolation = [means for means in before if means in report.isolation]
        self.measured += report.commit.images
        self._pixels += report.pixels
        first, last = self.serving.get(report.worker, (report.began, 0.0))
        self.serving[report.worker] = min(first, report.began), max(last, report.began + report.seconds)

    @property
    def done(self) -> int:
        """Number of images with an outcome."""
        return self.ok + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since the first shard could be handed out."""
        return time.monotonic() - self.started

    @property
    def total_seconds(self) -> float:
        """Seconds since the start of the command."""
        return time.monotonic() - self.begun

    @property
    def rate(self) -> float:
        """Images finished by this command per second."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def busiest(self) -> str:
        """The stage with the most seconds of work, or ""."""
        return stage_timers.busiest(self._busy)

    def speed(self, *, loose: bool) -> Speed:
        """Return the measured speed so far.

        Args:
            loose: Whether masks are also written as loose files.
        """
        median = sorted(self._forward, key=lambda each: each["seconds_per_image"])[len(self._forward) // 2 :][:1]
        return Speed(
            stages={stage: self._stage_time(stage) for stage in self._busy},
            worker_seconds=round(sum(last - first for first, last in self.serving.values()), 3),
            measured_pixels=round(self._pixels),
            forward=median[0] if median else None,
            device=self._forward[0]["device"] if self._forward else None,
            loose=loose,
        )

    def _stage_time(self, stage: str) -> StageTime:
        return StageTime(
            busy_seconds=round(self._busy[stage], 6),
            starved_seconds=round(self._starved[stage], 6),
            blocked_seconds=round(self._blocked[stage], 6),
            lanes=self._concurrency.get(stage, 1),
        )
