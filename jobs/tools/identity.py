"""A device without a network, for measuring everything around it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.unet.inference.fitting import Fit
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.memory import keep_freed_memory
from maskfleet.unet.pixels.normalization import Levels

_BATCH = 32


class Identity:
    """A replacement for `unet.inference.segmenter.Segmenter`. Class 1 is every pixel with more green than red.

    It skips the work of a device: forward pass, decision and all statistics except the pixel count of each class. Only
    the cost of the runner itself remains.
    """

    n_channels = 3
    min_side = 1
    classes = 2
    concurrency = 1

    def __init__(self) -> None:
        self.fits: dict[tuple[int, int], list[Fit]] = {}
        keep_freed_memory()

    def batch_size(self, height: int, width: int) -> int:
        """Return the number of images per batch."""
        return _BATCH

    def concurrency_of(self, height: int, width: int) -> int:
        """Return the number of concurrent batches."""
        return self.concurrency

    def pinned_buffer(self, batch: int, height: int, width: int, dtype: str) -> NDArray[Any]:
        """Return a buffer for a batch, (B, H, W, C). Not pinned: there is no device."""
        return np.empty((batch, height, width, self.n_channels), dtype)

    def segment(
        self, images: NDArray[Any], size: tuple[int, int] | None = None, *, levels: Sequence[Levels] | None = None
    ) -> tuple[NDArray[np.uint8], Statistics]:
        """Return class maps (B, H, W), uint8, of images (B, H, W, 3), and their pixel counts.

        Args:
            images: Pixels.
            size: Height and width of the class maps in px; None for the size of the images.
            levels: Not used.

        Raises:
            ValueError: `size` differs from the size of the images.
        """
        if size is not None and size != images.shape[1:3]:
            raise ValueError(
                f"a device without a network cannot resize {images.shape[1:3]} to {size}; set inference.scale = 1"
            )
        labels = (images[..., 1] > images[..., 0]).view(np.uint8)
        statistics = Statistics.none(len(images), self.classes, self.n_channels)
        statistics.class_pixels[:, 1] = [np.count_nonzero(mask) for mask in labels]
        statistics.class_pixels[:, 0] = labels[0].size - statistics.class_pixels[:, 1]
        statistics.input_pixels[:] = labels[0].size
        return labels, statistics

    def segment_rows(
        self,
        read: Callable[[int, int], NDArray[Any]],
        height: int,
        width: int,
        write: Callable[[NDArray[np.uint8]], None],
        *,
        levels: Levels | None = None,
    ) -> Statistics:
        """Segment an image band by band, without holding all of it in memory.

        Args:
            read: Returns the rows from one number up to another, (1, rows, W, 3).
            height: Height of the image in px.
            width: Width of the image in px.
            write: Takes the next rows of the class map, (rows, W), uint8.
            levels: Not used.
        """
        statistics = Statistics.none(1, self.classes, self.n_channels)
        rows = max(1, 2**20 // width)
        for top in range(0, height, rows):
            (band,), part = self.segment(read(top, min(height, top + rows)))
            statistics.add(part)
            write(band)
        return statistics
