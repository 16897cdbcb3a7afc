"""Class maps as COCO's compressed run-length encoding, understood by pycocotools and COCO JSON files.

The mask of one class is read column by column, as the lengths of alternating runs, beginning with pixels outside the
class. From the fourth on, each length is stored as the difference from the length two before it. Each number becomes
characters of five bits, lowest bits first: code 48 + bits, plus 32 if more characters follow (pycocotools, maskApi.c).
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class RunLengths(TypedDict):
    """The mask of one class.

    Attributes:
        size: Height and width in px.
        counts: Run lengths as text.
    """

    size: list[int]
    counts: str


Masks = list[RunLengths | None]
"""Mask of each class in turn; None for class 0, which is the rest, and for absent classes."""


class Encoder:
    """Encodes class maps as one mask per class.

    Args:
        classes: Number of classes, including the background.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def encode(self, classes: NDArray[np.uint8]) -> Masks:
        """Return the masks of a class map (H, W)."""
        rows = self.row_encoder(*classes.shape)
        rows.write(classes)
        return rows.finish()

    def row_encoder(self, height: int, width: int) -> "RowEncoder":
        """Start masks of `height` × `width` px; their rows arrive later. They equal those of `encode`."""
        return RowEncoder(height, width, self._classes)


class RowEncoder:
    """Masks encoded while rows arrive. Keeps only the positions of class changes within columns."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        self._height, self._width, self._classes = height, width, classes
        self._above: NDArray[np.uint8] | None = None
        self._row = 0
        self._places: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.uint8]] = []

    def write(self, classes: NDArray[np.uint8]) -> None:
        """Add rows of the class map, (rows, W)."""
        if self._above is None:
            # Every column starts a run, whatever class ended the previous column.
            self._places.append(np.arange(self._width, dtype=np.int64) * self._height)
            self._values.append(classes[0].copy())
            rows = classes
            first = 1
        else:
            rows = np.concatenate((self._above[None], classes))
            first = self._row
        y, x = np.nonzero(rows[1:] != rows[:-1])
        self._places.append(x * self._height + y + first)
        self._values.append(rows[y + 1, x])
        self._row += len(classes)
        self._above = classes[-1].copy()

    def finish(self) -> Masks:
        """Return the masks after the last row."""
        places, values = np.concatenate(self._places), np.concatenate(self._values)
        order = np.argsort(places, kind="stable")
        places, values = places[order], values[order]
        size = [self._height, self._width]
        masks: Masks = [None]
        for number in range(1, self._classes):
            inside = values == number
            changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
            ends = np.concatenate((places[changes], [self._height * self._width]))
            lengths = np.diff(ends, prepend=0)
            if inside[0]:
                lengths = np.concatenate(([0], lengths))
            masks.append(RunLengths(size=size, counts=_text(lengths)) if inside.any() else None)
        return masks


def _text(lengths: NDArray[np.int64]) -> str:
    rest = lengths.copy()
    rest[3:] -= lengths[1:-2]
    characters, present = [], []
    more = np.ones(len(rest), bool)
    while more.any():
        present.append(more)
        low = rest & 31
        rest >>= 5
        # The sign is the highest bit of the last five.
        more = more & np.where(low & 16, rest != -1, rest != 0)
        characters.append(low + 48 + 32 * more)
    table = np.stack(characters, axis=1).astype(np.uint8)
    return bytes(table[np.stack(present, axis=1)]).decode("ascii")


def lengths_of(counts: str) -> NDArray[np.int64]:
    """Decode the text of run lengths, in px.

    Raises:
        ValueError: The text is truncated.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii"):
        low = code - 48
        value |= (low & 31) << shift
        shift += 5
        if low & 32:
            continue
        if low & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the run lengths are truncated")
    return np.array(lengths, np.int64)


def decode(masks: Sequence[RunLengths | None], height: int, width: int) -> NDArray[np.uint8]:
    """Return the class map (H, W) of masks.

    Raises:
        ValueError: The masks have another size, or overlap.
    """
    columns = np.zeros(height * width, np.uint8)
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        lengths = lengths_of(mask["counts"])
        if list(mask["size"]) != [height, width] or lengths.sum() != height * width or (lengths < 0).any():
            raise ValueError(f"the mask of class {number} is not {width}×{height} px in size")
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        if columns[inside].any():
            raise ValueError(f"the mask of class {number} overlaps another one")
        columns[inside] = number
    return np.ascontiguousarray(columns.reshape(width, height).T)


def box_of(mask: RunLengths) -> tuple[int, int, int, int]:
    """Return the bounding box of a mask as COCO states it: left, top, width and height in px."""
    height, _ = mask["size"]
    ends = np.cumsum(lengths_of(mask["counts"]))
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    left, right = int(starts[0] // height), int((stops[-1] - 1) // height)
    tops = np.where((stops - 1) // height > starts // height, 0, starts % height)
    bottoms = np.where((stops - 1) // height > starts // height, height - 1, (stops - 1) % height)
    return left, int(tops.min()), right - left + 1, int(bottoms.max() - tops.min()) + 1
