"""Cutting an image into tiles whose stitched logits equal the whole image's.

A convolutional network commutes with shifts by its grid, the product of its strides, and a logit depends on no input
pixel further away than its reach. So a tile gives the whole image's logits if it starts on the grid and loses a border
of the reach (its halo) wherever the border is not the image's own. `unet.network.Network` states grid and halo.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """A tile along one axis, in px of the image.

    Attributes:
        start: First px of the tile, a multiple of the grid.
        stop: End of the tile, exclusive.
        core_start: First px of the core. The cores of an axis cover it exactly once.
        core_stop: End of the core, exclusive.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    @property
    def core(self) -> slice:
        """The core within the tile."""
        return slice(self.core_start - self.start, self.core_stop - self.start)


@dataclass(frozen=True)
class Tiling:
    """Tiles for one network.

    Attributes:
        grid: Tiles start at multiples of this many px.
        halo: Border of a tile in px whose logits are not the whole image's.
    """

    grid: int
    halo: int

    def spans(self, side: int, core: int) -> list[Span]:
        """Return the tiles along one axis, all of one length so that they can share a batch.

        The last tile ends with the image, whose length need not be a multiple of the grid; so all tiles are longer by
        the remainder. There are as few as `core` allows, and they are as short as their number allows.

        Args:
            side: Length of the image's axis in px.
            core: Largest core of an inner tile in px, a multiple of the grid; 0 for a single tile.

        Raises:
            ValueError: `core` is not a multiple of the grid.
        """
        if core % self.grid:
            raise ValueError(f"tiles must have a core that is a multiple of {self.grid} px, got {core}")
        rest = side % self.grid
        length = core + 2 * self.halo + rest
        if not core or side <= length:
            return [Span(0, side, 0, side)]
        inner = side // self.grid * self.grid - 2 * self.halo
        tiles = -(-inner // core)
        core = -(-inner // (tiles * self.grid)) * self.grid
        length = core + 2 * self.halo + rest
        starts = [*range(0, side - length, core), side - length]
        edges = [0, *(start + self.halo for start in starts[1:]), side]
        return [Span(start, start + length, *edges[index : index + 2]) for index, start in enumerate(starts)]

    def around(self, start: int, core: int, side: int) -> Span:
        """Return a tile around a given core. Its length depends on core and side, not on the position.

        Args:
            start: First px of the core, a multiple of the grid.
            core: Length of the core in px, a multiple of the grid. The image's end may cut off the last one.
            side: Length of the image's axis in px.
        """
        length = min(side, core + 2 * self.halo + side % self.grid)
        begin = min(max(0, start - self.halo), side - length)
        return Span(begin, begin + length, start, min(side, start + core))

    def within(self, row: Span, core: int) -> list[Span]:
        """Split a row of tiles into rows of shorter tiles, if `core` is smaller than the row's."""
        found = []
        for part in self.spans(row.stop - row.start, core):
            start, stop, core_start, core_stop = (row.start + edge for edge in part)
            # At the row's own borders its halo is also the part's.
            core_start, core_stop = max(core_start, row.core_start), min(core_stop, row.core_stop)
            if core_start < core_stop:
                found.append(Span(start, stop, core_start, core_stop))
        return found
