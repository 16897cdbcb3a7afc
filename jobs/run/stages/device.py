"""The interface between the pipeline and a device."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskfleet.unet.pixels.normalization import Levels

if TYPE_CHECKING:  # `verify` and `status` import this module and must not wait for torch
    from maskfleet.unet.inference.fitting import Fit
    from maskfleet.unet.inference.statistics import Statistics


class Device(Protocol):
    """The part of `unet.inference.segmenter.Segmenter` used by the pipeline."""

    n_channels: int
    min_side: int
    classes: int
    concurrency: int
    fits: dict[tuple[int, int], "list[Fit]"]

    def batch_size(self, height: int, width: int) -> int: ...

    def concurrency_of(self, height: int, width: int) -> int: ...

    def pinned_buffer(self, batch: int, height: int, width: int, dtype: str) -> NDArray[Any]: ...

    def segment(
        self, images: NDArray[Any], size: tuple[int, int] | None = None, *, levels: Sequence[Levels] | None = None
    ) -> "tuple[NDArray[np.uint8], Statistics]": ...

    def segment_rows(
        self, read: Callable[[int, int], NDArray[Any]], height: int, width: int,
        write: Callable[[NDArray[np.uint8]], None], *, levels: Levels | None = None,
    ) -> "Statistics": ...  # fmt: skip
