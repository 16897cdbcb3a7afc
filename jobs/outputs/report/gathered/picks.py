"""The images shown in a report: a few of each kind, each image once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.outputs.report.gathered.figures import Figures

PER_GROUP = 6
"""Pictures of each group."""

_ALL = 12
"""With no more images than this, all are shown, in one group."""


@dataclass(frozen=True)
class Pick:
    """An image to show.

    Attributes:
        row: Columns of its row.
        reason: Why it is shown, such as "foreground 0.02 %"; may be "".
    """

    row: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Group:
    """Images shown for one reason.

    Attributes:
        title: Heading.
        about: Explanation below it; may be "".
        picks: The images.
    """

    title: str
    about: str
    picks: list[Pick]


def groups(figures: Figures) -> list[Group]:
    """Return the images to show, group by group. No image is in two groups."""
    if figures.ok <= _ALL:
        picks = sorted((Pick(extreme.row, "") for extreme in figures.lot.lowest), key=lambda pick: str(pick.row["key"]))
        return [Group("All images", "", picks)] if picks else []
    seen: set[str] = set()
    found = [
        Group(title, about, picks)
        for title, about, candidates in _candidates(figures)
        if (picks := _unseen(candidates, seen))
    ]
    # The lot is drawn from what the others left, and shown first.
    return [*found[-1:], *found[:-1]]


def _candidates(figures: Figures) -> Iterator[tuple[str, str, list[Pick]]]:
    features = figures.features
    if "confidence" in features:
        yield (
            "Least confident",
            "The lowest mean probability of the chosen class.",
            [Pick(row, f"confidence {value:.3f}") for value, row in features["confidence"].lowest],
        )
        yield (
            "Strangest",
            "The farthest from the mean in an area, confidence, brightness or contrast; SD is the standard deviation.",
            _strangest(figures),
        )
        foreground = features["foreground"]
        yield "Emptiest", "The smallest share of pixels in any class.", [Pick(row, "") for _, row in foreground.lowest]
        yield "Fullest", "The largest share of pixels in any class.", [Pick(row, "") for _, row in foreground.highest]
    yield "By lot", "Drawn at random from the whole run.", [Pick(row, "") for _, row in figures.lot.lowest]


def _strangest(figures: Figures) -> list[Pick]:
    """Return images by their largest deviation from the mean in any feature, the largest first."""
    candidates: list[tuple[float, Pick]] = []
    for name, feature in figures.features.items():
        for value, row in (*feature.lowest, *feature.highest):
            deviation = feature.deviation(value)
            side = "above" if deviation > 0 else "below"
            words = f"{name}, {abs(deviation):.1f} SD {side} the mean"
            candidates.append((abs(deviation), Pick(row, words)))
    candidates.sort(key=lambda candidate: (-candidate[0], str(candidate[1].row["key"])))
    return [pick for deviation, pick in candidates if deviation >= 2]


def _unseen(candidates: list[Pick], seen: set[str]) -> list[Pick]:
    picks: list[Pick] = []
    for pick in candidates:
        if len(picks) == PER_GROUP:
            break
        if pick.row["key"] not in seen:
            seen.add(pick.row["key"])
            picks.append(pick)
    return picks
