"""Charts as SVG, drawn by hand: distributions, nights beside each other, a rate over time, curves, and stacked bars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.pages.axes import BOTTOM, HEIGHT, WIDTH, Frame, Range, Words, widened
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.words import duration, number, percent

_POINTS = 300
"""Most points of a curve; longer curves are averaged down to this number."""


@dataclass(frozen=True)
class Shape:
    """A distribution as it is drawn.

    Attributes:
        edges: Edges of the bars, (bars + 1,).
        shares: Share of the images in each bar, (bars,).
    """

    edges: NDArray[np.float64]
    shares: NDArray[np.float64]


def distribution(now: Shape, before: Shape | None, *, words: Words, label: str, summary: str) -> Html:
    """Draw a distribution as bars, and that of earlier nights as an outline.

    Args:
        now: The distribution.
        before: The same of earlier nights, with the same edges; None without earlier nights.
        words: Words for a value.
        label: Label of the horizontal axis.
        summary: The chart in one sentence.
    """
    top = max(float(now.shares.max()), float(before.shares.max()) if before else 0.0, 1e-6)
    frame = Frame(
        x=Range(float(now.edges[0]), float(now.edges[-1])), y=Range(0, top * 1.05), x_words=words, y_words=percent_tick,
        x_label=label,
    )  # fmt: skip
    bars = []
    for low, high, share in zip(now.edges[:-1], now.edges[1:], now.shares, strict=True):
        if share > 0:
            left, right, y = frame.across(low), frame.across(high), frame.down(share)
            bars.append(
                html(
                    '<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}">'
                    "<title>{low} to {high}: {share} of the images</title></rect>",
                    x=left + 0.5,
                    y=y,
                    w=max(right - left - 1, 0.5),
                    h=HEIGHT - BOTTOM - y,
                    low=words(low),
                    high=words(high),
                    share=percent(float(share)),
                )
            )
    if before is not None:
        bars.append(_outline(frame, before))
    return frame.svg(joined(bars), summary=summary)


def percent_tick(value: float) -> str:
    """Return a share for an axis: "5 %", "2.5 %"."""
    return f"{100 * value:.4g}\u00a0%"


def _outline(frame: Frame, shape: Shape) -> Html:
    points = [f"{frame.across(shape.edges[0]):.1f},{frame.down(0):.1f}"]
    for low, high, share in zip(shape.edges[:-1], shape.edges[1:], shape.shares, strict=True):
        points += [
            f"{frame.across(low):.1f},{frame.down(share):.1f}",
            f"{frame.across(high):.1f},{frame.down(share):.1f}",
        ]
    points.append(f"{frame.across(shape.edges[-1]):.1f},{frame.down(0):.1f}")
    return html('<polyline class="before" points="{points}"/>', points=" ".join(points))


@dataclass(frozen=True, kw_only=True)
class Night:
    """One night of a trend.

    Attributes:
        label: Label below it, such as "11-28".
        low: First quartile.
        median: Median.
        high: Third quartile.
    """

    label: str
    low: float
    median: float
    high: float


def trend(nights: Sequence[Night], *, words: Words, least: float, summary: str) -> Html:
    """Draw the median of each night with the middle half of its images, the last night in colour.

    Args:
        nights: The nights, the oldest first.
        words: Words for a value.
        least: Least span of the vertical axis, so that noise does not look like news.
        summary: The chart in one sentence.
    """
    places = range(len(nights))
    step = max(1, -(-len(nights) // 5))
    shown = [place for place in places if (len(nights) - 1 - place) % step == 0]
    frame = Frame(
        x=Range(-0.5, len(nights) - 0.5),
        y=widened(min(night.low for night in nights), max(night.high for night in nights), least=least),
        x_words=lambda place: nights[round(place)].label,
        y_words=words,
        x_ticks=shown,
    )
    marks = []
    for place, night in zip(places, nights, strict=True):
        marks.append(
            html(
                '<g class="{kind}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                '<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{label}: median {median}, middle half {a} to {b}'
                "</title></circle></g>",
                kind="night now" if place == len(nights) - 1 else "night",
                x=frame.across(place),
                low=frame.down(night.low),
                high=frame.down(night.high),
                y=frame.down(night.median),
                label=night.label,
                median=words(night.median),
                a=words(night.low),
                b=words(night.high),
            )
        )
    return frame.svg(joined(marks), summary=summary)


def rate(edges: NDArray[np.float64], rates: NDArray[np.float64], *, summary: str) -> Html:
    """Draw a rate over time, from zero.

    Args:
        edges: Edges of the intervals in seconds since the start, (intervals + 1,).
        rates: Images per second in each interval, (intervals,).
        summary: The chart in one sentence.
    """
    frame = Frame(
        x=Range(float(edges[0]), float(edges[-1])), y=Range(0, max(float(rates.max()), 1e-6) * 1.08),
        x_words=_time_tick, y_words=lambda value: f"{value:,.4g}", x_label="time since the start",
        x_ticks=_time_ticks(float(edges[-1])),
    )  # fmt: skip
    shape = Shape(edges, rates)
    steps = _outline(frame, shape)
    area = Html(steps.replace('class="before"', 'class="area"'))
    return frame.svg(area, summary=summary)


def _time_ticks(last: float) -> list[float]:
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    step = next((step for step in steps if last / step <= 5), 86400 * max(1, round(last / 86400 / 4)))
    return [float(at) for at in range(0, int(last) + 1, step)]


def _time_tick(seconds: float) -> str:
    return "0" if seconds == 0 else duration(seconds) if seconds >= 10 else f"{seconds:g} s"


def curve(
    x: Sequence[float], y: Sequence[float], *, words: Words, label: str, summary: str, least: float,
    smooth: bool = False, level: float | None = None,
) -> Html:  # fmt: skip
    """Draw a curve.

    Args:
        x: Horizontal values, ascending; at least one.
        y: Vertical values.
        words: Words for a vertical value.
        label: Label of the horizontal axis.
        summary: The chart in one sentence.
        least: Least span of the vertical axis, so that noise does not look like news.
        smooth: Whether the values are noise around a curve: then they are pale, and their running mean is drawn.
        level: Height of a dashed line to compare with, or None.
    """
    across, down = np.array(x, np.float64), np.array(y, np.float64)
    line = _running_mean(down) if smooth else down
    # Half a percent of the values may lie outside of the chart: one bad step must not flatten the rest.
    low, high = np.quantile(down, (0.005, 0.995)) if smooth and len(down) > 200 else (down.min(), down.max())
    values = [float(low), float(high), *([] if level is None else [level])]
    frame = Frame(
        x=Range(across[0] if len(across) > 1 else across[0] - 1, max(across[-1], across[0] + 1)),
        y=widened(min(values), max(values), least=least), x_words=number, y_words=words, x_label=label,
    )  # fmt: skip
    parts = []
    if level is not None:
        parts.append(
            html(
                '<line class="level" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
                a=frame.across(frame.x.low),
                b=frame.across(frame.x.high),
                y=frame.down(level),
            )
        )
    if smooth:
        parts.append(_polyline(frame, across, down, "pale"))
    parts.append(_polyline(frame, across, line, "line"))
    if not smooth:
        parts += [
            html(
                '<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label} {at}: {value}</title></circle>',
                x=frame.across(a), y=frame.down(b), label=label, at=number(a), value=words(b),
            )
            for a, b in zip(across, down, strict=True)
        ]  # fmt: skip
    return frame.svg(joined(parts), summary=summary)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    width = max(1, len(values) // 25)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean


def _polyline(frame: Frame, x: NDArray[np.float64], y: NDArray[np.float64], kind: str) -> Html:
    if len(x) > _POINTS:
        cuts = np.array_split(np.arange(len(x)), _POINTS)
        x, y = (np.array([each[cut].mean() for cut in cuts]) for each in (x, y))
    points = " ".join(f"{frame.across(a):.1f},{frame.down(b):.1f}" for a, b in zip(x, y, strict=True))
    return html('<polyline class="{kind}" points="{points}"/>', kind=kind, points=points)


def legend(*entries: tuple[str, str]) -> Html:
    """Return a legend: the kind of each mark, as the style sheet names it, and its words."""
    marks = (
        html(
            '<li><svg viewBox="0 0 14 12" aria-hidden="true"><rect class="{kind}" width="14" height="12"/></svg>'
            "{words}</li>",
            kind=kind,
            words=words,
        )
        for kind, words in entries
    )
    return html('<ul class="legend">{marks}</ul>', marks=joined(marks))


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar.

    Attributes:
        kind: Class of the style sheet.
        value: Its size.
        words: Its name and size in words.
    """

    kind: str
    value: float
    words: str


def stacked(parts: Sequence[Part], *, whole: float, summary: str) -> Html:
    """Draw a horizontal bar of several parts.

    Args:
        parts: The parts, from the left.
        whole: Size of the full width.
        summary: The bar in one sentence.
    """
    pieces, left = [], 0.0
    for part in parts:
        width = WIDTH * min(part.value / whole, 1.0) if whole > 0 else 0.0
        if width > 0:
            pieces.append(
                html(
                    '<rect class="{kind}" x="{x:.2f}" y="0" width="{w:.2f}" height="12"><title>{words}</title></rect>',
                    kind=part.kind,
                    x=left,
                    w=width,
                    words=part.words,
                )
            )
        left += width
    return html(
        '<svg class="stack" viewBox="0 0 {width} 12" preserveAspectRatio="none" role="img" aria-label="{summary}">'
        '<rect class="rest" x="0" y="0" width="{width}" height="12"/>{pieces}</svg>',
        width=WIDTH, summary=summary, pieces=joined(pieces),
    )  # fmt: skip
