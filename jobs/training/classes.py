"""The class of each mask pixel: the mask value of each class, as stated or inferred, with every doubt refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.truth import code_of, value_of

MAX_VALUES = 64
"""Most distinct values of a mask. A mask with more is not a class map."""

_MAX_CLASSES = 256
_SHOWN = 8
_SMEARED = "JPEG compression, smoothing or resizing may have blurred it; export it as PNG without smoothing"


class ObservedCodes:
    """The codes seen in masks so far, each with the URL of the first mask containing it."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self._masks: Counter[int] = Counter()

    def add(self, url: str, codes: NDArray[Any]) -> None:
        """Record the codes of a mask.

        Args:
            url: URL of the mask.
            codes: Code of each pixel, (H, W).

        Raises:
            JobError: The mask has more than `MAX_VALUES` values.
        """
        here = np.unique(codes)
        if len(here) > MAX_VALUES:
            raise JobError(f"mask {url} has {len(here)} distinct values: {_SMEARED}")
        for code in here.tolist():
            self._first.setdefault(code, url)
            self._masks[code] += 1

    def mask_values(
        self, *, stated: Sequence[Any] | None, classes: int | None, base_values: Sequence[Any] | None
    ) -> tuple[Any, ...]:
        """Return the mask value of each class.

        In this order: the stated values, the base weights' own values, 0, 1, 2 …, or the observed values.

        Args:
            stated: Values stated in the job; None if none are.
            classes: Number of classes of the network; None to infer it from the masks.
            base_values: Mask value of each class in the base weights; None if unknown.

        Raises:
            JobError: The values are ambiguous, or a mask contains another value.
        """
        if stated is not None:
            if classes is not None and len(stated) != classes:
                raise JobError(
                    f"the number of finetune.values ({len(stated)}) differs from the weights' number of classes "
                    f"({classes}); state one value per class"
                )
            values: Sequence[Any] = stated
        elif base_values is not None and self._first.keys() <= {code_of(plain(value)) for value in base_values}:
            values = base_values
        elif classes is not None and max(self._first) < classes:
            values = range(classes)
        elif 1 < len(self._first) <= _MAX_CLASSES and len(self._first) == (classes or len(self._first)):
            values = [value_of(code) for code in sorted(self._first)]
        else:
            raise JobError(self._doubt(classes))
        known = {code_of(plain(value)) for value in values}
        for code, url in self._first.items():
            if code not in known:
                raise JobError(
                    f"mask {url} contains {value_of(code)}, but the classes are {', '.join(map(str, values))}; correct "
                    "the mask or finetune.values"
                )
        return tuple(plain(value) for value in values)

    def _doubt(self, classes: int | None) -> str:
        codes = sorted(self._first)
        if classes is None and len(codes) == 1:
            return (
                f"every mask contains only the value {value_of(codes[0])} (see {self._first[codes[0]]}); add masks "
                "with a second class"
            )
        more = ", …" if len(codes) > _SHOWN else ""
        shown = ", ".join(str(value_of(code)) for code in codes[:_SHOWN]) + more
        url = self._first[min(codes, key=lambda code: (self._masks[code], -code))]  # the rarest code is the suspect
        return (
            f"masks contain {shown}, but the weights have {classes or _MAX_CLASSES} classes; see mask "
            f"{url}: {_SMEARED}; or state finetune.values; or train a new network for these classes with "
            "finetune.start = 'random'"
        )


def classes_of(codes: NDArray[Any], values: Sequence[Any]) -> NDArray[np.uint8]:
    """Return the class of each pixel, (H, W), uint8.

    Args:
        codes: Code of each pixel, (H, W).
        values: Mask value of each class; they cover all codes.
    """
    table: Mapping[int, int] = {code_of(value): number for number, value in enumerate(values)}
    here, places = np.unique(codes, return_inverse=True)
    return np.array([table[code] for code in here.tolist()], np.uint8)[places.reshape(codes.shape)]


def plain(value: Any) -> Any:
    """Return a mask value in comparable form: a colour as a tuple."""
    return tuple(value) if isinstance(value, list) else value
