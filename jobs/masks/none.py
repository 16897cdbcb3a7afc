"""The format `none`: statistics without masks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.masks.formats import EncodedMask, MaskFormat


class NoMasks(MaskFormat):
    """No masks: class maps are counted and dropped."""

    stored = False

    def encoder(self, values: Sequence[Any]) -> None:
        return None

    def columns(self, mask: EncodedMask, *, name: str, folder: str) -> dict[str, Any]:
        return {}

    def problems(self, row: Mapping[str, Any], file: bytes | None) -> Iterator[str]:
        return iter(())

    def classes(self, row: Mapping[str, Any], file: bytes | None, values: Sequence[Any]) -> NDArray[np.uint8]:
        raise ValueError("there is no mask, since masks.format is 'none'; choose another format")


FORMAT = NoMasks()
