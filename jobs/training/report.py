"""The HTML report of a training: curves, scores, and the worst, median and best validation images.

One self-contained file without scripts, external style sheets or external images.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.training.pairs import Pair
from maskfleet.jobs.training.record import TrainingRecord
from maskfleet.jobs.training.scores import KINDS, interval, lower_bound
from maskfleet.jobs.training.truth.classes import IGNORED

_WIDTH, _HEIGHT, _LEFT = 640, 180, 56
_POINTS = 640
"""Most points of a curve; longer curves are averaged down to this number."""

_SIDE = 384
"""Longest side of an embedded image in px."""

_MISSED, _EXTRA = (230, 159, 0), (0, 114, 178)
"""Orange and blue, distinguishable with the common forms of colour blindness (Okabe and Ito, 2008)."""

_OPACITY = 0.65
"""Opacity of a colour painted over the image."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}"
    "td,th{padding:.2em .8em;text-align:left}.row{display:flex;gap:8px}figure{margin:0}"
    "figcaption{font-size:13px;color:#555}img{display:block;max-width:100%;height:auto}h1{font-size:1.4em}h2{font-size:1.1em}"
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A validation image with its predictions.

    Attributes:
        title: Heading, such as "worst".
        pair: Image and ground truth.
        base: Class map of the base weights, (H, W); None if not comparable.
        new: Class map of the new weights, (H, W).
        dice: Dice of `new`.
    """

    title: str
    pair: Pair
    base: NDArray[np.uint8] | None
    new: NDArray[np.uint8]
    dice: float


def worst_median_best(dice: NDArray[np.float64]) -> list[tuple[str, int]]:
    """Return titles and indices of the worst, median and best image, each image at most once."""
    order = np.argsort(dice, kind="stable")
    places = {"worst": 0, "median": len(order) // 2, "best": len(order) - 1}
    found: dict[int, str] = {}
    for title, place in places.items():
        found.setdefault(int(order[place]), title)
    return [(title, index) for index, title in found.items()]


def page(record: TrainingRecord, rows: Sequence[dict[str, Any]], examples: Sequence[Example]) -> bytes:
    """Return the report as UTF-8 HTML.

    Args:
        record: Record of the training.
        rows: Rows of `jobs.training.loop.METRICS`, one per step.
        examples: Held-back images to show.
    """
    validated = [row for row in rows if row["dice"] is not None]
    pairs = f"{_count(record.trained_on, 'training pair')}, {_count(record.new.images, 'validation pair')}"
    blocks = [
        f"<h1>Fine-tuning {escape(record.id)}</h1>",
        f"<p>{pairs}. {_gain(record)}</p>",
        _table(record),
        "<h2>Training loss</h2>",
        _curve([row["step"] for row in rows], [row["loss"] for row in rows]),
        "<h2>Validation Dice</h2>",
        _curve([row["step"] for row in validated], [row["dice"] for row in validated], dots=True),
        "<h2>Held-back images</h2>",
        f"<p>{_swatch(_MISSED)} missed (false negative); {_swatch(_EXTRA)} extra (false positive).</p>",
        *(_example(example) for example in examples),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Fine-tuning</title><style>{_STYLE}</style>"
    return (head + "\n".join(blocks) + "</html>\n").encode()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _gain(record: TrainingRecord) -> str:
    base = record.base_dice
    if base is None:
        return "The base weights have different classes and are not compared."
    gains = record.new_dice - base
    return (
        f"Mean Dice gain {interval(gains)}, with the 95 % bootstrap interval over images; at least "
        f"{lower_bound(gains):+.4f} with 95 % confidence."
    )


def _table(record: TrainingRecord) -> str:
    lines = ["<tr><th>weights<th>class<th>mask value" + "".join(f"<th>{kind}" for kind in KINDS)]
    for name, evaluation in (("base", record.base), ("new", record.new)):
        for row in evaluation.classes if evaluation else ():
            cells = "".join(f"<td>{row.intervals[kind]}" for kind in KINDS)
            lines.append(f"<tr><td>{name}<td>{row.number}<td>{escape(str(row.value))}{cells}")
    return f"<table>{''.join(lines)}</table>"


def _curve(steps: Sequence[int], values: Sequence[float], *, dots: bool = False) -> str:
    x, y = np.array(steps, np.float64), np.array(values, np.float64)
    if len(x) > _POINTS:
        cuts = np.array_split(np.arange(len(x)), _POINTS)
        x, y = (np.array([each[cut].mean() for cut in cuts]) for each in (x, y))
    low, high = float(y.min()), float(y.max())
    across = (x - x[0]) / max(x[-1] - x[0], 1) * (_WIDTH - 16) + _LEFT
    down = (high - y) / max(high - low, 1e-9) * (_HEIGHT - 32) + 8
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    marks = "".join(f"<circle cx={a:.1f} cy={b:.1f} r=3 />" for a, b in zip(across, down, strict=True)) if dots else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH + _LEFT} {_HEIGHT}" width={_WIDTH + _LEFT} height={_HEIGHT} font-size=12 fill=#555>'
        f"<text x=0 y=14>{high:.4f}</text><text x=0 y={_HEIGHT - 22}>{low:.4f}</text>"
        f"<text x={_LEFT} y={_HEIGHT - 4}>step {steps[0]}</text>"
        f"<text x={_WIDTH + _LEFT} y={_HEIGHT - 4} text-anchor=end>{steps[-1]}</text>"
        f'<polyline points="{points}" fill=none stroke=#0072b2 stroke-width=1.5 /><g fill=#0072b2>{marks}</g></svg>'
    )


def _example(example: Example) -> str:
    pair = example.pair
    images = [("image", _as_rgb(pair.image)), ("ground truth", _with_truth(pair))]
    if example.base is not None:
        images.append(("base weights", _with_errors(pair, example.base)))
    images.append(("new weights", _with_errors(pair, example.new)))
    figures = "".join(f"<figure>{_embedded(image)}<figcaption>{text}</figcaption></figure>" for text, image in images)
    heading = f"{example.title}: {escape(pair.key)}, Dice {example.dice:.4f}"
    return f"<h3>{heading}</h3><div class=row>{figures}</div>"


def _with_truth(pair: Pair) -> NDArray[np.uint8]:
    """Return the image with its ground truth painted in, (H, W, 3)."""
    return _painted(pair.image, [((pair.truth > 0) & (pair.truth != IGNORED), _MISSED)])


def _with_errors(pair: Pair, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image with missed and extra pixels painted in, (H, W, 3)."""
    wrong = (found != pair.truth) & (pair.truth != IGNORED)
    missed, extra = wrong & (pair.truth > 0), wrong & (found > 0) & (pair.truth == 0)
    return _painted(pair.image, [(missed, _MISSED), (extra, _EXTRA)])


def _painted(
    image: NDArray[np.uint8], layers: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]]
) -> NDArray[np.uint8]:
    pixels = _as_rgb(image).astype(np.float32)
    for area, colour in layers:
        pixels[area] = pixels[area] * (1 - _OPACITY) + np.array(colour) * _OPACITY
    return pixels.round().astype(np.uint8)


def _as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy with three channels: the first channel repeated unless there are exactly three."""
    return np.array(image) if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)


def _embedded(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    data = base64.b64encode(sink.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" width={image.width} height={image.height} alt="">'


def _swatch(colour: tuple[int, int, int]) -> str:
    return f"<b style='color:rgb{colour}'>■</b>"
