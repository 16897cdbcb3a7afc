"""How much of an image goes through the network at once: the requested batch and tile, then what memory allows.

Out of memory, batches are halved down to one image. Then the image is cut into tiles, and the tiles are halved.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch

from maskfleet.unet.inference.tiling import Tiling
from maskfleet.unet.memory import ran_out
from maskfleet.unet.network import Network

T = TypeVar("T")

Shape = tuple[int, int]
"""Height and width of an image in px."""

WHOLE_PIXELS = 2**22
"""Larger images are cut into tiles by default."""

AUTO_CORE = {"cpu": 1344, "cuda": 1856}
"""Largest core of those tiles in px, before rounding down to the grid. With the U-Net's halo a tile has 1536² px, which
keeps a worker below 2 GiB, or 2048² px."""

MAX_BATCH = 64
"""Largest batch by default, in images."""

_BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Pixels of a batch of no measured size. On a CPU the size hardly matters: see `tests/benchmarks/batches.py`."""

_LEAST_CORE = 64
"""Smallest core of a tile in px."""


class NotTileable(ValueError):
    """An image needs tiles, and tiles of this network never give the whole image's logits."""


class Fit(NamedTuple):
    """The part of some images that goes through the network at once.

    Attributes:
        batch: Number of tiles.
        core: Core of a tile in px; 0 for whole images.
    """

    batch: int
    core: int

    def __str__(self) -> str:
        return f"batches of {self.batch}" + (f" tiles of {self.core} px" if self.core else "")


class Fitting:
    """The batches and tiles of one network on one device.

    Args:
        network: Its geometry decides about tiles.
        device: The device in use.
        tile: Core of tiles in px, a multiple of the network's grid; 0 for no tiles; None for `AUTO_CORE` in images of
            more than `WHOLE_PIXELS`.
        approximate: Whether to cut for an untileable network, too.
        batch_size: Images per batch, or None for `batches`, then `batch_pixels`.
        batch_pixels: Pixels per batch; None for a quarter of a million on a CPU, four million on a GPU.
        batches: Measured images per batch, by height and width.
        release: Frees cached memory of the device after it ran out.

    Attributes:
        tiling: Geometry of the tiles.
        exact: Whether stitched tiles give the whole image's logits.
        fits: By height and width of images, the requested fit, followed by the result of each shortage of memory.

    Raises:
        NotTileable: `tile` is given, the network is untileable, and `approximate` is not set.
        ValueError: `tile` is not a multiple of the network's grid.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        *,
        tile: int | None,
        approximate: bool,
        batch_size: int | None,
        batch_pixels: int | None,
        batches: Mapping[Shape, int] | None,
        release: Callable[[], None],
    ) -> None:
        self.tiling = Tiling(network.grid, network.halo)
        self.fits: dict[Shape, list[Fit]] = {}
        self.exact = network.untileable is None
        self._tile = tile
        self._untileable = network.untileable
        self._may_cut = approximate or self.exact
        self._batch_size = batch_size
        self._batches = dict(batches or {})
        self._batch_pixels = batch_pixels or _BATCH_PIXELS[device.type]
        self._auto_core = max(1, AUTO_CORE[device.type] // network.grid) * network.grid
        self._release = release
        if tile:
            self._fit((network.min_side, network.min_side), tile)

    def batch_size(self, height: int, width: int) -> int:
        """Return the number of images (or tiles) of this size in px in a batch."""
        if self._batch_size is not None:
            return self._batch_size
        return self._batches.get((height, width)) or max(1, min(MAX_BATCH, self._batch_pixels // (height * width)))

    def forward_shape(self, shape: Shape) -> Shape:
        """Return the size of the network's input for images of this size: the images' own, or their tiles'."""
        return self._tile_shape(shape, self.requested(shape).core)

    def requested(self, shape: Shape) -> Fit:
        """Return the fit for images of this size while memory suffices.

        Raises:
            NotTileable: The images need tiles, and the network is untileable.
        """
        if self._tile is not None:
            return self._fit(shape, self._tile)
        return self._fit(shape, self._auto_core if self._is_large(shape) else 0)

    def plain(self, shape: Shape) -> Fit:
        """Return the fit of the plain pass: one whole image, or one tile of a large image."""
        return Fit(1, self.requested(shape).core if self._is_large(shape) else 0)

    def has_plain_pass(self, shape: Shape, fit: Fit) -> bool:
        """Whether the plain pass may decide ties: it takes the whole image, as Pytorch-UNet's predict.py does."""
        if not self.exact:
            return not self._is_large(shape)
        cut_for_memory = 0 < fit.core < (self.requested(shape).core or max(shape))
        return shape[0] * shape[1] <= WHOLE_PIXELS and not cut_for_memory

    def run(self, shape: Shape, work: Callable[[Fit], T]) -> T:
        """Call `work` with the largest fit that memory allows. After running out of memory it starts anew.

        Args:
            shape: Height and width of the images.
            work: May be called several times.

        Raises:
            MemoryError: Not even the smallest fit does, or the images may not be cut.
            NotTileable: The images need tiles, and the network is untileable.
        """
        if shape not in self.fits:
            self.fits[shape] = [self.requested(shape)]
        tried = self.fits[shape]
        while True:
            fit = tried[-1]
            try:
                return work(fit)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                smaller = self._smaller(fit, shape)
                if smaller is None:
                    raise MemoryError(self._too_large(fit, shape)) from error
                if tried[-1] is fit:  # else another thread ran out of the same memory
                    tried.append(smaller)
            # Outside the handler, because the traceback keeps alive what filled the memory.
            self._release()

    def _is_large(self, shape: Shape) -> bool:
        return self._tile != 0 and shape[0] * shape[1] > WHOLE_PIXELS

    def _fit(self, shape: Shape, core: int) -> Fit:
        if core and not self._may_cut:
            raise NotTileable(
                f"tiles never give the whole image's logits with this network: {self._untileable}; set "
                "inference.tile_mode = 'approximate' to accept other labels (0.3 % of the pixels in a measured case; "
                "see docs/images.md), or inference.tile = 0 to never cut"
            )
        return Fit(self.batch_size(*self._tile_shape(shape, core)), core)

    def _tile_shape(self, shape: Shape, core: int) -> Shape:
        rows, columns = (self.tiling.spans(side, core)[0] for side in shape)
        return rows.stop, columns.stop

    def _smaller(self, fit: Fit, shape: Shape) -> Fit | None:
        """Return half the batch, then half the tile; None if the network's own result allows no smaller one."""
        if fit.batch > 1:
            return fit._replace(batch=fit.batch // 2)
        if self._tile == 0 or not self._may_cut:
            return None
        grid = self.tiling.grid
        core = (fit.core or max(shape)) // 2 // grid * grid
        return Fit(1, core) if core >= max(grid, _LEAST_CORE) else None

    def _too_large(self, fit: Fit, shape: Shape) -> str:
        if fit.core:
            return f"not even a tile of {fit.core} px and its halo fits into memory; give workers more of it"
        if self._tile == 0:
            reason = "inference.tile = 0 never cuts it"
        elif self._may_cut:
            reason = "it is too small to be cut"
        else:
            reason = f"tiles of this network are not exact: {self._untileable}"
        return f"one image of {shape[1]}×{shape[0]} px does not fit into memory, and {reason}; give workers more memory"
