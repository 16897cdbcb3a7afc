"""The line of a run in progress, for any width: what matters least is left out first."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

from maskfleet.cluster.terminal.pace import Pace
from maskfleet.jobs.words import duration

_BAR = 12
"""Columns of the bar, at least. The busiest stage is left out before the bar, and the bar before the rest."""

_WIDEST_BAR = 40

_UNICODE = ("⠋⠙⠹⠸⠼⠴⠦⠧", "━", "─")
_ASCII = ("|/-\\", "#", "-")
"""Frames of the spinner, and the two parts of the bar."""

_LATER = ("segmenting", "writing tables")
"""Phases at whose time images are counted."""


_BUSIEST = 1
"""Importance of the busiest stage."""


class _Part(NamedTuple):
    """A part of the line.

    Attributes:
        text: Its text.
        importance: Parts of the lowest importance are left out first.
    """

    text: str
    importance: int


@dataclass
class Shown:
    """The values shown of a run.

    Attributes:
        began: Monotonic time at the start.
        pace: Its pace.
        phase: Name of the present phase.
        since: Monotonic time at the start of that phase.
        images: Images planned so far.
        done: Images with an outcome.
        failed: Failed images.
        growing: Whether the input is still being listed.
        busiest: Busiest stage, or "".
    """

    began: float
    pace: Pace
    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)
    images: int = 0
    done: int = 0
    failed: int = 0
    growing: bool = False
    busiest: str = ""

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase, self.since = phase, time.monotonic()

    def update(self, run: Any, progress: Any) -> None:
        """Take the values of a run in progress."""
        self.images, self.done, self.failed = progress.images, progress.done, progress.failed
        self.busiest, self.growing = progress.busiest, bool(run.live and run.live.is_growing)
        self.pace.saw(progress.done)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def plain(self) -> str:
        """Return the line for a file or a pipe."""
        parts = self._parts()
        return ", ".join([parts[0].text, *(part.text for part in parts[1:] if part.importance > _BUSIEST)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Draw the line for a terminal."""
        spinner, full, empty = _UNICODE if options.encoding.startswith("utf") else _ASCII
        parts, room = self._fitting(options.max_width)
        line = Text(spinner[int(time.monotonic() * 8) % len(spinner)], style="cyan", no_wrap=True, overflow="ellipsis")
        line.append(f" {parts[0].text}", "default")
        has_bar = len(parts) > 1 and room >= _BAR
        if has_bar:
            width = min(_WIDEST_BAR, room)
            filled = round(width * min(1, self.done / self.images))
            line.append(f" {full * filled}", "cyan").append(empty * (width - filled), "bright_black")
        for number, part in enumerate(parts[1:]):
            line.append(f"{' ' if has_bar and not number else ' · '}{part.text}", "default")
        yield line

    def _fitting(self, width: int) -> tuple[list[_Part], int]:
        """Return the parts that fit, and the columns left for a bar."""
        parts = self._parts()
        while True:
            least = min(parts, key=lambda part: part.importance)
            # The spinner and its space; between two parts there are three characters, or a bar in two spaces.
            room = width - 2 - sum(len(part.text) for part in parts) - 3 * (len(parts) - 1)
            if len(parts) == 1 or room >= (_BAR if least.importance == _BUSIEST else 0):
                return parts, room
            parts.remove(least)

    def _parts(self) -> list[_Part]:
        if not self.images or self.phase not in _LATER:
            return [_Part(f"{self.phase}, {duration(time.monotonic() - self.since)}", 9)]
        planned = f"{self.images:,}{'+' if self.growing else ''} image{'s' if self.images != 1 else ''}"
        parts = [_Part(f"{self.done:,} of {planned}", 9)]
        if self.done < self.images:
            parts.append(_Part(f"{self.done / self.images:.0%}", 4))
        if self.phase == "writing tables" or self.done == self.images:
            parts.append(_Part("writing tables", 8))
        elif rate := self.pace.rate:
            left = self.pace.seconds_left(self.images)
            parts.append(_Part(f"{rate:.1f}/s", 5))
            if left and not self.growing:
                parts.append(_Part(f"{_left(left)} left", 7))
        elif not self.done:
            parts.append(_Part(f"first shard, {duration(time.monotonic() - self.since)}", 3))
        if self.failed:
            parts.append(_Part(f"{self.failed:,} failed", 6))
        if self.busiest:
            parts.append(_Part(f"busiest: {self.busiest}", _BUSIEST))
        return parts


def _left(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{round(whole / 60)} min" if whole < 3600 else duration(whole)
