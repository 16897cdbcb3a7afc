"""A U-Net resident on one device: uint8 images in, class maps and statistics out.

Knows nothing about files, jobs or shards. A constructed Segmenter is ready: weights on the device,
batch normalisation folded, one forward pass done.

**Ties.** Floating-point sums depend on the order of their terms, and so on batch, memory layout, tiles
and folding. The difference is a few units in the last place, yet it can flip a pixel whose two best
classes are that close. In fp32 such pixels are found (the margin between the two best logits is
below `TIE`), and their image is decided by the plain pass: unfolded network, contiguous memory, one
whole image, which is the arithmetic of Pytorch-UNet's predict.py. So in fp32 an image's mask depends
neither on its batch nor on its tiles, and equals that program's. Images beyond `WHOLE_PIXELS`, or cut for
want of memory, have no plain pass: `unet.inference.near_ties` decides such pixels, so that they too do not depend on
tiles.
"""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskfleet.unet.inference.decision import Decision, Settled, Statistics, decide, margins, moments
from maskfleet.unet.inference.folded import folded
from maskfleet.unet.inference.near_ties import Referee, neighbours, reach
from maskfleet.unet.inference.precision import DTYPES, Precision, device_named, resolved
from maskfleet.unet.inference.streams import Lane, Lanes, on_host, room
from maskfleet.unet.inference.tiling import FLIPPED_HALO, GRID, HALO, Span, spans, within
from maskfleet.unet.memory import keep_freed_memory, ran_out
from maskfleet.unet.model import MIN_SIDE

T = TypeVar("T")

TIE = 16
"""Margins below this many times the difference between the fast and the plain pass, as seen on a test image, are ties.

The difference is taken as a share of the image's largest logit, since both grow together; it was
seen to be 4e-7 to 2e-6. The factor covers images that the test image does not resemble: on real ones margins near a tie
moved by at most 10 of these units. Twice the factor costs three times the plain passes (`tests/benchmarks/ties.py`).
"""

TILE_TIE = {"cpu": 4, "cuda": 16}
"""The same between the fast pass over a tile and over another, whose difference is that of shapes alone.

On a CPU it was seen to be 0 for most networks and shapes, and at most 1.2 times that of the two passes on the test
image.
"""

WHOLE_PIXELS = 2**22
"""Larger images are cut into tiles where the job leaves it to us."""

AUTO_CORE = {"cpu": 1344, "cuda": 1856}
"""Core of those tiles in px, at most: with its halo, 1536² px, which leaves a worker below 2 GiB, or 2048² px."""

MAX_BATCH = 64
"""Images per batch, at most, where the job leaves it to us."""

_NOT_TILEABLE = (
    "a bilinear network's tiles do not give the whole image's logits; set inference.tile_mode = 'approximate' to "
    "accept other labels (of 0.3 % of the pixels, where it was measured; see docs/images.md), or inference.tile = 0 to "
    "never cut"
)
_BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Of a batch that nobody has measured. On a CPU none needs to be: see `tests/benchmarks/batches.py`."""

_ALONE_PIXELS = 2**19
"""Of an image that gets all threads of a CPU: it is long on its way, and two of them take twice the memory."""

_DECIDED_PIXELS = 2**22
_LEAST_CORE = 64
_TIMINGS = 3
_TEST_SIDE = 96


class NotTileable(ValueError):
    """An image needs tiles and the network is bilinear, whose tiles never give the whole image's logits."""


class Fit(NamedTuple):
    """What of images of one shape goes through the network at once.

    Attributes:
        batch: Tiles.
        core: Of a tile, in px; 0 for whole images.
    """

    batch: int
    core: int

    def __str__(self) -> str:
        return f"batches of {self.batch}" + (f" tiles of {self.core} px" if self.core else "")


class _Piece(NamedTuple):
    """One part of some images, on the device.

    Attributes:
        images: Which.
        top: Where it lies in them, in px.
        left: Likewise.
        logits: (B, K, h, w).
        moments: Of its input, unless it is counted; see `unet.inference.decision.moments`.
        decision: Where it is made already.
    """

    images: slice
    top: int
    left: int
    logits: Tensor
    moments: tuple[Tensor, Tensor] | None = None
    decision: Decision | None = None


class _Strip(NamedTuple):
    """Some rows (1, rows, W, C) of an image, the first of which is `top`, and the image's height and width."""

    pixels: NDArray[np.uint8]
    top: int
    shape: tuple[int, int]

    def crop(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        return self.pixels[:, rows.start - self.top : rows.stop - self.top, columns.start : columns.stop]


Read = Callable[[int, int], NDArray[np.uint8]]
"""Rows from start to stop of an image, (1, rows, W, C)."""

Network = Callable[[Tensor], Tensor]
"""Logits (B, K, H, W) of pixels 0 … 255, (B, H, W, C)."""


class Segmenter:
    """A network on a device, fed with batches of one shape.

    Args:
        model: A network with `n_channels`, `n_classes` and `bilinear`, such as `unet.model.UNet` or
            `unet.ensemble.Ensemble`. It is copied.
        device: "cpu", "cuda", or "cuda:N".
        precision: What the convolutions compute in; see `unet.inference.precision.resolved`.
        batch_size: Images per batch, or None for as many as hold `batch_pixels`, at least 1 and at most 64.
        batch_pixels: Of a batch; None for a quarter of a million on a CPU, four million on a GPU.
        batches: Images per batch by height and width, where that was measured; goes before `batch_pixels`.
        thresholds: See `unet.inference.decision.decide`.
        tile: Core of tiles in px, a multiple of 16; 0 for never; None for `AUTO_CORE` where an image has more
            than `WHOLE_PIXELS`.
        approximate: Tile a bilinear network all the same.
        normalize: Mean and standard deviation of each channel in [0, 1], which the input is brought to 0 and
            1 by; None where the network was trained on [0, 1].
        plain_threads: CPU threads of the plain pass that decides ties; None for this process's number.
            Pytorch's fp32 convolution depends on it, so a fleet must agree on one.
        fused: Convolution and ReLU in one pass, where no activation can overflow; None for on a CPU alone. On a GPU it
            gives other last bits, and a fleet must agree on it too.

    Attributes:
        lanes: Batches that it computes at once, each called for by another thread. Two: on a GPU one is copied or added
            up while another is computed. On a CPU batches beside each other wait for nothing, while threads that share
            one wait for each other, and for the decoder that took the core of one of them.
        fits: By height and width of images, how they went through: the wish, then what each shortage of memory left
            of it.

    Raises:
        DeviceError: There is no such device, or it cannot compute in that precision. It never falls
            back to another.
        NotTileable: `tile` is given, the network is bilinear, and `approximate` is not set.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int | None = None,
        batch_pixels: int | None = None,
        batches: Mapping[tuple[int, int], int] | None = None,
        thresholds: Sequence[float] | None = None,
        tile: int | None = None,
        approximate: bool = False,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        plain_threads: int | None = None,
        fused: bool | None = None,
    ) -> None:
        self.device = device_named(device)
        self.precision = resolved(precision, self.device)
        self.n_channels: int = model.n_channels
        self.n_classes: int = model.n_classes
        self.classes = max(2, self.n_classes)
        self.thresholds = thresholds
        self.tile = tile
        self.tileable = approximate or not model.bilinear
        self._exactly_tileable = not model.bilinear
        self.fits: dict[tuple[int, int], list[Fit]] = {}
        self._halo = HALO if getattr(model, "views", "off") == "off" else FLIPPED_HALO
        self._normalize = _normalization(normalize, self.device)
        # By a number of the host's a GPU does not divide: torch multiplies by its inverse there.
        self._white = 255.0 if self.device.type == "cpu" else torch.tensor(255.0, device=self.device)
        self._batch_size = batch_size
        self._batches = dict(batches or {})
        self._batch_pixels = batch_pixels or _BATCH_PIXELS[self.device.type]
        if tile:
            self._fit((MIN_SIDE, MIN_SIDE), tile)
        self._network_threads = torch.get_num_threads()
        self.lanes = 1 if self.device.type == "cpu" and self._network_threads % 2 else 2
        self._lanes = Lanes(self.device, self.lanes)
        # What is no convolution is over in microseconds, less than threads take to meet that share their cores with
        # decoders.
        self._other_threads = 1 if self.device.type == "cpu" else self._network_threads
        self._plain_threads = plain_threads or self._network_threads
        self._dtype = DTYPES[self.precision]
        self._plain = copy.deepcopy(model).requires_grad_(False).eval()
        self._moving = threading.Lock()
        self._plain_is_away = self.precision != "fp32"
        if not self._plain_is_away:
            self._plain = self._plain.to(self.device)
        network = folded(self._plain, self.device, self._dtype, largest=self._largest_input(), fused=fused)
        self._model = network.to(self.device, self._dtype, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.synchronize(self.device)  # the lanes' streams do not wait for this one
        self._tie, self._tested_logit = self._calibrated_tie() if self.precision == "fp32" else (0.0, 0.0)
        self._tile_tie = self._tie / TIE * TILE_TIE[self.device.type]
        self.segment(np.zeros((1, MIN_SIDE, MIN_SIDE, self.n_channels), np.uint8))
        self.fits.clear()

    def batch_size(self, height: int, width: int) -> int:
        """Images of this size, in px, that make a batch."""
        if self._batch_size is not None:
            return self._batch_size
        return self._batches.get((height, width)) or max(1, min(MAX_BATCH, self._batch_pixels // (height * width)))

    def lanes_of(self, height: int, width: int) -> int:
        """Batches of images of this size that are computed at once: `lanes`; on a CPU one where they are large."""
        return 1 if self.device.type == "cpu" and height * width > _ALONE_PIXELS else self.lanes

    def room(self, batch: int, height: int, width: int) -> NDArray[np.uint8]:
        """Where to put a batch of this size together, (B, H, W, C): from there it gets to the device quickest."""
        return room(self.device, (batch, height, width, self.n_channels))

    def through(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what goes through the network of images of this size: they themselves, or their tiles."""
        core = self._wish((height, width)).core
        rows, columns = (spans(side, core, self._halo)[0] for side in (height, width))
        return rows.stop, columns.stop

    def measured_batch(self, height: int, width: int) -> int:
        """The smallest batch of images (or tiles) of this size whose speed is within 3 % of the best."""
        speeds: dict[int, float] = {}
        with self._computing():
            for batch in (2**power for power in range(MAX_BATCH.bit_length())):
                images = np.zeros((batch, height, width, self.n_channels), np.uint8)
                try:
                    times = [self._timed(images) for _ in range(_TIMINGS)]
                except (RuntimeError, MemoryError) as error:
                    if not ran_out(error):
                        raise
                    break
                speeds[batch] = batch / min(times)
                if batch > 1 and speeds[batch] < speeds[batch // 2]:
                    break
        return min((batch for batch, speed in speeds.items() if speed >= 0.97 * max(speeds.values())), default=1)

    def _timed(self, images: NDArray[np.uint8]) -> float:
        started = time.perf_counter()
        decide(self._forward(self._on_device(images)), self.thresholds).labels.cpu()
        return time.perf_counter() - started

    @property
    def network(self) -> Any:
        """As it was given, to look at."""
        return self._plain

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return self._dtype

    def resident(self, batch: int, height: int, width: int) -> Callable[[], None]:
        """The bare forward pass, to be timed: the network alone, on random input in its own layout on the device.

        One lane's; see `lanes_of`.
        """
        x_BCHW = torch.rand(batch, self.n_channels, height, width, device=self.device)
        x_BCHW = x_BCHW.to(self._dtype, memory_format=torch.channels_last)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        threads = self._threads_of((height, width))

        def once() -> None:
            with self._computing():
                with _threads(threads):
                    self._model(x_BCHW)
                if self.device.type == "cuda":  # this lane's stream alone, so that the other's goes on
                    torch.cuda.current_stream(self.device).synchronize()

        return once

    def segment(
        self, images: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], Statistics]:
        """Class maps and statistics of a batch. Safe to call from several threads; `lanes` run at a time.

        Args:
            images: Pixels of images of one shape, (B, H, W, C), C as the network's channels.
            size: Height and width of the class maps, to which the logits are resized (bilinear,
                corners not aligned) before the decision; None for the images' own.

        Returns:
            The class of each pixel, (B, height, width), and `Statistics`. What falls outside fp16 or bf16 in an
            image is computed again in fp32.

        Raises:
            ValueError: The batch has another number of channels or a side below 16 px.
            NotTileable: The images need tiles, and the network is bilinear.
            MemoryError: Not even a tile of the least core fits, or the images may not be cut.
        """
        self._check(images.shape)
        shape = (images.shape[1], images.shape[2])
        labels = np.empty((len(images), *(size or shape)), np.uint8)
        with self._computing() as lane, _threads(self._other_threads):
            # An image of many batches gains nothing from another, and is decided for itself.
            alone = shape[0] * shape[1] > WHOLE_PIXELS
            parts = [slice(index, index + 1) for index in range(len(images))] if alone else [slice(0, len(images))]
            network = self._fast(self._threads_of(shape))
            found = [
                self._fitting(shape, partial(self._segmented, images[part], labels[part], size or shape, network, lane))
                for part in parts
            ]
        return labels, found[0] if len(found) == 1 else _joined(found)

    def segment_rows(
        self, read: Read, height: int, width: int, write: Callable[[NDArray[np.uint8]], None]
    ) -> Statistics:
        """Class map and statistics of one image that need not be in memory. Likewise safe.

        The class map equals `segment`'s for a network of transposed up-sampling.

        Args:
            read: Gives rows from start to stop, (1, rows, W, C); starts never decrease.
            height: Of the image, in px.
            width: Likewise.
            write: Is given the class map's rows, (rows, W), from top to bottom.

        Raises:
            NotTileable: The network is bilinear.
            MemoryError: Not even a tile of the least core fits.
        """
        self._check((1, height, width, self.n_channels))
        statistics = Statistics.none(1, self.classes, self.n_channels)
        shape = (height, width)
        with self._computing(), _threads(self._other_threads):
            network = self._fast(self._network_threads)
            for row in spans(height, self._wish(shape).core, self._halo):
                top, bottom = reach(row, height, self._halo)
                strip = _Strip(read(top, bottom), top, shape)
                band, part = self._fitting(shape, partial(self._band, strip, row, network))
                if self._overflowed(part):
                    band, part = self._fitting(shape, partial(self._band, strip, row, self._plain_forward))
                statistics.add(part)
                write(band)
        return statistics

    def _band(self, strip: _Strip, row: Span, network: Network, fit: Fit) -> tuple[NDArray[np.uint8], Statistics]:
        """Class map (rows, W) of a row of tiles of one image, and what it adds to the image's statistics."""
        statistics = Statistics.none(1, self.classes, self.n_channels)
        band = np.empty((row.core_stop - row.core_start, strip.shape[1]), np.uint8)
        referee = self._referee(strip)
        for part in within(row, fit.core, self._halo):
            rows_BHWC = strip.pixels[:, part.start - strip.top : part.stop - strip.top]
            for piece in self._row_pieces(rows_BHWC, part, fit, network):
                decision, _ = self._counted(piece, self._decided(piece, referee), statistics)
                top, right = piece.top - row.core_start, piece.left + piece.logits.shape[3]
                band[top : top + piece.logits.shape[2], piece.left : right] = decision.labels[0].numpy()
        return band, statistics

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[3] != self.n_channels:
            raise ValueError(f"the network takes (B, H, W, {self.n_channels}) batches, got {shape}")
        if min(shape[1:3]) < MIN_SIDE:
            raise ValueError(f"the network needs sides of at least {MIN_SIDE} px, got {shape[2]}×{shape[1]}")

    # What fits -----------------------------------------------------------------------------------

    def _beyond(self, shape: tuple[int, int]) -> bool:
        return self.tile != 0 and shape[0] * shape[1] > WHOLE_PIXELS

    def _wish(self, shape: tuple[int, int]) -> Fit:
        core = self.tile if self.tile is not None else AUTO_CORE[self.device.type] if self._beyond(shape) else 0
        return self._fit(shape, core)

    def _fit(self, shape: tuple[int, int], core: int) -> Fit:
        if core and not self.tileable:
            raise NotTileable(_NOT_TILEABLE)
        height, width = (spans(side, core, self._halo)[0] for side in shape)
        return Fit(self.batch_size(height.stop, width.stop), core)

    def _fitting(self, shape: tuple[int, int], work: Callable[[Fit], T]) -> T:
        """Do something with as little at once as memory asks for. What ran out is begun anew."""
        if shape not in self.fits:
            self.fits[shape] = [self._wish(shape)]
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
                if tried[-1] is fit:  # else another lane ran out of the same memory
                    tried.append(smaller)
            # Outside the handler, whose traceback holds on to what filled the memory.
            self._lanes.forget()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _smaller(self, fit: Fit, shape: tuple[int, int]) -> Fit | None:
        """Half the batch, down to one; then tiles of half the side. None where that is no network's own result."""
        if fit.batch > 1:
            return fit._replace(batch=fit.batch // 2)
        if self.tile == 0 or not self.tileable:
            return None
        core = (fit.core or max(shape)) // 2 // GRID * GRID
        return Fit(1, core) if core >= _LEAST_CORE else None

    def _too_large(self, fit: Fit, shape: tuple[int, int]) -> str:
        if fit.core:
            return f"not even a tile of {fit.core} px and its halo fits into memory; give workers more of it"
        if self.tile == 0:
            why = "inference.tile = 0 never cuts it"
        else:
            why = "it is too small to be cut" if self.tileable else "a bilinear network's tiles are not exact"
        return f"one image of {shape[1]}×{shape[0]} px does not fit into memory, and {why}; give workers more memory"

    # Passes --------------------------------------------------------------------------------------

    def _segmented(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        size: tuple[int, int],
        network: Network,
        lane: Lane | None,
        fit: Fit,
    ) -> Statistics:
        statistics = Statistics.none(len(images), self.classes, self.n_channels)
        again: set[int] = set()
        inner = (images.shape[1], images.shape[2])
        fast = network != self._plain_forward
        has_plain_pass = self._has_plain_pass(inner, fit)
        settle = fast and not has_plain_pass
        if lane is not None and not fit.core and size == inner:
            pieces = self._whole_pieces(images, fit, network, lane)
        else:
            pieces = self._pieces(images, fit, network)
        if size != inner:
            pieces = self._resized_pieces(pieces, images, size, statistics, settle=settle)
        for piece in pieces:
            decided = self._decided(piece, self._referee_of(images[piece.images]) if settle and size == inner else None)
            decision, tied = self._counted(piece, decided, statistics, ties=fast and has_plain_pass)
            again |= tied
            bottom, right = piece.top + piece.logits.shape[2], piece.left + piece.logits.shape[3]
            labels[piece.images, piece.top : bottom, piece.left : right] = decision.labels.numpy()
        if fast:
            again |= self._overflowed(statistics)
            for index in sorted(again):
                one, fit = slice(index, index + 1), self._plain_fit(inner)
                plain = self._segmented(images[one], labels[one], size, self._plain_forward, None, fit)
                statistics.replace_decision(index, plain)
        return statistics

    def _has_plain_pass(self, shape: tuple[int, int], fit: Fit) -> bool:
        """Whether ties are decided by the network as it is on the whole image, as predict.py would."""
        if not self._exactly_tileable:
            return not self._beyond(shape)
        cut_for_memory = 0 < fit.core < (self._wish(shape).core or max(shape))
        return shape[0] * shape[1] <= WHOLE_PIXELS and not cut_for_memory

    def _plain_fit(self, shape: tuple[int, int]) -> Fit:
        return Fit(1, self._wish(shape).core if self._beyond(shape) else 0)

    def _overflowed(self, statistics: Statistics) -> set[int]:
        return set() if self.precision == "fp32" else set(np.flatnonzero(~statistics.finite).tolist())

    def _whole_pieces(self, images: NDArray[np.uint8], fit: Fit, network: Network, lane: Lane) -> Iterator[_Piece]:
        """Images that are not cut, decided on the way."""
        for start in range(0, len(images), fit.batch):
            part = slice(start, min(start + fit.batch, len(images)))
            found = lane.run(partial(self._whole, network), _as_tensor(images[part]))
            logits_BKHW, total_BC, squares_BC, *decision = found
            yield _Piece(part, 0, 0, logits_BKHW, (total_BC, squares_BC), Decision(*decision))

    def _whole(self, network: Network, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Logits of whole images, `moments` of their pixels, and their `Decision`: all that is done on the device."""
        values_BHWC = pixels_BHWC.float()
        summed = moments(values_BHWC)  # before the network, which scales in place
        logits_BKHW = network(values_BHWC)
        return (logits_BKHW, *summed, *decide(logits_BKHW, self.thresholds))

    def _pieces(self, images: NDArray[np.uint8], fit: Fit, network: Network) -> Iterator[_Piece]:
        """Logits of images, which they cover once."""
        for row in spans(images.shape[1], fit.core, self._halo):
            yield from self._row_pieces(images[:, row.start : row.stop], row, fit, network)

    def _row_pieces(self, strip_BHWC: NDArray[np.uint8], row: Span, fit: Fit, network: Network) -> Iterator[_Piece]:
        for group in _groups(spans(strip_BHWC.shape[2], fit.core, self._halo), len(strip_BHWC), fit.batch):
            crops = [strip_BHWC[part, :, column.start : column.stop] for column, part in group]
            crop_BHWC = crops[0] if len(crops) == 1 else np.concatenate(crops)
            pixels_BHWC = self._on_device(crop_BHWC)
            offset = 0
            kept = []
            for column, part in group:
                here = slice(offset, offset := offset + part.stop - part.start)
                kept.append((column, part, here, moments(pixels_BHWC[here, row.core, column.core])))
            logits_BKHW = network(pixels_BHWC)
            for column, part, here, summed in kept:
                core_BKHW = logits_BKHW[here, :, row.core, column.core]
                yield _Piece(part, row.core_start, column.core_start, core_BKHW, summed)

    def _resized_pieces(
        self,
        pieces: Iterator[_Piece],
        images: NDArray[np.uint8],
        size: tuple[int, int],
        statistics: Statistics,
        *,
        settle: bool,
    ) -> Iterator[_Piece]:
        """Logits at another size: stitched first, since every one comes from its neighbours. Counts the input."""
        batch, height, width, _ = images.shape
        stitched_BKHW: Tensor | None = None
        for piece in pieces:
            part, top, left, logits_BKHW = piece[:4]
            assert piece.moments is not None
            statistics.add_input(part, logits_BKHW.shape[2] * logits_BKHW.shape[3], *on_host(*piece.moments))
            if logits_BKHW.shape[0] == batch and logits_BKHW.shape[2:] == (height, width):
                # In one layout, with tiles and without: the resizing rounds otherwise in another.
                stitched_BKHW = logits_BKHW.contiguous() if settle else logits_BKHW
                continue
            if stitched_BKHW is None:
                stitched_BKHW = logits_BKHW.new_empty((batch, self.n_classes, height, width))
            bottom, right = top + logits_BKHW.shape[2], left + logits_BKHW.shape[3]
            stitched_BKHW[part, :, top:bottom, left:right] = logits_BKHW
        assert stitched_BKHW is not None
        resized_BKHW = self._resized(stitched_BKHW, size)
        if settle and self._settled_before_resizing(stitched_BKHW, resized_BKHW, images):
            resized_BKHW = self._resized(stitched_BKHW, size)
        rows = max(1, _DECIDED_PIXELS // (batch * size[1]))
        for top in range(0, size[0], rows):
            yield _Piece(slice(0, batch), top, 0, resized_BKHW[:, :, top : top + rows])

    def _counted(
        self, piece: _Piece, decision: Decision, statistics: Statistics, *, ties: bool = False
    ) -> tuple[Decision, set[int]]:
        """The decision on the host, all of it fetched at once, and the images that have a tie."""
        near = [self._near_a_tie(decision, piece.logits)] if ties and self._tie else []
        summed = piece.moments or ()
        found = on_host(*decision, *summed, *near)
        fetched = Decision(*found[: len(decision)])
        if summed:
            pixels = piece.logits.shape[2] * piece.logits.shape[3]
            statistics.add_input(piece.images, pixels, *found[len(decision) : len(decision) + 2])
        statistics.add_decision(piece.images, fetched, piece.top, piece.left)
        return fetched, {piece.images.start + int(index) for index in found[-1].nonzero()[:, 0]} if near else set()

    def _resized(self, logits_BKHW: Tensor, size: tuple[int, int]) -> Tensor:
        with _threads(self._network_threads):
            return F.interpolate(logits_BKHW, size, mode="bilinear")

    # Ties without a plain pass -------------------------------------------------------------------

    def _referee(self, strip: _Strip) -> Referee | None:
        """None where ties are no more than what precision or network cost anyway."""
        if not self._tile_tie or not self._exactly_tileable:
            return None
        return Referee(strip.shape, self._halo, strip.crop, lambda crop: self._forward(self._on_device(crop)))

    def _referee_of(self, image_BHWC: NDArray[np.uint8]) -> Referee | None:
        """Of an image that is in memory."""
        return self._referee(_Strip(image_BHWC, 0, (image_BHWC.shape[1], image_BHWC.shape[2])))

    def _decided(self, piece: _Piece, referee: Referee | None) -> Decision:
        decision = piece.decision or decide(piece.logits, self.thresholds)
        if referee is None or not bool((decision.margin < self._tile_bound(piece.logits)).any()):
            return decision
        rows, columns = self._near(piece.logits)
        logits_NK = referee.logits(rows + piece.top, columns + piece.left)
        # In fp64, where what lies at the end of a vector is rounded like the rest as far as anyone can tell.
        labels = decide(logits_NK.double().T[None, :, :, None], self.thresholds).labels.view(-1)
        return decide(piece.logits, self.thresholds, Settled(rows, columns, labels))

    def _settled_before_resizing(self, stitched_BKHW: Tensor, resized_BKHW: Tensor, images: NDArray[np.uint8]) -> bool:
        """Put the referee's logits under every tie of the resized ones; whether there was any."""
        any_ = False
        for index in range(len(images)):
            one = slice(index, index + 1)
            referee = self._referee_of(images[one])
            if referee is None:
                break
            rows, columns = self._near(resized_BKHW[one])
            if not len(rows):
                continue
            size, shape = ((tensor.shape[2], tensor.shape[3]) for tensor in (resized_BKHW, stitched_BKHW))
            rows, columns = neighbours(rows, columns, size, shape)
            stitched_BKHW[index, :, rows, columns] = referee.logits(rows, columns).T
            any_ = True
        return any_

    def _near(self, logits_1KHW: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of one image's ties."""
        near_HW = margins(logits_1KHW, self.thresholds)[0] < self._tile_bound(logits_1KHW)
        rows, columns = near_HW.nonzero(as_tuple=True)
        return rows, columns

    def _tile_bound(self, logits_BKHW: Tensor) -> Tensor:
        # A tile of small logits rounds no finer where it is their terms that are large.
        return self._tile_tie * self._largest(logits_BKHW).clamp(min=self._tested_logit)

    def _on_device(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        return _as_tensor(pixels_BHWC).to(self.device, non_blocking=True).float()

    def _largest_input(self) -> float:
        """Magnitude of what the network may see."""
        ends_BHWC = torch.tensor([0.0, 255.0], device=self.device).view(2, 1, 1, 1).repeat(1, 1, 1, self.n_channels)
        return float(self._scaled(ends_BHWC).abs().max())

    def _scaled(self, pixels_BHWC: Tensor) -> Tensor:
        # Divided, not multiplied by 1/255: the product differs from Pytorch-UNet's quotient for 126 of 256 values.
        x_BHWC = pixels_BHWC.div_(self._white)
        if self._normalize is not None:
            mean_C, std_C = self._normalize
            x_BHWC = x_BHWC.sub_(mean_C).div_(std_C)
        return x_BHWC.permute(0, 3, 1, 2)

    def _fast(self, threads: int) -> Network:
        return partial(self._forward, threads=threads)

    def _threads_of(self, shape: tuple[int, int]) -> int:
        """Of one lane."""
        return self._network_threads // self.lanes_of(*shape)

    def _forward(self, pixels_BHWC: Tensor, threads: int | None = None) -> Tensor:
        x_BCHW = self._scaled(pixels_BHWC).to(self._dtype)
        with _threads(threads or self._network_threads):
            logits: Tensor = self._model(x_BCHW)
        return logits.float()

    def _plain_forward(self, pixels_BHWC: Tensor) -> Tensor:
        with _threads(self._plain_threads):
            logits: Tensor = self._plain_network()(self._scaled(pixels_BHWC).contiguous())
        return logits

    def _plain_network(self) -> Any:
        """On the device, where it comes only when it is needed."""
        with self._moving:
            if self._plain_is_away:
                self._plain = self._plain.to(self.device)
                if self.device.type == "cuda":
                    torch.cuda.current_stream(self.device).synchronize()  # the other lane's stream does not wait
                self._plain_is_away = False
        return self._plain

    def _calibrated_tie(self) -> tuple[float, float]:
        """`TIE` times the difference between the two passes, as a share of the largest logit, and that logit."""
        generator = torch.Generator().manual_seed(0)
        pixels_BHWC = 255 * torch.rand(1, _TEST_SIDE, _TEST_SIDE, self.n_channels, generator=generator).to(self.device)
        with self._computing():
            plain_BKHW = self._plain_forward(pixels_BHWC.clone())
            share = self._network_threads // self.lanes
            differences = [
                float((self._forward(pixels_BHWC.clone(), threads) - plain_BKHW).abs().max())
                for threads in dict.fromkeys((share, self._network_threads))
            ]
        largest = max(float(plain_BKHW.abs().max()), torch.finfo(torch.float32).tiny)
        return TIE * max(differences) / largest, largest

    def _near_a_tie(self, decision: Decision, logits_BKHW: Tensor) -> Tensor:
        """Which images have one, (B,)."""
        return decision.margin < self._tie * self._largest(logits_BKHW)

    @contextmanager
    def _computing(self) -> Iterator[Lane]:
        exactly = _IEEE_FP32.on() if self.device.type == "cuda" else nullcontext()
        with self._lanes.one() as lane, torch.inference_mode(), exactly:
            yield lane

    @staticmethod
    def _largest(logits_BKHW: Tensor) -> Tensor:
        # As they lie in memory, channels last: a reduction that jumps costs ten times as much.
        logits_BHWK = logits_BKHW.permute(0, 2, 3, 1)
        return torch.maximum(-logits_BHWK.amin(dim=(1, 2, 3)), logits_BHWK.amax(dim=(1, 2, 3)))


def _groups(columns: list[Span], images: int, batch: int) -> Iterator[list[tuple[Span, slice]]]:
    """Tiles of a row of tiles that go through together: of each column some images that follow one another."""
    group: list[tuple[Span, slice]] = []
    room = batch
    for column in columns:
        start = 0
        while start < images:
            stop = min(images, start + room)
            group.append((column, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield group
                group, room = [], batch
    if group:
        yield group


def _joined(found: list[Statistics]) -> Statistics:
    columns = zip(*(vars(statistics).values() for statistics in found), strict=True)
    return Statistics(*(np.concatenate(column) for column in columns))


def _normalization(
    normalize: tuple[Sequence[float], Sequence[float]] | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    if normalize is None:
        return None
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in normalize)
    return mean, std


class _IeeeFp32:
    """fp32 means fp32: without this a GPU rounds convolution inputs to TF32's 10 bits.

    The setting is one for the whole process: it is what it was when the last that computes has left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._allowed = True

    @contextmanager
    def on(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._allowed = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    torch.backends.cudnn.allow_tf32 = self._allowed


_IEEE_FP32 = _IeeeFp32()


def _as_tensor(pixels_BHWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.require(pixels_BHWC, requirements="W"))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)
