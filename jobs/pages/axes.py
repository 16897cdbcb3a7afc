"""The frame of a chart: the places of values, round ticks, grid lines and labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maskfleet.jobs.pages.markup import Html, html, joined

WIDTH, HEIGHT = 360, 210
"""Size of a chart in px. On a telephone it fills the screen, so its text is never scaled down."""

LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 40
"""Margins of the plotted area in px."""

_LETTER = 6.5
"""About the width of a letter in px."""

Words = Callable[[float], str]
"""Words for a value on an axis."""


@dataclass(frozen=True)
class Range:
    """The range of an axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end; greater than `low`.
    """

    low: float
    high: float


def ticks(within: Range, count: int = 4) -> list[float]:
    """Return about `count` round values inside a range."""
    step = _round_step((within.high - within.low) / max(count, 1))
    first = math.ceil(within.low / step - 1e-9)
    last = math.floor(within.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def widened(low: float, high: float, *, least: float) -> Range:
    """Return a range around some values. It spans at least `least`, so that no noise fills the chart."""
    missing = max(0.0, least - (high - low)) / 2
    margin = (high - low) * 0.08
    return Range(low - missing - margin, high + missing + margin)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * power for factor in (1, 2, 2.5, 5) if rough <= factor * power * 1.001), 10 * power)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A chart's frame.

    Attributes:
        x: Range of the horizontal axis.
        y: Range of the vertical axis.
        x_words: Words for a value on the horizontal axis.
        y_words: Words for a value on the vertical axis.
        x_label: Label of the horizontal axis.
        x_ticks: Ticks of the horizontal axis; None for round ones.
    """

    x: Range
    y: Range
    x_words: Words
    y_words: Words
    x_label: str = ""
    x_ticks: Sequence[float] | None = None

    def across(self, value: float) -> float:
        """Return the horizontal place of a value in px."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        """Return the vertical place of a value in px."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def svg(self, content: Html, *, summary: str) -> Html:
        """Return the chart.

        Args:
            content: What is plotted.
            summary: What the chart shows, in one sentence, for those who do not see it.
        """
        return html(
            '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{summary}">'
            "{grid}{content}{axis}</svg>",
            width=WIDTH, height=HEIGHT, summary=summary, grid=self._grid(), content=content, axis=self._axis(),
        )  # fmt: skip

    def _grid(self) -> Html:
        lines = []
        for value in ticks(self.y):
            place = self.down(value)
            lines.append(
                html(
                    '<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                    '<text class="tick" x="{at}" y="{text:.1f}" text-anchor="end">{words}</text>',
                    left=LEFT,
                    right=WIDTH - RIGHT,
                    y=place,
                    at=LEFT - 6,
                    text=place + 4,
                    words=self.y_words(value),
                )
            )
        return joined(lines)

    def _axis(self) -> Html:
        bottom = HEIGHT - BOTTOM
        values = ticks(self.x) if self.x_ticks is None else list(self.x_ticks)
        parts = [html('<line class="axis" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>', a=LEFT, b=WIDTH - RIGHT, y=bottom)]
        for value in values:
            place = self.across(value)
            words = self.x_words(value)
            anchor = "end" if place + len(words) * _LETTER / 2 > WIDTH else "middle"
            parts.append(
                html(
                    '<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{end}"/>'
                    '<text class="tick" x="{x:.1f}" y="{text}" text-anchor="{anchor}">{words}</text>',
                    x=place,
                    y=bottom,
                    end=bottom + 4,
                    text=bottom + 16,
                    anchor=anchor,
                    words=words,
                )
            )
        parts.append(
            html(
                '<text class="tick label" x="{x}" y="{y}" text-anchor="end">{text}</text>',
                x=WIDTH - RIGHT,
                y=HEIGHT - 5,
                text=self.x_label,
            )
        )
        return joined(parts)
