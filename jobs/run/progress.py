"""What a run has done so far, as whoever drives it counts it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskfleet.jobs import stage_timers
from maskfleet.jobs.run.attempt import ShardReport


@dataclass
class Tally:
    """Counts and seconds of a run. Their size does not grow with the images."""

    images: int = 0
    ok: int = 0
    failed: int = 0
    before: int = 0
    """Images that an earlier command of this run had done."""
    shards: int = 0
    deaths: int = 0
    """Workers lost, and attempts that raised."""
    errors: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Seconds by stage; likewise `starved` and `blocked`, see `jobs.stage_timers`."""
    starved: Counter[str] = field(default_factory=Counter)
    blocked: Counter[str] = field(default_factory=Counter)
    serving: dict[str, tuple[float, float]] = field(default_factory=dict)
    """From when to when each worker did shards, by its own clock."""
    lanes: dict[str, int] = field(default_factory=dict)
    forward: list[Mapping[str, Any]] = field(default_factory=list)
    """Of each worker: its bare forward pass."""
    measured: int = 0
    """Images of shards that were metered."""
    pixels: float = 0.0
    """Of those images, as the network saw them."""
    fits: dict[str, list[str]] = field(default_factory=dict)
    """By shape, how images went through where memory was short."""
    begun: float = field(default_factory=time.monotonic)
    """When the command looked at its input first."""
    started: float = field(default_factory=time.monotonic)
    """When it could hand out shards."""
    start: dict[str, float] = field(default_factory=dict)
    """Seconds of each step of the start, in order: plan, ray, worker, shard."""

    def reached(self, step: str) -> None:
        """Note the end of a step of the start, which only its first does."""
        if step not in self.start:
            self.start[step] = time.monotonic() - self.begun - sum(self.start.values())

    def add(self, report: ShardReport) -> None:
        """Count a shard that is on record."""
        self.ok += report.commit.images - report.commit.failed
        self.failed += report.commit.failed
        self.shards += 1
        self.errors.update(report.errors)
        for mine, more in (
            (self.busy, report.busy),
            (self.starved, report.starved),
            (self.blocked, report.blocked),
        ):
            mine.update(more)
        if report.worker:
            if report.worker not in self.serving and report.forward:
                self.forward.append(report.forward)
            self.lanes.update(report.lanes)
            self.measured += report.commit.images
            self.pixels += report.pixels
            first, last = self.serving.get(report.worker, (report.began, 0.0))
            ended = report.began + report.seconds
            self.serving[report.worker] = min(first, report.began), max(last, ended)
        self.fits |= {
            shape: tried for shape, tried in report.fits.items() if len(tried) > len(self.fits.get(shape, ()))
        }

    @property
    def done(self) -> int:
        """Images with an outcome."""
        return self.ok + self.failed

    @property
    def seconds(self) -> float:
        """Since the first shard was handed out."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images per second of this command."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def busiest(self) -> str:
        """The stage that most seconds went to, or ''."""
        return stage_timers.busiest(self.busy)
