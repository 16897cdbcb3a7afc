"""Batches through a network: the fast pass over all images, then the plain pass over those it leaves open.

In fp32 an image is open if rounding may decide a pixel: see `unet.inference.near_ties`. In fp16 and bf16 an image is
open if it overflows. The plain pass is the network as given, in fp32.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskfleet.unet.inference.decision import Decision, decide, moments
from maskfleet.unet.inference.fitting import Fit, Fitting, Shape
from maskfleet.unet.inference.near_ties import TieBounds, TieBreaker
from maskfleet.unet.inference.pieces import Cutter, Piece, Strip, bands, stitched
from maskfleet.unet.inference.resident import Forward, Resident
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.inference.streams import Stream, on_host
from maskfleet.unet.inference.tiling import Span
from maskfleet.unet.pixels.batch import WHITE, Pixels, as_tensor
from maskfleet.unet.process_state import cpu_threads


class Passes(NamedTuple):
    """Both passes of one network on one device.

    Attributes:
        resident: The network.
        fitting: Its batches and tiles.
        bounds: Margins of ties; zeros in reduced precision.
        thresholds: See `unet.inference.decision.decide`.
        threads: CPU threads of the network outside concurrent batches.
    """

    resident: Resident
    fitting: Fitting
    bounds: TieBounds
    thresholds: Sequence[float] | None
    threads: int

    def segment(
        self, images: Pixels, labels: NDArray[np.uint8], fit: Fit, *, stream: Stream, threads: int
    ) -> Statistics:
        """Decide a batch of images of one shape.

        Args:
            images: The images.
            labels: Overwritten with the class of each pixel, (B, height, width), to which size logits are resized.
            fit: Batch and tile of the fast pass.
            stream: The stream held by this thread.
            threads: CPU threads of the fast pass.
        """
        shape, size = _sizes(images, labels)
        by_plain_pass = self.fitting.has_plain_pass(shape, fit)
        statistics = self.resident.no_statistics(len(images.values))
        undecided: set[int] = set()
        fast = self.resident.fast_pass(threads, images.white)
        if fit.core or size != shape:
            pieces = self._pieces(images, size, fit, fast, statistics, settle=not by_plain_pass)
        else:
            pieces = self._whole_pieces(images, fit, fast, stream)
        for piece in pieces:
            decision = piece.decision or decide(piece.logits, self.thresholds)
            if not by_plain_pass and size == shape:
                decision = self._settled(piece, decision, Strip(images.part(piece.images), 0, shape))
            labels[piece.place], tied = self._counted(piece, decision, statistics, find_ties=by_plain_pass)
            undecided |= tied
        for index in sorted(undecided | self.overflowed(statistics)):
            one = slice(index, index + 1)
            statistics.replace_decision(index, self._plain_pass(images.part(one), labels[one]))
        return statistics

    def band(self, strip: Strip, row: Span, fit: Fit, *, forward: Forward) -> tuple[NDArray[np.uint8], Statistics]:
        """Decide a row of tiles of one image.

        Args:
            strip: Rows of the image with everything that the tiles take.
            row: Position of the tiles in the image.
            fit: Batch and core of the tiles.
            forward: The fast or the plain pass.

        Returns:
            The class of each pixel of the row's core, (rows, W), and its share of the image's statistics.
        """
        statistics = self.resident.no_statistics(1)
        band = np.empty((1, row.core_stop - row.core_start, strip.shape[1]), np.uint8)
        for part in self.fitting.tiling.within(row, fit.core):
            for piece in self._cutter.row_pieces(strip.rows(part), part, fit, forward):
                decision = self._settled(piece, decide(piece.logits, self.thresholds), strip)
                place = piece._replace(top=piece.top - row.core_start).place
                band[place], _ = self._counted(piece, decision, statistics)
        return band[0], statistics

    def overflowed(self, statistics: Statistics) -> set[int]:
        """Return the images whose logits are not finite in fp16 or bf16; none in fp32."""
        if self.resident.dtype == torch.float32:
            return set()
        return set(np.flatnonzero(~statistics.finite).tolist())

    @property
    def _cutter(self) -> Cutter:
        return Cutter(self.fitting.tiling, self.resident.device)

    def _plain_pass(self, image: Pixels, labels: NDArray[np.uint8]) -> Statistics:
        """Decide one image by the network as given."""
        shape, size = _sizes(image, labels)
        statistics = self.resident.no_statistics(1)
        plain = self.resident.plain_pass(image.white)
        for piece in self._pieces(image, size, self.fitting.plain(shape), plain, statistics, settle=False):
            labels[piece.place], _ = self._counted(piece, decide(piece.logits, self.thresholds), statistics)
        return statistics

    def _pieces(
        self,
        images: Pixels,
        size: Shape,
        fit: Fit,
        forward: Forward,
        statistics: Statistics,
        *,
        settle: bool,
    ) -> Iterator[Piece]:
        """Return logits of the size of the class maps. With `settle`, ties are broken before resizing."""
        pieces = self._cutter.pieces(images, fit, forward)
        shape = images.values.shape[:3]
        if size == shape[1:]:
            return pieces
        logits_BKHW = stitched(pieces, shape, statistics, contiguous=settle)
        resized_BKHW = self._resized(logits_BKHW, size)
        if settle and self._settled_before_resizing(logits_BKHW, resized_BKHW, images):
            resized_BKHW = self._resized(logits_BKHW, size)
        return bands(resized_BKHW)

    def _whole_pieces(self, images: Pixels, fit: Fit, fast: Forward, stream: Stream) -> Iterator[Piece]:
        """Yield images that are not cut, with their decision."""
        count = len(images.values)
        for start in range(0, count, fit.batch):
            part = slice(start, min(start + fit.batch, count))
            some = images.part(part)
            if some.white == WHITE:
                found = stream.run(partial(self.whole, fast), as_tensor(some.values))
            else:
                found = self._decided(fast, some.on_device(self.resident.device), some.white)
            logits_BKHW, total_BC, squares_BC, *decision = found
            yield Piece(part, 0, 0, logits_BKHW, (total_BC, squares_BC), Decision(*decision))

    def whole(self, fast: Forward, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Return logits of whole 8-bit images, `moments` of their pixels, and their `Decision`."""
        return self._decided(fast, pixels_BHWC.float(), WHITE)

    def _decided(self, fast: Forward, values_BHWC: Tensor, white: float) -> tuple[Tensor, ...]:
        summed = moments(values_BHWC, white)  # before the network, which scales in place
        logits_BKHW = fast(values_BHWC)
        return (logits_BKHW, *summed, *decide(logits_BKHW, self.thresholds))

    def _counted(
        self, piece: Piece, decision: Decision, statistics: Statistics, *, find_ties: bool = False
    ) -> tuple[NDArray[np.uint8], set[int]]:
        """Fetch a decision with a single device synchronisation and add it up. Return labels and images with ties."""
        near = [self.bounds.open_to_plain_pass(decision, piece.logits)] if find_ties and self.bounds.plain else []
        summed = piece.moments or ()
        found = on_host(*decision, *summed, *near)
        fetched = Decision(*found[: len(decision)])
        if summed:
            pixels = piece.logits.shape[2] * piece.logits.shape[3]
            statistics.add_input(piece.images, pixels, *found[len(decision) : len(decision) + 2])
        statistics.add_decision(piece.images, fetched, piece.top, piece.left)
        tied = {piece.images.start + int(index) for index in found[-1].nonzero()[:, 0]} if near else set()
        return fetched.labels.numpy(), tied

    def _tie_breaker(self, strip: Strip) -> TieBreaker | None:
        """Return None if precision or tiles of the network change more labels than ties do."""
        if not self.bounds.tile or not self.fitting.exact:
            return None
        return TieBreaker(
            shape=strip.shape,
            tiling=self.fitting.tiling,
            crop=strip.crop,
            forward=lambda crop: self.resident.forward(crop.on_device(self.resident.device), self.threads, crop.white),
            thresholds=self.thresholds,
            bounds=self.bounds,
        )

    def _settled(self, piece: Piece, decision: Decision, strip: Strip) -> Decision:
        breaker = self._tie_breaker(strip)
        return breaker.settled(decision, piece.logits, top=piece.top, left=piece.left) if breaker else decision

    def _settled_before_resizing(self, logits_BKHW: Tensor, resized_BKHW: Tensor, images: Pixels) -> bool:
        """Overwrite the logits below every tie of the resized ones. Return whether there is a tie."""
        any_tie = False
        height, width = images.values.shape[1:3]
        for index in range(len(images.values)):
            one = slice(index, index + 1)
            breaker = self._tie_breaker(Strip(images.part(one), 0, (height, width)))
            if breaker and breaker.settle_before_resizing(logits_BKHW[index], resized_BKHW[one]):
                any_tie = True
        return any_tie

    def _resized(self, logits_BKHW: Tensor, size: Shape) -> Tensor:
        with cpu_threads(self.threads):
            return F.interpolate(logits_BKHW, size, mode="bilinear")


def _sizes(images: Pixels, labels: NDArray[np.uint8]) -> tuple[Shape, Shape]:
    """Return height and width of images, and of their class maps."""
    height, width = images.values.shape[1:3]
    return (height, width), labels.shape[1:3]
