"""Class maps as COCO's compressed run-length encoding, which pycocotools and COCO JSON files take as it is.

A mask of one class is read column by column, as the lengths of alternating runs, the first of them of pixels that
are not of the class. From the fourth on each length is written as its difference to the one two before; as text,
five bits to a character, lowest first, with 48 added, and 32 where more follow (pycocotools, maskApi.c).
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Rle(TypedDict):
    """A mask of one class.

    Attributes:
        size: Height and width in px.
        counts: The lengths as text.
    """

    size: list[int]
    counts: str


Masks = list[Rle | None]
"""Of each class in turn; None for class 0, which is what the others leave, and for classes that are absent."""


class Encoder:
    """Writes class maps as the masks of their classes, with the face of `jobs.masks.encode.Encoder`.

    Args:
        classes: Of the network, the background among them.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def encode(self, classes: NDArray[np.uint8]) -> Masks:
        """The masks of a class map (H, W)."""
        writer = self.writer(*classes.shape)
        writer.write(classes)
        return writer.finish()

    def writer(self, height: int, width: int) -> "Writer":
        """For a class map that comes in rows; gives what `encode` gives."""
        return Writer(height, width, self._classes)


class Writer:
    """Masks that grow by rows. Of the rows only the places are kept where a column's class changes."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        self._height, self._width, self._classes = height, width, classes
        self._above: NDArray[np.uint8] | None = None
        self._row = 0
        self._places: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.uint8]] = []

    def write(self, classes: NDArray[np.uint8]) -> None:
        """Add rows of the class map, (rows, W)."""
        if self._above is None:
            # Every column begins with a run, whatever the one before it ended with.
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
        """The masks, once all rows are written."""
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
            masks.append(Rle(size=size, counts=_text(lengths)) if inside.any() else None)
        return masks


def _text(lengths: NDArray[np.int64]) -> str:
    left = lengths.copy()
    left[3:] -= lengths[1:-2]
    characters, there = [], []
    more = np.ones(len(left), bool)
    while more.any():
        there.append(more)
        low = left & 31
        left >>= 5
        # The sign is the highest bit of the last five.
        more = more & np.where(low & 16, left != -1, left != 0)
        characters.append(low + 48 + 32 * more)
    table = np.stack(characters, axis=1).astype(np.uint8)
    return bytes(table[np.stack(there, axis=1)]).decode("ascii")


def lengths_of(counts: str) -> NDArray[np.int64]:
    """The runs' lengths in px.

    Raises:
        ValueError: The text is cut off.
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
        raise ValueError("the run lengths are cut off")
    return np.array(lengths, np.int64)


def decode(masks: Sequence[Rle | None], height: int, width: int) -> NDArray[np.uint8]:
    """The class map (H, W).

    Raises:
        ValueError: The masks are of another size, or lie over each other.
    """
    columns = np.zeros(height * width, np.uint8)
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        lengths = lengths_of(mask["counts"])
        if list(mask["size"]) != [height, width] or lengths.sum() != height * width or (lengths < 0).any():
            raise ValueError(f"the mask of class {number} is not of {width}×{height} px")
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        if columns[inside].any():
            raise ValueError(f"the mask of class {number} lies over another one")
        columns[inside] = number
    return np.ascontiguousarray(columns.reshape(width, height).T)


def box_of(mask: Rle) -> tuple[int, int, int, int]:
    """Left, top, width and height of a mask in px, as COCO has it."""
    height, _ = mask["size"]
    ends = np.cumsum(lengths_of(mask["counts"]))
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    left, right = int(starts[0] // height), int((stops[-1] - 1) // height)
    tops = np.where((stops - 1) // height > starts // height, 0, starts % height)
    bottoms = np.where((stops - 1) // height > starts // height, height - 1, (stops - 1) % height)
    return left, int(tops.min()), right - left + 1, int(bottoms.max() - tops.min()) + 1
