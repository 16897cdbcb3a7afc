"""The distributions of a run: the area of each class, confidence and entropy, against the nights before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.outputs.report.gathered.figures import Distributions
from maskfleet.jobs.outputs.report.gathered.histogram import Histogram
from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.outputs.report.gathered.nights import Night
from maskfleet.jobs.pages import charts
from maskfleet.jobs.pages.axes import Words
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.words import counted, percent

_CLASSES = 8
"""Most classes with a chart, the largest."""

_BARS = 25
_LEGEND = charts.legend(("bar", "this run"), ("old", "the nights before, together"))
_ENOUGH = 30
"""Images from which on a night's median is compared with others."""


@dataclass(frozen=True)
class Measure:
    """What a chart shows.

    Attributes:
        title: Heading.
        pick: Takes it from the distributions of a run.
        words: Words for a value.
        tick: Words for a value on an axis.
        label: Label of the axis.
        least: Least range of values shown.
    """

    title: str
    pick: Callable[[Distributions], Histogram]
    words: Words
    tick: Words
    label: str
    least: float


def measures(distributions: Distributions, values: Sequence[Any] | None) -> list[Measure]:
    """Return what is shown of a run: the largest classes, confidence and entropy.

    Args:
        distributions: Distributions of the run.
        values: Mask value of each class, if known.
    """
    areas = distributions.areas
    largest = sorted(range(1, len(areas)), key=lambda place: -areas[place].mean)[:_CLASSES]
    return [
        *(_area(place, len(areas), values) for place in sorted(largest)),
        Measure(
            "Confidence", lambda each: each.confidence, _three, _three, "mean probability of the chosen class", 0.02
        ),
        Measure("Entropy", lambda each: each.entropy, _three, _three, "mean entropy in nats", 0.02),
    ]


def _area(place: int, classes: int, values: Sequence[Any] | None) -> Measure:
    value = f", mask value {values[place]}" if values and len(values) == classes else ""
    return Measure(
        f"Area of class {place}{value}",
        lambda each: each.areas[place],
        percent,
        charts.percent_tick,
        "share of the pixels",
        0.01,
    )


def _three(value: float) -> str:
    return f"{value:.3g}"


def distributions(material: Material) -> Html:
    """Return the distributions; nothing if no image has a mask."""
    found = material.figures.distributions
    if found is None:
        return Html()
    shown = measures(found, material.run.mask_values)
    return html(
        '<section id="distributions"><h2>Distributions</h2><p>{about}</p>{legend}<div class="{kind}">{shown}</div>'
        "</section>",
        about=_about(material), kind="charts pairs" if material.nights else "charts",
        legend=_LEGEND if material.nights else Html(),
        shown=joined(chart for measure in shown for chart in _charts(material, found, measure)),
    )  # fmt: skip


def _about(material: Material) -> str:
    about = f"Each image counts once: {counted(material.figures.ok, 'image')} with a mask."
    if material.nights:
        return f"{about} {counted(len(material.nights), 'earlier night')} to compare with."
    return f"{about} There are no earlier nights to compare with."


def _charts(material: Material, found: Distributions, measure: Measure) -> Iterator[Html]:
    now = measure.pick(found)
    before = _together([night.distributions for night in material.nights], measure)
    edges = bars(now, before, least=measure.least)
    low, median, high = (measure.words(now.quantile(share)) for share in (0.25, 0.5, 0.75))
    shown = charts.distribution(
        charts.Shape(edges, now.shares(edges)),
        None if before is None else charts.Shape(edges, before.shares(edges)),
        words=measure.tick, label=measure.label,
        summary=f"{measure.title}: median {median}, middle half from {low} to {high}",
    )  # fmt: skip
    yield html(
        "<figure><figcaption><b>{title}</b><br>median {median}, middle half {low} to {high}</figcaption>{chart}"
        "</figure>",
        title=measure.title, median=median, low=low, high=high, chart=shown,
    )  # fmt: skip
    if material.nights:
        yield _nights(material, now, measure)


def _together(nights: Sequence[Distributions | None], measure: Measure) -> Histogram | None:
    found = [measure.pick(night) for night in nights if night is not None]
    if not found:
        return None
    whole = Histogram(found[0].top, found[0].fine)
    for each in found:
        whole.merge(each)
    return whole


def bars(now: Histogram, before: Histogram | None, *, least: float) -> NDArray[np.float64]:
    """Return the edges of the bars: where nearly all values are, from 0 if they begin near it.

    Args:
        now: Distribution of the run.
        before: Distribution of earlier nights, or None.
        least: Least range shown.
    """
    both = [each for each in (now, before) if each is not None]
    low = min(each.quantile(0.002) for each in both)
    high = max(each.quantile(0.998) for each in both)
    if low < 0.4 * high:
        low = 0.0
    if high - low < least:
        middle = (low + high) / 2
        low = max(0.0, min(middle - least / 2, now.top - least))
        high = low + least
    return np.linspace(low, min(high, now.top), _BARS + 1)


def _nights(material: Material, now: Histogram, measure: Measure) -> Html:
    nights = [_night(night.day, measure.pick(night.distributions)) for night in material.nights if night.distributions]
    sentence = compared(now, [night for night in material.nights if night.distributions], measure)
    chart = charts.trend(
        [*nights, _night(material.run.created[5:10], now)], words=measure.tick, least=measure.least,
        summary=f"{measure.title}, night by night: {sentence}",
    )  # fmt: skip
    return html(
        "<figure><figcaption><b>{title}, night by night</b><br>{sentence}</figcaption>{chart}</figure>",
        title=measure.title, sentence=sentence, chart=chart,
    )  # fmt: skip


def _night(label: str, histogram: Histogram) -> charts.Night:
    low, median, high = (histogram.quantile(share) for share in (0.25, 0.5, 0.75))
    return charts.Night(label=label, low=low, median=median, high=high)


def compared(now: Histogram, nights: Sequence[Night], measure: Measure) -> str:
    """Return how the median compares with those of earlier nights, in words."""
    before = [measure.pick(night.distributions) for night in nights if night.distributions]
    medians = [each.quantile(0.5) for each in before if each.count >= _ENOUGH]
    median = now.quantile(0.5)
    if now.count < _ENOUGH or not medians:
        return "too few images to compare with other nights"
    low, high = min(medians), max(medians)
    earlier = "the earlier night" if len(medians) == 1 else f"all {len(medians)} earlier nights"
    span = (
        measure.words(low)
        if measure.words(low) == measure.words(high)
        else f"{measure.words(low)} to {measure.words(high)}"
    )
    # A tenth of the middle half of the images is no news.
    margin = 0.1 * (now.quantile(0.75) - now.quantile(0.25))
    if low - margin <= median <= high + margin:
        return f"median {measure.words(median)}, as before ({span})"
    side = "below" if median < low else "above"
    return f"median {measure.words(median)}, {side} {earlier} ({span})"
