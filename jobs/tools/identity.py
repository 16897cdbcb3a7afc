"""A device that computes nothing, so that everything around it can be measured."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from maskfleet.unet.inference.fitting import Fit
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.memory import keep_freed_memory

_BATCH = 32


class Identity:
    """Stands where a `unet.inference.segmenter.Segmenter` does; class 1 is where an image's green exceeds its red.

    What a device does is left out, forward pass, decision and statistics: of an image it knows the pixels of each
    class, and its rows say nothing else of the mask. What is left is the runner's own cost.
    """

    n_channels = 3
    min_side = 1
    classes = 2
    concurrency = 1

    def __init__(self) -> None:
        self.fits: dict[tuple[int, int], list[Fit]] = {}
        keep_freed_memory()

    def batch_size(self, height: int, width: int) -> int:
        """Images that make a batch."""
        return _BATCH

    def concurrency_of(self, height: int, width: int) -> int:
        """Batches at once."""
        return self.concurrency

    def pinned_buffer(self, batch: int, height: int, width: int) -> NDArray[np.uint8]:
        """Where to put a batch together."""
        return np.empty((batch, height, width, self.n_channels), np.uint8)

    def segment(
        self, images: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], Statistics]:
        """Class maps (B, H, W) of images (B, H, W, 3), and the pixels of each class.

        Raises:
            ValueError: The class maps are wanted at another size.
        """
        if size is not None and size != images.shape[1:3]:
            raise ValueError(f"an identity does not resize {images.shape[1:3]} to {size}; leave inference.scale at 1")
        labels = (images[..., 1] > images[..., 0]).view(np.uint8)
        statistics = Statistics.none(len(images), self.classes, self.n_channels)
        statistics.class_pixels[:, 1] = [np.count_nonzero(mask) for mask in labels]
        statistics.class_pixels[:, 0] = labels[0].size - statistics.class_pixels[:, 1]
        statistics.input_pixels[:] = labels[0].size
        return labels, statistics

    def segment_rows(
        self,
        read: Callable[[int, int], NDArray[np.uint8]],
        height: int,
        width: int,
        write: Callable[[NDArray[np.uint8]], None],
    ) -> Statistics:
        """Likewise of an image that need not be in memory, (1, H, W, 3)."""
        statistics = Statistics.none(1, self.classes, self.n_channels)
        rows = max(1, 2**20 // width)
        for top in range(0, height, rows):
            (band,), part = self.segment(read(top, min(height, top + rows)))
            statistics.add(part)
            write(band)
        return statistics
