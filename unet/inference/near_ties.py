"""Pixels too close to call, of images that no plain pass decides: crops that depend on the image alone do.

Floating-point sums depend on a tile's shape by a few units in the last place. Where the two best classes are that
close, the class map takes its label from the block of `BLOCK` px that the pixel lies in: its logits come from one pass
over that block and its halo, of one shape wherever it lies. So the label is the same with any tiles, without tiles, and
of rows that stream.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.unet.inference.tiling import Span, around

BLOCK = 64
"""Side of a block in px, a multiple of the grid. A smaller one costs less where ties are few, and more where many: with
its halo, 256² px are computed for every block that has one."""

Crop = Callable[[Span, Span], NDArray[np.uint8]]
"""Pixels (1, h, w, C) of some rows and columns of an image."""


class Referee(NamedTuple):
    """Decides the ties of one image.

    Attributes:
        shape: Height and width of the image, in px.
        halo: Of a tile; see `unet.inference.tiling`.
        crop: Its pixels.
        network: Logits (1, K, h, w) of a crop.
    """

    shape: tuple[int, int]
    halo: int
    crop: Crop
    network: Callable[[NDArray[np.uint8]], Tensor]

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (n, K) of some pixels, which depend on the image and on these pixels' places alone.

        Args:
            rows: Of each pixel, (n,), in px of the image.
            columns: Likewise.
        """
        places = torch.stack((rows, columns), dim=1).cpu().numpy()
        blocks, of = np.unique(places // BLOCK, axis=0, return_inverse=True)
        of = of.reshape(-1)
        found: list[Tensor] = []
        order: list[NDArray[np.int64]] = []
        for number, block in enumerate(blocks):
            here = np.flatnonzero(of == number) if len(blocks) > 1 else np.arange(len(places))
            row, column = (
                around(int(at) * BLOCK, BLOCK, side, self.halo) for at, side in zip(block, self.shape, strict=True)
            )
            logits_KHW = self.network(self.crop(row, column))[0]
            inside = torch.from_numpy(places[here] - (row.start, column.start)).to(logits_KHW.device)
            found.append(logits_KHW[:, inside[:, 0], inside[:, 1]].T)
            order.append(here)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(found[0].device)
        return torch.cat(found)[back]


def reach(row: Span, side: int, halo: int) -> tuple[int, int]:
    """From where to where a row of tiles and the crops of its ties see an image of that many rows."""
    first, last = (around(at // BLOCK * BLOCK, BLOCK, side, halo) for at in (row.core_start, row.core_stop - 1))
    return min(row.start, first.start), max(row.stop, last.stop)


def neighbours(rows: Tensor, columns: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pixels that bilinear resizing may take some pixels from, and a few more.

    Args:
        rows: Of pixels of the resized image, (n,).
        columns: Likewise.
        size: Of the resized image.
        shape: Of the image.
    """
    axes = []
    for index, side, source in zip((rows, columns), size, shape, strict=True):
        # One px further than they reach: torch rounds a place to fp32.
        first = ((index.double() + 0.5) * source / side - 0.5).floor().long() - 1
        axes.append((first[:, None] + torch.arange(4, device=index.device)).clamp(0, source - 1))
    places = torch.unique(axes[0][:, :, None] * shape[1] + axes[1][:, None, :])
    return places // shape[1], places % shape[1]
