"""The HTML report of a training: curves, scores, and the worst, median and best validation images.

One self-contained file in the look of a run's report (`jobs.pages`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import redacted
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.pages import charts
from maskfleet.jobs.pages.document import document
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.pages.pictures import picture
from maskfleet.jobs.pages.tables import facts, table, tiles
from maskfleet.jobs.training.gate import Verdict
from maskfleet.jobs.training.pairs import Pair
from maskfleet.jobs.training.record import TrainingRecord
from maskfleet.jobs.training.scores import KINDS, interval, lower_bound
from maskfleet.jobs.training.truth.classes import IGNORED
from maskfleet.jobs.words import moment, number

_TITLES = {"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall"}
_DICE_SPAN = 0.05
"""Least span of the Dice axis: noise of validation must not look like news."""

_SIDE = 384
"""Longest side of an embedded image in px."""

_MISSED, _EXTRA = (230, 159, 0), (0, 114, 178)
"""Orange and blue, distinguishable with the common forms of colour blindness (Okabe and Ito, 2008)."""

_OPACITY = 0.65
"""Opacity of a colour painted over the image."""

_WINDOW = 0.995
"""Share of the pixels that lie below white in a brightened image."""

_SHOWN = ("start", "recipe", "epochs", "steps", "batch_size", "crop", "learning_rate", "scale", "tta", "seed", "store")
"""Settings on the page, of those in a record's `identity`."""


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


def page(
    record: TrainingRecord, rows: Sequence[dict[str, Any]], examples: Sequence[Example], *, job: Job, verdict: Verdict,
    steps: int,
) -> bytes:  # fmt: skip
    """Return the report as UTF-8 HTML.

    Args:
        record: Record of the training.
        rows: Rows of `jobs.training.loop.METRICS`, one per step.
        examples: Held-back images to show.
        job: Job of the training.
        verdict: Decision of the job's gate.
        steps: Number of steps planned.
    """
    title = f"Fine-tuning of {job.name}, {record.finished[:10]}"
    body = html(
        "<header>{head}{tiles}</header><main>{scores}{curves}{images}{facts}</main>"
        "<footer>Written by maskfleet at the end of the training. Nothing here is loaded from elsewhere.</footer>",
        head=_head(title, record, job, verdict), tiles=_tiles(record), scores=_scores(record),
        curves=_curves(record, rows), images=_images(examples), facts=_facts(record, job, steps),
    )  # fmt: skip
    return document(title, body)


def _head(title: str, record: TrainingRecord, job: Job, verdict: Verdict) -> Html:
    kind, word = ("good", "Accepted") if verdict.accepted else ("bad", "Refused")
    if job.finetune.gate == "off":
        kind, word = "warn", "Not judged"
    return html(
        '<h1>{title}</h1><p class="soft">Training <span class="key">{id}</span>, finished {finished}</p>'
        '<div class="verdict"><span class="pill {kind}">{word}</span><p>{reason}.</p></div>',
        title=title, id=record.id, finished=moment(record.finished), kind=kind, word=word,
        reason=verdict.reason[:1].upper() + verdict.reason[1:],
    )  # fmt: skip


def _tiles(record: TrainingRecord) -> Html:
    base = record.base_dice
    found = [
        ("Mean Dice", f"{record.new.dice:.4f}", "" if base is None else f"base weights {base.mean():.4f}"),
        ("Gain", *_gain(record)),
        ("Training pairs", number(record.trained_on), ""),
        ("Validation pairs", number(record.new.images), "held back from training"),
    ]
    return tiles(found)


def _gain(record: TrainingRecord) -> tuple[str, str]:
    base = record.base_dice
    if base is None:
        return "–", "the base weights have different classes and are not compared"
    gains = record.new_dice - base
    found = interval(gains)
    return (
        f"{found.mean:+.4f}",
        f"95 % interval {found.low:+.4f} to {found.high:+.4f}; at least {lower_bound(gains):+.4f} with 95 % confidence",
    )


def _scores(record: TrainingRecord) -> Html:
    rows = [
        (name, str(row.number), str(row.value), *(str(row.intervals[kind]) for kind in KINDS))
        for name, evaluation in (("base", record.base), ("new", record.new))
        for row in (evaluation.classes if evaluation else ())
    ]
    return html(
        "<section><h2>Scores on the validation images</h2>{table}"
        '<p class="small soft">Means over images, with 95 % bootstrap intervals.</p></section>',
        table=table(("Weights", "Class", "Mask value", *(_TITLES[kind] for kind in KINDS)), rows, kind="scores cards"),
    )


def _curves(record: TrainingRecord, rows: Sequence[dict[str, Any]]) -> Html:
    validated = [row for row in rows if row["dice"] is not None]
    base = record.base_dice
    losses = [row["loss"] for row in rows]
    figures = []
    if rows:
        # From zero on, as far as the losses reach: a flat loss is drawn flat.
        chart = charts.curve(
            [row["step"] for row in rows], losses, words=_short, label="step", least=0.1 * max(losses), smooth=True,
            summary=f"Training loss, from {losses[0]:.4g} to {losses[-1]:.4g}",
        )  # fmt: skip
        figures.append(_figure("Training loss", "each step, and its running mean", chart))
    if validated:
        dice = [row["dice"] for row in validated]
        chart = charts.curve(
            [row["step"] for row in validated], dice, words=_short, label="step", least=_DICE_SPAN,
            level=None if base is None else float(base.mean()),
            summary=f"Validation Dice, from {dice[0]:.4f} to {dice[-1]:.4f}",
        )  # fmt: skip
        text = "after some steps" if base is None else "dashed: the base weights"
        figures.append(_figure("Validation Dice", text, chart))
    return html('<section><h2>Curves</h2><div class="charts pairs">{figures}</div></section>', figures=joined(figures))


def _figure(title: str, text: str, chart: Html) -> Html:
    return html(
        "<figure><figcaption><b>{title}</b><br>{text}</figcaption>{chart}</figure>", title=title, text=text, chart=chart
    )


def _short(value: float) -> str:
    return f"{value:.4g}"


def _images(examples: Sequence[Example]) -> Html:
    if not examples:
        return Html()
    return html(
        '<section><h2>Held-back images</h2><p><span class="swatch missed"></span> missed (false negative) &nbsp; '
        '<span class="swatch extra"></span> extra (false positive). Dark images are brightened.</p>'
        "{examples}</section>",
        examples=joined(_example(example) for example in examples),
    )


def _facts(record: TrainingRecord, job: Job, steps: int) -> Html:
    about = record.identity
    settings = ", ".join(f"{name} {about[name]}" for name in _SHOWN if about.get(name) is not None)
    rows: list[tuple[str, str | Html]] = [
        ("Images", redacted(job.finetune.images)),
        ("Masks", redacted(job.finetune.masks)),
        ("Pairs' digest", str(about.get("data", ""))),
        ("Base weights", redacted(", ".join(job.weights))),
        ("Base weights' id", str(about.get("base", ""))),
        ("New weights", redacted(f"{job.output.rstrip('/')}/finetune/{record.id}/")),
        ("Gate", job.finetune.gate),
        ("Steps", number(steps)),
        ("Settings", settings),
        ("Versions", f"maskfleet {version('maskfleet')}, torch {version('torch')}"),
    ]
    return html("<section><h2>Job, weights, versions</h2>{facts}</section>", facts=facts(rows))


def _example(example: Example) -> Html:
    pair = example.pair
    images = [("image", _brightened(pair.image)), ("ground truth", _with_truth(pair))]
    if example.base is not None:
        images.append(("base weights", _with_errors(pair, example.base)))
    images.append(("new weights", _with_errors(pair, example.new)))
    shown = joined(
        html(
            "<figure>{picture}<figcaption>{text}</figcaption></figure>",
            picture=_embedded(pixels, f"{pair.key}, {text}"), text=text,
        )
        for text, pixels in images
    )  # fmt: skip
    return html(
        '<h3>{title}: <bdi class="key">{key}</bdi>, Dice {dice:.4f}</h3><div class="row">{shown}</div>',
        title=example.title[:1].upper() + example.title[1:], key=pair.key, dice=example.dice, shown=shown,
    )  # fmt: skip


def _with_truth(pair: Pair) -> NDArray[np.uint8]:
    """Return the image with its ground truth painted in, (H, W, 3)."""
    return _painted(pair.image, [((pair.truth > 0) & (pair.truth != IGNORED), _MISSED)])


def _with_errors(pair: Pair, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image with missed and extra pixels painted in, (H, W, 3)."""
    wrong = (found != pair.truth) & (pair.truth != IGNORED)
    missed, extra = wrong & (pair.truth > 0), wrong & (found > 0) & (pair.truth == 0)
    return _painted(pair.image, [(missed, _MISSED), (extra, _EXTRA)])


def _painted(
    image: NDArray[Any], layers: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]]
) -> NDArray[np.uint8]:
    pixels = _brightened(image).astype(np.float32)
    for area, colour in layers:
        pixels[area] = pixels[area] * (1 - _OPACITY) + np.array(colour) * _OPACITY
    return pixels.round().astype(np.uint8)


def _as_rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a copy with three channels, uint8: the first channel repeated unless there are exactly three."""
    if image.dtype != np.uint8:  # normalised numbers, of any range
        low, high = np.percentile(image, (1, 99))
        image = np.clip((image - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return np.array(image) if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)


def _brightened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image as RGB, scaled so that its brightest pixels are white if it is dark."""
    pixels = _as_rgb(image)
    white = float(np.quantile(pixels, _WINDOW))
    if not 0 < white < 128:
        return pixels
    bright: NDArray[np.uint8] = np.clip(pixels * (255 / white), 0, 255).round().astype(np.uint8)
    return bright


def _embedded(pixels: NDArray[np.uint8], text: str) -> Html:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    return picture(image, text=text, lossless=True)
