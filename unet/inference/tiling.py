"""Cutting an image into tiles whose stitched logits equal the whole image's.

A U-Net with transposed up-sampling commutes with shifts by `GRID` px, the product of its poolings, and
a logit depends on no input pixel further off than `HALO` px. So a tile that begins at a multiple of
`GRID`, and of which a border of `HALO` px is thrown away wherever it is not the image's own border,
gives the very logits of the whole image. A bilinear U-Net (`align_corners=True`) does not: its
interpolation grid depends on the image's size.

Source of the reach: two 3×3 convolutions a level reach 2 · (1 + 2 + 4 + 8) px going down, 2 · 16 at the
bottom and 30 going up, which makes 92; rounded up to the grid, 96.
"""

from typing import NamedTuple

from maskfleet.unet.model import LEVELS

GRID = 2**LEVELS
"""Tiles begin at multiples of this many px."""

HALO = 96
"""Border of a tile, in px, whose logits are not the image's."""

FLIPPED_HALO = HALO + GRID
"""The same where the network sees the tile flipped too, so that it may end, not begin, within a grid cell."""


class Span(NamedTuple):
    """A tile along one axis, in px of the image.

    Attributes:
        start: Where the tile begins, a multiple of `GRID`.
        stop: Where it ends.
        core_start: Where its logits begin to count. The cores of an axis cover it once.
        core_stop: Where they end to count.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    @property
    def core(self) -> slice:
        """What counts, within the tile."""
        return slice(self.core_start - self.start, self.core_stop - self.start)


def spans(side: int, core: int, halo: int = HALO) -> list[Span]:
    """The tiles along one axis, all of one length, so that they can share a batch.

    The last one ends with the image, whose length need not be a multiple of `GRID`; so all are longer
    by that rest. They are as few as `core` allows, and then as short as so many may be.

    Args:
        side: Length of the image's axis in px.
        core: Most px of an inner tile that count, a multiple of `GRID`; 0 for one tile.
        halo: Border that does not.

    Raises:
        ValueError: `core` is no multiple of `GRID`.
    """
    if core % GRID:
        raise ValueError(f"tiles must have a core that is a multiple of {GRID} px, got {core}")
    length = core + 2 * halo + side % GRID
    if not core or side <= length:
        return [Span(0, side, 0, side)]
    inner = side // GRID * GRID - 2 * halo
    tiles = -(-inner // core)
    core = -(-inner // (tiles * GRID)) * GRID
    length = core + 2 * halo + side % GRID
    starts = [*range(0, side - length, core), side - length]
    edges = [0, *(start + halo for start in starts[1:]), side]
    return [Span(start, start + length, *edges[index : index + 2]) for index, start in enumerate(starts)]


def around(start: int, core: int, side: int, halo: int = HALO) -> Span:
    """A tile around a given core, of one length wherever the core lies, in px of the image.

    Args:
        start: Where the core begins, a multiple of `GRID`.
        core: Its length, a multiple of `GRID`; the last core of an axis may be cut off by the image's end.
        side: Length of the image's axis.
        halo: Border that does not count.
    """
    length = min(side, core + 2 * halo + side % GRID)
    begin = min(max(0, start - halo), side - length)
    return Span(begin, begin + length, start, min(side, start + core))


def within(row: Span, core: int, halo: int = HALO) -> list[Span]:
    """The same row of tiles as rows of shorter ones, where `core` is less than the row's."""
    found = []
    for part in spans(row.stop - row.start, core, halo):
        start, stop, core_start, core_stop = (row.start + edge for edge in part)
        # At the row's own borders its halo is that of the part there.
        core_start, core_stop = max(core_start, row.core_start), min(core_stop, row.core_stop)
        if core_start < core_stop:
            found.append(Span(start, stop, core_start, core_stop))
    return found
