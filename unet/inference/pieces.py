"""Images through a network in pieces: cutting them into tiles, batching the tiles, stitching their logits."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maskfleet.unet.inference.decision import Decision, moments
from maskfleet.unet.inference.fitting import Fit
from maskfleet.unet.inference.resident import Forward
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.inference.streams import on_host
from maskfleet.unet.inference.tiling import Span, Tiling
from maskfleet.unet.pixels.batch import Pixels

_DECIDED_PIXELS = 2**22
"""Pixels of a piece of resized logits."""


class Piece(NamedTuple):
    """The logits of one part of some images, on the device.

    Attributes:
        images: Position of the images in their batch.
        top: First row of the part in each image, in px.
        left: First column of the part, likewise.
        logits: (B, K, h, w).
        moments: `unet.inference.decision.moments` of the part's input; None if the input is already counted.
        decision: The decision about the part, if it is already made.
    """

    images: slice
    top: int
    left: int
    logits: Tensor
    moments: tuple[Tensor, Tensor] | None = None
    decision: Decision | None = None

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Index of the part in an array (B, H, W)."""
        bottom, right = self.top + self.logits.shape[2], self.left + self.logits.shape[3]
        return self.images, slice(self.top, bottom), slice(self.left, right)


class Strip(NamedTuple):
    """Some rows of an image.

    Attributes:
        pixels: The rows, one image of `Pixels`.
        top: Number of the first row in the image.
        shape: Height and width of the image in px.
    """

    pixels: Pixels
    top: int
    shape: tuple[int, int]

    def rows(self, span: Span) -> Pixels:
        """Return the pixels of a row of tiles."""
        return self.pixels.crop(slice(span.start - self.top, span.stop - self.top))

    def crop(self, rows: Span, columns: Span) -> Pixels:
        """Return the pixels of a tile."""
        return self.rows(rows).crop(slice(None), slice(columns.start, columns.stop))


class Cutter(NamedTuple):
    """Cuts images into tiles and sends them through a network.

    Attributes:
        tiling: Geometry of the network's tiles.
        device: The network's device.
    """

    tiling: Tiling
    device: torch.device

    def pieces(self, images: Pixels, fit: Fit, forward: Forward) -> Iterator[Piece]:
        """Yield pieces that cover images exactly once."""
        for row in self.tiling.spans(images.values.shape[1], fit.core):
            yield from self.row_pieces(images.crop(slice(row.start, row.stop)), row, fit, forward)

    def row_pieces(self, strip: Pixels, row: Span, fit: Fit, forward: Forward) -> Iterator[Piece]:
        """Yield the pieces of one row of tiles.

        Args:
            strip: Pixels of the row of tiles, with its halo.
            row: Its position in the images.
            fit: Batch and core of the tiles.
            forward: The network.
        """
        columns = self.tiling.spans(strip.values.shape[2], fit.core)
        for group in _groups(columns, images=len(strip.values), batch=fit.batch):
            crops = [strip.part(part).crop(slice(None), slice(column.start, column.stop)) for column, part in group]
            pixels_BHWC = Pixels.joined(crops).on_device(self.device)
            offset = 0
            kept = []
            for column, part in group:
                here = slice(offset, offset := offset + part.stop - part.start)
                kept.append((column, part, here, moments(pixels_BHWC[here, row.core, column.core], strip.white)))
            logits_BKHW = forward(pixels_BHWC)
            for column, part, here, summed in kept:
                core_BKHW = logits_BKHW[here, :, row.core, column.core]
                yield Piece(part, row.core_start, column.core_start, core_BKHW, summed)


def stitched(
    pieces: Iterator[Piece], shape: tuple[int, int, int], statistics: Statistics, *, contiguous: bool
) -> Tensor:
    """Return the logits of images (B, K, H, W), and count their input.

    Args:
        pieces: Cover the images exactly once.
        shape: Number, height and width of the images.
        statistics: The images' statistics, to which the input is added.
        contiguous: Whether the logits have the same memory layout with and without tiles. Resizing rounds differently
            in another layout.
    """
    whole_BKHW: Tensor | None = None
    for piece in pieces:
        logits_BKHW = piece.logits
        assert piece.moments is not None
        statistics.add_input(piece.images, logits_BKHW.shape[2] * logits_BKHW.shape[3], *on_host(*piece.moments))
        batch, classes, height, width = logits_BKHW.shape
        if (batch, height, width) == shape:
            whole_BKHW = logits_BKHW.contiguous() if contiguous else logits_BKHW
            continue
        if whole_BKHW is None:
            whole_BKHW = logits_BKHW.new_empty((shape[0], classes, *shape[1:]))
        images, rows, columns = piece.place
        whole_BKHW[images, :, rows, columns] = logits_BKHW
    assert whole_BKHW is not None
    return whole_BKHW


def bands(logits_BKHW: Tensor) -> Iterator[Piece]:
    """Yield whole images' logits in bands of rows, so that a decision takes bounded memory."""
    batch, _, height, width = logits_BKHW.shape
    rows = max(1, _DECIDED_PIXELS // (batch * width))
    for top in range(0, height, rows):
        yield Piece(slice(0, batch), top, 0, logits_BKHW[:, :, top : top + rows])


def _groups(columns: list[Span], *, images: int, batch: int) -> Iterator[list[tuple[Span, slice]]]:
    """Yield the tiles of a row of tiles in batches: each a list of columns with consecutive images."""
    group: list[tuple[Span, slice]] = []
    free = batch
    for column in columns:
        start = 0
        while start < images:
            stop = min(images, start + free)
            group.append((column, slice(start, stop)))
            free -= stop - start
            start = stop
            if not free:
                yield group
                group, free = [], batch
    if group:
        yield group
