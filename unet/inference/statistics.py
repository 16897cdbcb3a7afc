"""Numbers about each image of a batch, added up on the host, and the columns they give.

Everything here adds up over parts of an image, so an image may be decided tile by tile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.unet.inference.decision import Decision


@dataclass(frozen=True)
class Statistics:
    """Sums over each image of a batch: B images, K classes (two for a one-logit network), C channels.

    Attributes:
        class_pixels: Pixels of each class, (B, K), int64.
        class_bbox: Left, top, right, bottom of each class in px, right and bottom exclusive, zeros for an absent
            class; (B, K, 4), int32.
        confidence_sum: Probability of the chosen class, summed over the pixels; (B,), float64.
        entropy_sum: Entropy of the class probabilities in nats, summed over the pixels; (B,), float64. It is not
            finite if a logit is not.
        input_pixels: Pixels of the input, (B,), int64.
        input_sum: Sum of each channel of the input in units of a 255th of white; (B, C), float64, exact for 8 bits.
        input_square_sum: Sum of its squares; (B, C), float64, likewise.
    """

    class_pixels: NDArray[np.int64]
    class_bbox: NDArray[np.int32]
    confidence_sum: NDArray[np.float64]
    entropy_sum: NDArray[np.float64]
    input_pixels: NDArray[np.int64]
    input_sum: NDArray[np.float64]
    input_square_sum: NDArray[np.float64]

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of the mask, (B,)."""
        return self.class_pixels.sum(axis=1)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all logits are finite, (B,). Otherwise the mask means nothing."""
        return np.isfinite(self.entropy_sum)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Mean probability of the chosen class over the pixels, (B,)."""
        return self.confidence_sum / self.pixels

    @property
    def mean_entropy(self) -> NDArray[np.float64]:
        """Mean entropy over the pixels in nats, (B,)."""
        return self.entropy_sum / self.pixels

    @property
    def input_mean(self) -> NDArray[np.float64]:
        """Mean of each channel, in [0, 1] or as normalised, (B, C)."""
        return self.input_sum / self.input_pixels[:, None] / 255

    @property
    def input_std(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, in the same units, (B, C)."""
        mean = self.input_sum / self.input_pixels[:, None]
        square = self.input_square_sum / self.input_pixels[:, None]
        return np.sqrt(np.maximum(square - mean * mean, 0)) / 255

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the `COLUMNS` of each image as plain Python numbers and lists."""
        for values in zip(*(column(self) for column in COLUMNS.values()), strict=True):
            yield dict(zip(COLUMNS, values, strict=True))

    @classmethod
    def none(cls, images: int, classes: int, channels: int) -> Self:
        """Return the sums over no pixels yet."""
        return cls(
            class_pixels=np.zeros((images, classes), np.int64),
            class_bbox=np.zeros((images, classes, 4), np.int32),
            confidence_sum=np.zeros(images),
            entropy_sum=np.zeros(images),
            input_pixels=np.zeros(images, np.int64),
            input_sum=np.zeros((images, channels)),
            input_square_sum=np.zeros((images, channels)),
        )

    @classmethod
    def joined(cls, found: Sequence[Self]) -> Self:
        """Return the statistics of several batches as those of one."""
        if len(found) == 1:
            return found[0]
        columns = zip(*(vars(statistics).values() for statistics in found), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def add_decision(self, images: slice, part: Decision, top: int = 0, left: int = 0) -> None:
        """Add a decision about a part of some images.

        Args:
            images: Position of the images in the batch.
            part: The decision, on the host.
            top: First row of the part in each image, in px.
            left: First column of the part, likewise.
        """
        rows, columns, *sums = (column.numpy() for column in (part.rows, part.columns, part.confidence, part.entropy))
        pixels, boxes = _extents(rows, columns)
        if top or left:
            boxes = boxes + np.array([left, top, left, top], np.int32)
        self._add_mask(images, pixels, boxes, *(values.sum(axis=1, dtype=np.float64) for values in sums))

    def add(self, other: Self) -> None:
        """Add other parts of the same images, in the same pixel coordinates."""
        self._add_mask(slice(None), other.class_pixels, other.class_bbox, other.confidence_sum, other.entropy_sum)
        for name in ("input_pixels", "input_sum", "input_square_sum"):
            getattr(self, name)[:] += getattr(other, name)

    def _add_mask(
        self, images: slice, pixels: NDArray[Any], boxes: NDArray[Any], confidence: NDArray[Any], entropy: NDArray[Any]
    ) -> None:
        before, known = self.class_bbox[images], self.class_pixels[images] > 0
        both = np.concatenate((np.minimum(before, boxes)[..., :2], np.maximum(before, boxes)[..., 2:]), axis=-1)
        seen = np.where(known[..., None], both, boxes)
        self.class_bbox[images] = np.where((pixels > 0)[..., None], seen, before)
        self.class_pixels[images] += pixels
        self.confidence_sum[images] += confidence
        self.entropy_sum[images] += entropy

    def add_input(self, images: slice, pixels: int, total_BC: Tensor, squares_BC: Tensor) -> None:
        """Add a part of the input of some images: its pixels per image, and its `unet.inference.decision.moments`."""
        self.input_pixels[images] += pixels
        self.input_sum[images] += total_BC.numpy()
        self.input_square_sum[images] += squares_BC.numpy()

    def replace_decision(self, image: int, other: Self) -> None:
        """Replace everything about an image's mask by the only row of `other`."""
        for name in ("class_pixels", "class_bbox", "confidence_sum", "entropy_sum"):
            getattr(self, name)[image] = getattr(other, name)[0]


def _boxes(statistics: Statistics) -> list[list[list[int] | None]]:
    pixels, boxes = statistics.class_pixels.tolist(), statistics.class_bbox.tolist()
    return [
        [box if count else None for box, count in zip(*of_image, strict=True)]
        for of_image in zip(boxes, pixels, strict=True)
    ]


class Segmentation(NamedTuple):
    """The result for one image.

    Attributes:
        classes: Class of each pixel, (H, W), uint8.
        numbers: What a statistics table says of the image, by column:

            - `class_pixels`: pixels of each class, a list of K integers;
            - `class_fraction`: share of each class, a list of K numbers in [0, 1];
            - `class_bbox`: left, top, right, bottom of each class in px, right and bottom exclusive, None for an
              absent class; a list of K;
            - `mean_confidence`: mean probability of the chosen class, in [0, 1];
            - `mean_entropy`: mean entropy of the class probabilities in nats;
            - `input_mean`, `input_std`: mean and standard deviation of each channel as the network sees it, lists of C
              numbers: in [0, 1] without a declared normalisation, before `Segmenter`'s `normalize`.
    """

    classes: NDArray[np.uint8]
    numbers: dict[str, Any]


COLUMNS: dict[str, Callable[[Statistics], list[Any]]] = {
    "class_pixels": lambda statistics: statistics.class_pixels.tolist(),
    "class_fraction": lambda statistics: (statistics.class_pixels / statistics.pixels[:, None]).tolist(),
    "class_bbox": _boxes,
    "mean_confidence": lambda statistics: statistics.mean_confidence.tolist(),
    "mean_entropy": lambda statistics: statistics.mean_entropy.tolist(),
    "input_mean": lambda statistics: statistics.input_mean.tolist(),
    "input_std": lambda statistics: statistics.input_std.tolist(),
}
"""Columns of a statistics table, each with the function that gives one value per image. Their types and meanings are in
`jobs.ledger.statistics`."""


def _extents(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return pixels (B, K) and bounding boxes (B, K, 4) of every class, from `Decision.rows` and `Decision.columns`.

    Class 0 has the pixels of no other class; an absent class has the box 0, 0, 0, 0.
    """
    height, width = rows.shape[2], columns.shape[2]
    rows, columns = (
        np.concatenate((across - counts.sum(axis=1, keepdims=True), counts), axis=1)
        for counts, across in ((rows, width), (columns, height))
    )
    pixels = rows.sum(axis=2, dtype=np.float64).astype(np.int64)
    (top, bottom), (left, right) = _span(rows > 0), _span(columns > 0)
    boxes = np.stack((left, top, right, bottom), axis=-1) * (pixels > 0)[..., None]
    return pixels, boxes.astype(np.int32)


def _span(occupied: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return occupied.argmax(axis=2), occupied.shape[2] - occupied[..., ::-1].argmax(axis=2)
