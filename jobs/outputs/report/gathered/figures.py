"""The figures of a run, collected from its rows in one pass. Memory does not grow with the number of images.

What later reports compare with, the distributions, is stored beside `report.html` as `figures.json`.
"""

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskfleet.jobs.outputs.report.gathered.extremes import Extremes
from maskfleet.jobs.outputs.report.gathered.histogram import Histogram

VERSION = 1
"""Version of `figures.json`; files of another version are collected again."""

COLUMNS = (
    "key", "status", "stage", "error_class", "error_message", "width", "height", "class_fraction", "mean_confidence",
    "mean_entropy", "input_mean", "input_std", "mask_object", "mask_bytes", "attempt", "worker",
)  # fmt: skip
"""Columns that are read."""

_KEPT = ("key", "mask_object", "width", "height", "class_fraction", "mean_confidence", "mean_entropy")
_CANDIDATES = 40
_FEATURES = 12
"""Most classes, and most channels, among which the strangest images are looked for."""

_MESSAGE = 400


@dataclass
class Distributions:
    """The distributions of a run over its images with a mask.

    Attributes:
        areas: Share of the pixels in each class, by class number.
        confidence: Mean confidence of each image.
        entropy: Mean entropy of each image in nats.
    """

    areas: list[Histogram]
    confidence: Histogram
    entropy: Histogram

    @classmethod
    def empty(cls, classes: int) -> Self:
        """Return distributions without values.

        Args:
            classes: Number of classes, including the background.
        """
        areas = [Histogram(1.0, "low") for _ in range(classes)]
        return cls(areas, Histogram(1.0, "high"), Histogram(math.log(max(classes, 2)), "low"))

    @property
    def all(self) -> list[Histogram]:
        """Every distribution: areas, confidence, entropy."""
        return [*self.areas, self.confidence, self.entropy]

    def merge(self, other: Self) -> None:
        """Count the images of another run with the same classes."""
        for own, others in zip(self.all, other.all, strict=True):
            own.merge(others)

    def to_json(self) -> bytes:
        """Return the content of `figures.json`."""
        return json.dumps(
            {
                "version": VERSION,
                "areas": [area.to_json() for area in self.areas],
                "confidence": self.confidence.to_json(),
                "entropy": self.entropy.to_json(),
            }
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self | None:
        """Read `figures.json`; None if it is damaged or of another version."""
        try:
            stored = json.loads(data)
            if stored["version"] != VERSION:
                return None
            areas = [Histogram.from_json(area) for area in stored["areas"]]
            return cls(areas, Histogram.from_json(stored["confidence"]), Histogram.from_json(stored["entropy"]))
        except (ValueError, KeyError, TypeError, IndexError):
            return None


@dataclass
class FailureGroup:
    """The failures of one kind.

    Attributes:
        stage: Stage that failed.
        error_class: Kind of failure in one word.
        count: Number of images.
        key: Key of one of them, the first.
        message: Message of this one.
    """

    stage: str
    error_class: str
    count: int
    key: str
    message: str


@dataclass
class Figures:
    """The figures of a run.

    Attributes:
        images: Number of rows.
        ok: Images with a mask.
        pixels: Pixels of these images.
        mask_bytes: Total size of their masks in bytes.
        distributions: Distributions over these images; None if there is none.
        failures: Failures by stage and error class.
        attempts: Worker and number of images of each committed attempt.
        features: What the pictures are chosen by: foreground, confidence, entropy, then areas and the input's channels.
        lot: Images drawn by lot.
    """

    images: int = 0
    ok: int = 0
    pixels: int = 0
    mask_bytes: int = 0
    distributions: Distributions | None = None
    failures: dict[tuple[str, str], FailureGroup] = field(default_factory=dict)
    attempts: dict[str, tuple[str, int]] = field(default_factory=dict)
    features: dict[str, Extremes] = field(default_factory=dict)
    lot: Extremes = field(default_factory=lambda: Extremes("drawn by lot", _CANDIDATES))

    @property
    def failed(self) -> int:
        """Images without a mask."""
        return self.images - self.ok


def collect(tables: Iterable[pa.Table], *, seed: str) -> Figures:
    """Collect the figures of a run.

    Args:
        tables: Rows of the run with at least `COLUMNS`, in batches of bounded size.
        seed: Seed of the lot, such as the id of the run: equal seeds draw equal images.
    """
    figures = Figures()
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    for table in tables:
        figures.images += table.num_rows
        _add_attempts(figures.attempts, table)
        is_ok = pc.equal(table["status"], "ok")
        _add_failures(figures.failures, table.filter(pc.invert(is_ok)))
        rows = table.filter(is_ok).combine_chunks()
        if rows.num_rows:
            _add_rows(figures, rows, random)
    return figures


def _add_attempts(attempts: dict[str, tuple[str, int]], table: pa.Table) -> None:
    found = table.group_by(["attempt", "worker"]).aggregate([("key", "count")])
    for row in found.to_pylist():
        _, images = attempts.get(row["attempt"], ("", 0))
        attempts[row["attempt"]] = row["worker"], images + row["key_count"]


def _add_failures(groups: dict[tuple[str, str], FailureGroup], failed: pa.Table) -> None:
    if not failed.num_rows:
        return
    found = failed.group_by(["stage", "error_class"], use_threads=False).aggregate(
        [("key", "count"), ("key", "first"), ("error_message", "first")]
    )
    for row in found.to_pylist():
        kind = row["stage"] or "", row["error_class"] or ""
        if kind in groups:
            groups[kind].count += row["key_count"]
        else:
            message = (row["error_message_first"] or "")[:_MESSAGE]
            groups[kind] = FailureGroup(*kind, row["key_count"], row["key_first"], message)


def _add_rows(figures: Figures, rows: pa.Table, random: np.random.Generator) -> None:
    figures.ok += rows.num_rows
    figures.pixels += int(_numbers(rows, "width") @ _numbers(rows, "height"))
    figures.mask_bytes += pc.sum(rows["mask_bytes"]).as_py() or 0
    kept = rows.select(_KEPT)
    figures.lot.add(random.random(rows.num_rows), kept)
    areas = _matrix(rows, "class_fraction")
    if areas is None:
        return
    if figures.distributions is None:
        figures.distributions = Distributions.empty(areas.shape[1])
    if areas.shape[1] != len(figures.distributions.areas):
        return  # another network's rows in one run cannot be; damaged ones are left out
    columns = [*areas.T, _numbers(rows, "mean_confidence"), _numbers(rows, "mean_entropy")]
    for histogram, column in zip(figures.distributions.all, columns, strict=True):
        histogram.add(column)
    features = {"foreground": 1 - areas[:, 0], "confidence": columns[-2], "entropy": columns[-1]}
    if areas.shape[1] > 2:
        features |= {f"area of class {number}": areas[:, number] for number in range(1, areas.shape[1])[:_FEATURES]}
    for column, words in (("input_mean", "brightness"), ("input_std", "contrast")):
        channels = _matrix(rows, column)
        for number in range(0 if channels is None else channels.shape[1])[:_FEATURES]:
            assert channels is not None
            features[f"{words} of channel {number + 1}"] = channels[:, number]
    for name, values in features.items():
        if name not in figures.features:
            figures.features[name] = Extremes(name, _CANDIDATES)
        figures.features[name].add(values, kept)


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(pc.cast(rows[name], pa.float64()).to_numpy(), np.float64)


def _matrix(rows: pa.Table, name: str) -> NDArray[np.float64] | None:
    """Return a column of lists of one length as (rows, length); None if lengths differ or lists are missing."""
    column = rows[name].combine_chunks()
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
    width, rest = divmod(len(values), len(column))
    if rest or not width or column.null_count or pc.any(pc.not_equal(pc.list_value_length(column), width)).as_py():
        return None
    return values.reshape(-1, width)
