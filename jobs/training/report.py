"""A training as one page: its curves, and the held-back images that came out worst, in the middle, and best.

One HTML file that holds all of it: no script, no style sheet, no picture from anywhere else.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.training.pairs import Pair
from maskfleet.jobs.training.scores import interval, lower_bound

_WIDTH, _HEIGHT, _LEFT = 640, 180, 56
_POINTS = 640
"""Of a curve: of longer trainings so many means are drawn."""

_SIDE = 384
"""Of pictures in px, at most."""

_MISSED, _INVENTED = (230, 159, 0), (0, 114, 178)
"""Orange and blue, which most colour-blind people tell apart (Okabe and Ito, 2008)."""

_SHARE = 0.65
"""Of a colour over its pixel."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}"
    "td,th{padding:.2em .8em;text-align:left}.row{display:flex;gap:8px}figure{margin:0}"
    "figcaption{font-size:13px;color:#555}img{display:block;max-width:100%;height:auto}h1{font-size:1.4em}h2{font-size:1.1em}"
)


class Example(NamedTuple):
    """A held-back image and what was made of it.

    Attributes:
        pair: Image and truth.
        old: Class map by the old weights; None where they cannot be compared.
        new: By the new ones.
        dice: Of the new one.
    """

    pair: Pair
    old: NDArray[np.uint8] | None
    new: NDArray[np.uint8]
    dice: float


def chosen(dice: NDArray[np.float64]) -> list[tuple[str, int]]:
    """What is shown, and the number of its image: worst, median and best, each image once."""
    order = np.argsort(dice, kind="stable")
    places = {"worst": 0, "median": len(order) // 2, "best": len(order) - 1}
    found: dict[int, str] = {}
    for name, place in places.items():
        found.setdefault(int(order[place]), name)
    return [(name, number) for number, name in found.items()]


def page(record: dict[str, Any], rows: Sequence[dict[str, Any]], examples: Sequence[tuple[str, Example]]) -> bytes:
    """The page.

    Args:
        record: What `result.json` says.
        rows: Of `jobs.training.loop.METRICS`, a row per step.
        examples: What each is, and it.
    """
    validated = [row for row in rows if row["dice"] is not None]
    parts = [
        f"<h1>Fine-tuning {escape(str(record['id']))}</h1>",
        f"<p>{record['trained_on']} pairs trained on, {record['images']} held back. {_gain(record)}</p>",
        _table(record),
        "<h2>Loss of each step</h2>",
        _curve([row["step"] for row in rows], [row["loss"] for row in rows]),
        "<h2>Dice of the held-back images</h2>",
        _curve([row["step"] for row in validated], [row["dice"] for row in validated], dots=True),
        "<h2>Held-back images</h2>",
        f"<p>{_swatch(_MISSED)} of a class and not found; {_swatch(_INVENTED)} found and not of that class.</p>",
        *(_example(name, example) for name, example in examples),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Fine-tuning</title><style>{_STYLE}</style>"
    return (head + "\n".join(parts) + "</html>\n").encode()


def _gain(record: dict[str, Any]) -> str:
    old = [image["base"] for image in record["held_back"]]
    if None in old:
        return "The old weights tell other classes apart and are not compared."
    gains = np.array([image["new"] for image in record["held_back"]]) - np.array(old)
    return (
        f"Mean gain in Dice {interval(gains)}, 95 % of the bootstrap over images; at least {lower_bound(gains):+.4f} "
        "with 95 % confidence."
    )


def _table(record: dict[str, Any]) -> str:
    kinds = ("dice", "iou", "precision", "recall")
    lines = ["<tr><th>weights<th>class<th>shown as" + "".join(f"<th>{kind}" for kind in kinds)]
    for name, scored in (("old", record["base"]), ("new", record)):
        for row in scored["classes"] if scored else ():
            cells = "".join(
                f"<td>{row[kind]['mean']:.4f} ({row[kind]['low']:.4f} … {row[kind]['high']:.4f})" for kind in kinds
            )
            lines.append(f"<tr><td>{name}<td>{row['class']}<td>{escape(str(row['value']))}{cells}")
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


def _example(name: str, example: Example) -> str:
    pair = example.pair
    pictures = [("image", _shown(pair.image)), ("truth", _painted(pair, pair.truth, truth=True))]
    if example.old is not None:
        pictures.append(("old weights", _painted(pair, example.old)))
    pictures.append(("new weights", _painted(pair, example.new)))
    figures = "".join(f"<figure>{_embedded(image)}<figcaption>{text}</figcaption></figure>" for text, image in pictures)
    return f"<h3>{name}: {escape(pair.key)}, Dice {example.dice:.4f}</h3><div class=row>{figures}</div>"


def _painted(pair: Pair, found: NDArray[np.uint8], *, truth: bool = False) -> NDArray[np.uint8]:
    """The image with what is wrong in it; or with all that the truth has."""
    pixels = _shown(pair.image).astype(np.float32)
    missed, invented = (pair.truth > 0, np.zeros(pair.truth.shape, bool))
    if not truth:
        wrong = found != pair.truth
        missed, invented = wrong & (pair.truth > 0), wrong & (found > 0) & (pair.truth == 0)
    for where, colour in ((missed, _MISSED), (invented, _INVENTED)):
        pixels[where] = pixels[where] * (1 - _SHARE) + np.array(colour) * _SHARE
    return pixels.round().astype(np.uint8)


def _shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three channels of whatever the network sees."""
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
