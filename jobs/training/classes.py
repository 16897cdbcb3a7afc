"""Which class a mask's pixel is of: what masks show for each class, found out or as stated, and every doubt named."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.training.truth import code_of, value_of

MOST_VALUES = 64
"""A mask that shows more is no map of classes."""

_MOST_CLASSES = 256
_SHOWN = 8


class Found:
    """The codes that masks were seen to have, each with the URL of the first mask that has it."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self._masks: Counter[int] = Counter()

    def add(self, url: str, codes: NDArray[Any]) -> None:
        """Look at a mask.

        Raises:
            JobError: It is no map of classes.
        """
        here = np.unique(codes)
        if len(here) > MOST_VALUES:
            raise JobError(f"mask {url} shows {len(here)} values: {_SMEARED}")
        for code in here.tolist():
            self._first.setdefault(code, url)
            self._masks[code] += 1

    def values(
        self, *, stated: Sequence[Any] | None, classes: int | None, own: Sequence[Any] | None
    ) -> tuple[Any, ...]:
        """What masks show for each class: as stated, else as the weights' own do, else 0, 1, 2 …, else as found.

        Args:
            stated: In the job.
            classes: That the network tells apart; None where that follows from the masks.
            own: What the weights' own masks show; None where nobody says.

        Raises:
            JobError: That cannot be told, or a mask shows something else.
        """
        if stated is not None:
            if classes is not None and len(stated) != classes:
                raise JobError(f"finetune.values has {len(stated)} values and the weights have {classes} classes")
            values: Sequence[Any] = stated
        elif own is not None and self._first.keys() <= {code_of(plain(value)) for value in own}:
            values = own
        elif classes is not None and max(self._first) < classes:
            values = range(classes)
        elif 1 < len(self._first) <= _MOST_CLASSES and len(self._first) == (classes or len(self._first)):
            values = [value_of(code) for code in sorted(self._first)]
        else:
            raise JobError(self._doubt(classes))
        known = {code_of(plain(value)) for value in values}
        for code, url in self._first.items():
            if code not in known:
                raise JobError(
                    f"mask {url} shows {value_of(code)}, which is no class: {', '.join(map(str, values))} are; correct "
                    "the mask or finetune.values"
                )
        return tuple(plain(value) for value in values)

    def _doubt(self, classes: int | None) -> str:
        codes = sorted(self._first)
        if classes is None and len(codes) == 1:
            return f"all masks show {value_of(codes[0])} and nothing else, as {self._first[codes[0]]} does; give others"
        more = ", …" if len(codes) > _SHOWN else ""
        shown = ", ".join(str(value_of(code)) for code in codes[:_SHOWN]) + more
        url = self._first[min(codes, key=lambda code: (self._masks[code], -code))]  # which shows what fewest masks show
        return (
            f"masks show {shown} and the weights have {classes or _MOST_CLASSES} classes, see mask {url}: {_SMEARED}; "
            "or state finetune.values; or train a network for these classes with finetune.start = 'random'"
        )


_SMEARED = "JPEG, smoothing or a resize may have smeared it; export it as PNG without smoothing"


def classes_of(codes: NDArray[Any], values: Sequence[Any]) -> NDArray[np.uint8]:
    """The class of each pixel of a mask whose codes are all known."""
    table: Mapping[int, int] = {code_of(value): number for number, value in enumerate(values)}
    here, places = np.unique(codes, return_inverse=True)
    return np.array([table[code] for code in here.tolist()], np.uint8)[places.reshape(codes.shape)]


def plain(value: Any) -> Any:
    """A mask value as compared: a colour is a tuple."""
    return tuple(value) if isinstance(value, list) else value
