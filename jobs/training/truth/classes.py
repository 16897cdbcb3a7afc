"""The class of each mask pixel: the mask value of each class, as stated or inferred, with every doubt refused.

Indices of palettes, and greys of 1, 2 and 4 bits, are taken as they are stored. Only if these numbers fit no classes,
and the colours that a viewer shows do, the colours count.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.masks.png import default_values
from maskfleet.jobs.training.truth.doubts import Look, ignoring, look_at, reason_for, refuse_unlikely
from maskfleet.jobs.training.truth.labels import (
    WHITE_FIRST,
    Label,
    as_value,
    label_of,
    order_of,
    plain,
    unreliable,
    values_of,
)

IGNORED = 255
"""Class of pixels that take no part in loss and scores."""

MAX_VALUES = 64
"""Most distinct values of a mask. A mask with more is not a class map."""

_MAX_CLASSES = 256
_SHOWN = 8


@dataclass(frozen=True)
class Legend:
    """The meaning of the codes of masks.

    Attributes:
        values: Mask value of each class.
        shown: Whether indices stand for the colours that a viewer shows.
        ignore: Label of pixels without a class; None if there is none.
        instances: Whether labels number instances: all but 0 are class 1.
    """

    values: tuple[Any, ...]
    shown: bool = False
    ignore: Label | None = None
    instances: bool = False

    def classes(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the class of each pixel, (H, W), uint8; `IGNORED` for none.

        Args:
            codes: Codes (H, W); the values cover all of them.
        """
        table: Mapping[Label, int] = {plain(value): number for number, value in enumerate(self.values)}
        here = np.unique(codes)
        found = np.array([self._class(label_of(code, shown=self.shown), table) for code in here.tolist()], np.uint8)
        # Many times faster than the inverse that `unique` gives.
        return found[np.searchsorted(here, codes)]

    def _class(self, label: Label, table: Mapping[Label, int]) -> int:
        if label == self.ignore:
            return IGNORED
        return int(label != 0) if self.instances else table[label]


class Observed:
    """The codes seen in masks so far.

    Args:
        ignore: Mask value of pixels without a class; None if there is none.
        instances: Whether masks hold instance numbers.
    """

    def __init__(self, *, ignore: Any = None, instances: bool = False) -> None:
        self._ignore: Label | None = None if ignore is None else plain(ignore)
        self._instances = instances
        self._looks: list[Look] = []

    def add(self, url: str, codes: NDArray[np.int64]) -> None:
        """Record the codes of a mask.

        Args:
            url: URL of the mask.
            codes: Code of each pixel, (H, W).

        Raises:
            JobError: The mask has more than `MAX_VALUES` values.
        """
        if self._instances:
            return
        look = look_at(url, codes)
        if len(look.codes) > MAX_VALUES:
            raise JobError(f"mask {url} has {len(look.codes)} distinct values: {reason_for(look, (), MAX_VALUES)}")
        self._looks.append(look)

    def legend(
        self, *, stated: Sequence[Any] | None, classes: int | None, base_values: Sequence[Any] | None,
        written: Sequence[Any] | None = None,
    ) -> Legend:  # fmt: skip
        """Return the meaning of the codes.

        The mask value of each class is, in this order: the stated values; the values that the job writes; the base
        weights' own; 0, 1, 2 …; the observed values.

        Args:
            stated: Values stated for these masks; None if none are.
            classes: Number of classes of the network; None to infer it from the masks.
            base_values: Mask value of each class in the base weights; None if unknown.
            written: Mask value of each class in the masks written by the job; None if not stated.

        Raises:
            JobError: The values are ambiguous, or a mask contains another value.
        """
        if stated is not None and classes is not None and len(stated) != classes:
            raise JobError(
                f"the number of finetune.values ({len(stated)}) differs from the weights' number of classes "
                f"({classes}); state one value per class"
            )
        if self._instances:
            return self._of_instances(classes, base_values)
        doubt = unreliable(self._codes()) if stated is None else ""
        for shown in () if doubt == WHITE_FIRST else (True,) if doubt else (False, True):
            labels = self._labels(shown=shown)
            possible = [stated] if stated is not None else self._possible(labels, classes, (written, base_values))
            for values in possible:
                if labels.keys() <= {plain(value) for value in values}:
                    return Legend(tuple(as_value(value) for value in values), shown, self._ignore)
        raise JobError(self._refusal(doubt, stated, classes))

    def _of_instances(self, classes: int | None, base_values: Sequence[Any] | None) -> Legend:
        if classes not in (None, 2):
            raise JobError(
                f"finetune.instances makes two classes, but the weights have {classes}; set it to false, or train a "
                "new network with finetune.start = 'random'"
            )
        values = default_values(2) if base_values is None else base_values
        return Legend(tuple(as_value(value) for value in values), False, self._ignore, instances=True)

    def _labels(self, *, shown: bool) -> dict[Label, Look]:
        """Return each label in order, and the first mask with it."""
        found: dict[Label, Look] = {}
        for look in self._looks:
            for code in look.codes:
                found.setdefault(label_of(code, shown=shown), look)
        return {label: found[label] for label in sorted(found, key=order_of) if label != self._ignore}

    def _codes(self) -> Iterator[int]:
        return (code for look in self._looks for code in look.codes)

    def _possible(
        self, labels: Collection[Label], classes: int | None, known: Iterable[Sequence[Any] | None]
    ) -> Iterator[Sequence[Any]]:
        """Yield the mask values that the classes may have, the most certain first."""
        yield from (values for values in known if values is not None and classes in (None, len(values)))
        if classes is not None:
            yield range(classes)
        colours = sum(not isinstance(label, int) for label in labels)
        negative = any(isinstance(label, int) and label < 0 for label in labels)
        nameless = colours and (0 not in labels or (classes or 2) > 2)
        # Nothing says which of several colours, or of negative numbers, is the background or another class.
        if 1 < len(labels) <= _MAX_CLASSES and len(labels) == (classes or len(labels)) and not negative | nameless:
            if classes is None:
                refuse_unlikely(self._looks, ignore=self._ignore)
            yield values_of(labels)

    def _refusal(self, doubt: str, stated: Sequence[Any] | None, classes: int | None) -> str:
        if doubt:
            return (
                f"masks such as {self._looks[0].url} leave open what their numbers mean: {doubt}; state "
                "finetune.values, as indices or as greys and colours"
            )
        labels = self._labels(shown=False)
        if stated is not None:
            label = next(label for label in labels if label not in [plain(value) for value in stated])
            return (
                f"mask {labels[label].url} contains {label}, but the classes are {', '.join(map(str, stated))}; "
                f"correct the mask or finetune.values{ignoring(label)}"
            )
        if classes is None and len(labels) == 1:
            ((label, look),) = labels.items()
            return f"every mask contains only the value {label} (see {look.url}); add masks with a second class"
        return self._doubt(labels, classes or _MAX_CLASSES)

    def _doubt(self, labels: Mapping[Label, Look], classes: int) -> str:
        if not labels:
            return "every pixel of every mask has the value finetune.ignore; correct it"
        shown = ", ".join(map(str, [*labels][:_SHOWN])) + (", …" if len(labels) > _SHOWN else "")
        masks = Counter(label_of(code) for code in self._codes())
        rarest = min(reversed(list(labels)), key=lambda label: masks[label])  # the rarest value is the suspect
        reason = reason_for(labels[rarest], [*labels], classes)
        return (
            f"masks contain {shown}, but the weights have {classes} classes; see mask {labels[rarest].url}: {reason}; "
            "or state finetune.values; or train a new network for these classes with finetune.start = 'random'"
        )
