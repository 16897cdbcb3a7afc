"""Why masks may be no class maps: instance numbers, soft edges, or pixels without a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.formats import FORMATS
from maskfleet.jobs.training.truth.labels import Label, label_of

_JPEG = FORMATS[0].endings
_VOID = 255
_SOLID = 0.5
"""Share of pixels with equal neighbours in both directions. Regions have more, edges less."""

_MANY = 8
"""Values beyond which thin regions are taken for soft edges, and rising numbers for instances."""

_JPEG_REASON = "JPEG compression, smoothing or resizing may have blurred it; export it as PNG without smoothing"
_SOFT_REASON = (
    "soft edges: its other values lie along edges, as after anti-aliasing, smoothing or resizing; export it without"
)
_INSTANCES = "instance numbers, not classes"
_AS_ONE = "set finetune.instances = true to treat all as class 1"


@dataclass(frozen=True)
class Look:
    """What is remembered of a mask.

    Attributes:
        url: URL of the mask.
        codes: Its distinct codes, in order.
        solid: Share of its pixels, without those of its two most frequent codes, with an equal neighbour in both
            directions; 1 if there are no such pixels.
    """

    url: str
    codes: Sequence[int]
    solid: float

    @property
    def integers(self) -> list[int]:
        """Labels that are integers, in order."""
        return sorted(label for label in map(label_of, self.codes) if isinstance(label, int))


def look_at(url: str, codes: NDArray[np.int64]) -> Look:
    """Look at a mask.

    Args:
        url: URL of the mask.
        codes: Code of each pixel, (H, W).
    """
    here, counts = np.unique(codes, return_counts=True)
    others = here[np.argsort(counts)[:-2]]
    if not len(others):
        return Look(url, here.tolist(), 1.0)
    along = _beside(codes, axis=0) & _beside(codes, axis=1)
    return Look(url, here.tolist(), float(along[np.isin(codes, others)].mean()))


def _beside(codes: NDArray[np.int64], axis: int) -> NDArray[np.bool_]:
    """Return which pixels have an equal neighbour along an axis."""
    same = np.diff(codes, axis=axis) == 0
    before, after = ((1, 0), (0, 1))
    pads = [[(0, 0), (0, 0)] for _ in range(2)]
    pads[0][axis], pads[1][axis] = before, after
    beside: NDArray[np.bool_] = np.pad(same, pads[0]) | np.pad(same, pads[1])
    return beside


def reason_for(look: Look, labels: Sequence[Label], classes: int) -> str:
    """Return what is probably wrong with masks, and the remedy.

    Args:
        look: Suspicious mask.
        labels: Labels of all masks.
        classes: Number of classes of the network.
    """
    if look.url.lower().endswith(_JPEG):
        return _JPEG_REASON
    unexpected = [label for label in labels if not (isinstance(label, int) and 0 <= label < classes)]
    if len(unexpected) == 1 and ignoring(unexpected[0]) and len(labels) > 1:
        return f"{unexpected[0]} often means 'no class'{ignoring(unexpected[0])}"
    if look.solid < _SOLID:
        return _SOFT_REASON
    integers = [label for label in labels or look.integers if isinstance(label, int)]
    if len(integers) > classes and len(integers) > 2 and _count_up(integers):
        return f"{_INSTANCES}: {integers[0]} … {integers[-1]}; {_AS_ONE}"
    if not labels:
        return f"{_INSTANCES}? {_AS_ONE}, or store one value per class"
    if len(labels) == classes:
        return "nothing says which of them is the background"
    return "its values fill regions of their own, so they may be classes that the weights do not have"


def ignoring(label: Label) -> str:
    """Return the remedy for a value that often means "no class"; "" for another one."""
    return f"; set finetune.ignore = {label} to leave such pixels out" if label in (_VOID, -1) else ""


def refuse_unlikely(looks: Sequence[Look], *, ignore: Label | None) -> None:
    """Refuse masks of which the values may be counted as classes, although they look like something else.

    Args:
        looks: All masks.
        ignore: Label of pixels without a class.

    Raises:
        JobError: The values lie along edges, or number the objects of each mask.
    """
    for look in looks:
        if len(look.codes) > _MANY and look.solid < _SOLID:
            raise JobError(f"mask {look.url} has {len(look.codes)} distinct values: {_SOFT_REASON}")
    highest = {_highest(look, ignore) for look in looks}
    if None not in highest and len(highest) > 2 and max(filter(None, highest), default=0) > _MANY:
        look = max(looks, key=lambda look: _highest(look, ignore) or 0)
        raise JobError(
            f"masks such as {look.url} hold {_INSTANCES}: each counts from 0, up to {_highest(look, ignore)}; "
            f"{_AS_ONE}; or state finetune.values"
        )


def _highest(look: Look, ignore: Label | None) -> int | None:
    """Return the highest number of a mask that counts from 0; None if it does not."""
    integers = [number for number in look.integers if number != ignore]
    if len(integers) < len(look.codes) - (ignore is not None) or integers != list(range(len(integers))):
        return None
    return len(integers) - 1


def _count_up(integers: Sequence[int]) -> bool:
    """Return whether integers look counted: no large gaps."""
    return max(integers) - min(integers) < 2 * len(integers)
