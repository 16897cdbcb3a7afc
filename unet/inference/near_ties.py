"""Pixels too close to call: finding them, and deciding them in a way that does not depend on batch or tiles.

Floating-point sums depend on the order of their terms, and so on batch, memory layout, tiles and folding. The
difference is a few units in the last place, yet it can flip a pixel whose two best classes are that close. In fp32 such
ties are found by the margin between the two best logits.

- An image with a plain pass is decided by it: the network as given, contiguous memory, one whole image.
- In other images (larger than `WHOLE_PIXELS`, or cut for want of memory) each tie takes its label from the block of
  `BLOCK` px around it. One pass over that block and its halo computes its logits, of one shape wherever the block lies.
  So the label is the same with any tiles, without tiles, and if rows are streamed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.unet.inference.decision import Decision, Settled, decide, margins
from maskfleet.unet.inference.resident import Resident
from maskfleet.unet.inference.tiling import Span, Tiling
from maskfleet.unet.pixels.batch import Pixels

TIE = 16
"""Margins below this many times the difference between the fast and the plain pass, as seen on a test image, are ties.

The difference is taken as a share of the image's largest logit, since both grow together; it was
seen to be 4e-7 to 2e-6. The factor covers images unlike the test image: on real ones margins near a tie
moved by at most 10 of these units. Twice the factor costs three times the plain passes (`tests/benchmarks/ties.py`).
"""

TILE_TIE = {"cpu": 4, "cuda": 16}
"""The same factor between the fast passes over two tiles, whose difference is due to shapes alone.

On a CPU the difference was seen to be 0 for most networks and shapes, and at most 1.2 times that of the two passes on
the test image.
"""

BLOCK = 64
"""Side of a block in px, before rounding up to the grid. A smaller one costs less if ties are few, and more if they are
many: with the U-Net's halo, 256² px are computed for every block with a tie."""

_TEST_SIDE = 96

Crop = Callable[[Span, Span], Pixels]
"""Returns some rows and columns of an image."""


class TieBounds(NamedTuple):
    """Margins below which rounding may decide a pixel, as shares of an image's largest logit.

    Attributes:
        plain: Bound between the fast and the plain pass; 0 if only the fast pass counts.
        tile: Bound between the fast passes over two tiles; likewise.
        tested_logit: Largest logit of the test image.
    """

    plain: float = 0.0
    tile: float = 0.0
    tested_logit: float = 0.0

    @classmethod
    def measured(cls, resident: Resident, threads: Iterable[int]) -> Self:
        """Compare the two passes on a test image.

        Args:
            resident: The network, in fp32.
            threads: Numbers of CPU threads of the fast pass.
        """
        device = resident.device
        generator = torch.Generator().manual_seed(0)
        pixels_BHWC = 255 * torch.rand(1, _TEST_SIDE, _TEST_SIDE, resident.n_channels, generator=generator).to(device)
        plain_BKHW = resident.plain_forward(pixels_BHWC.clone())
        differences = [
            float((resident.forward(pixels_BHWC.clone(), number) - plain_BKHW).abs().max())
            for number in dict.fromkeys(threads)
        ]
        largest = max(float(plain_BKHW.abs().max()), torch.finfo(torch.float32).tiny)
        plain = TIE * max(differences) / largest
        return cls(plain, plain / TIE * TILE_TIE[device.type], largest)

    def open_to_plain_pass(self, decision: Decision, logits_BKHW: Tensor) -> Tensor:
        """Whether each image has a tie between the fast and the plain pass, (B,)."""
        return decision.margin < self.plain * largest_logit(logits_BKHW)

    def of_tiles(self, logits_BKHW: Tensor) -> Tensor:
        """Margins below which another tile may give another label, (B,)."""
        # A tile of small logits rounds no finer if large terms cancel in it.
        return self.tile * largest_logit(logits_BKHW).clamp(min=self.tested_logit)


def largest_logit(logits_BKHW: Tensor) -> Tensor:
    """Largest magnitude of each image's logits, (B,)."""
    # In memory order, channels last: a strided reduction costs ten times as much.
    logits_BHWK = logits_BKHW.permute(0, 2, 3, 1)
    return torch.maximum(-logits_BHWK.amin(dim=(1, 2, 3)), logits_BHWK.amax(dim=(1, 2, 3)))


def block_side(grid: int) -> int:
    """Side of a block in px: the smallest multiple of the grid from `BLOCK` on."""
    return -(-BLOCK // grid) * grid


class TieBreaker(NamedTuple):
    """Decides the ties of one image that has no plain pass.

    Attributes:
        shape: Height and width of the image in px.
        tiling: Geometry of the network's tiles.
        crop: Gives the image's pixels.
        forward: From a crop to its logits (1, K, h, w).
        thresholds: See `unet.inference.decision.decide`.
        bounds: Defines a tie.
    """

    shape: tuple[int, int]
    tiling: Tiling
    crop: Crop
    forward: Callable[[Pixels], Tensor]
    thresholds: Sequence[float] | None
    bounds: TieBounds

    def settled(self, decision: Decision, logits_1KHW: Tensor, *, top: int, left: int) -> Decision:
        """Return a decision about a part of the image with its ties broken.

        Args:
            decision: The decision by the part's own logits.
            logits_1KHW: These logits.
            top: First row of the part, in px of the image.
            left: First column of the part, likewise.
        """
        if not bool((decision.margin < self.bounds.of_tiles(logits_1KHW)).any()):
            return decision
        rows, columns = self._ties(logits_1KHW)
        logits_NK = self.logits(rows + top, columns + left)
        # In fp64, so that the end of a vector is rounded like the rest of it, as far as anyone can tell.
        labels = decide(logits_NK.double().T[None, :, :, None], self.thresholds).labels.view(-1)
        return decide(logits_1KHW, self.thresholds, Settled(rows, columns, labels))

    def settle_before_resizing(self, logits_KHW: Tensor, resized_1KHW: Tensor) -> bool:
        """Overwrite the logits below every tie of the resized image. Return whether there is a tie.

        Args:
            logits_KHW: Logits of the image.
            resized_1KHW: The same logits at another size.
        """
        rows, columns = self._ties(resized_1KHW)
        if not len(rows):
            return False
        size, shape = ((tensor.shape[-2], tensor.shape[-1]) for tensor in (resized_1KHW, logits_KHW))
        rows, columns = neighbours(rows, columns, size, shape)
        logits_KHW[:, rows, columns] = self.logits(rows, columns).T
        return True

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits (n, K) of some pixels, which depend on the image and the pixels' positions alone.

        Args:
            rows: Row of each pixel in the image, (n,).
            columns: Column of each pixel, likewise.
        """
        side = block_side(self.tiling.grid)
        places = torch.stack((rows, columns), dim=1).cpu().numpy()
        blocks, block_of = np.unique(places // side, axis=0, return_inverse=True)
        block_of = block_of.reshape(-1)
        found: list[Tensor] = []
        order: list[NDArray[np.int64]] = []
        for number, block in enumerate(blocks):
            here = np.flatnonzero(block_of == number) if len(blocks) > 1 else np.arange(len(places))
            row, column = (
                self.tiling.around(int(at) * side, side, length) for at, length in zip(block, self.shape, strict=True)
            )
            logits_KHW = self.forward(self.crop(row, column))[0]
            inside = torch.from_numpy(places[here] - (row.start, column.start)).to(logits_KHW.device)
            found.append(logits_KHW[:, inside[:, 0], inside[:, 1]].T)
            order.append(here)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(found[0].device)
        return torch.cat(found)[back]

    def _ties(self, logits_1KHW: Tensor) -> tuple[Tensor, Tensor]:
        near_HW = margins(logits_1KHW, self.thresholds)[0] < self.bounds.of_tiles(logits_1KHW)
        rows, columns = near_HW.nonzero(as_tuple=True)
        return rows, columns


def rows_needed(row: Span, side: int, tiling: Tiling) -> tuple[int, int]:
    """Return the first and the last row, exclusive, that a row of tiles and the crops of its ties take.

    Args:
        row: The row of tiles.
        side: Height of the image in px.
        tiling: Geometry of the tiles.
    """
    block = block_side(tiling.grid)
    first, last = (tiling.around(at // block * block, block, side) for at in (row.core_start, row.core_stop - 1))
    return min(row.start, first.start), max(row.stop, last.stop)


def neighbours(rows: Tensor, columns: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of all pixels that bilinear resizing may read, and a few more.

    Args:
        rows: Rows of pixels of the resized image, (n,).
        columns: Their columns, likewise.
        size: Height and width of the resized image.
        shape: Height and width of the image.
    """
    axes = []
    for index, side, source in zip((rows, columns), size, shape, strict=True):
        # One px more on each side, since torch rounds a position to fp32.
        first = ((index.double() + 0.5) * source / side - 0.5).floor().long() - 1
        axes.append((first[:, None] + torch.arange(4, device=index.device)).clamp(0, source - 1))
    places = torch.unique(axes[0][:, :, None] * shape[1] + axes[1][:, None, :])
    return places // shape[1], places % shape[1]
