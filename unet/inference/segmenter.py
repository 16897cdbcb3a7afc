"""A network resident on one device: images in, class maps and statistics out.

Knows nothing about files, jobs or shards. A constructed Segmenter is ready: weights on the device, batch normalisation
folded, one forward pass done.

In fp32 the mask of an image depends neither on its batch nor on its tiles, and equals that of Pytorch-UNet's
predict.py; `unet.inference.near_ties` says how, and for which images.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from maskfleet.unet import weights as weights_files
from maskfleet.unet.ensemble import Views
from maskfleet.unet.inference.decision import decide
from maskfleet.unet.inference.fitting import WHOLE_PIXELS, Fitting, Shape
from maskfleet.unet.inference.near_ties import TieBounds, rows_needed
from maskfleet.unet.inference.passes import Passes
from maskfleet.unet.inference.pieces import Strip
from maskfleet.unet.inference.resident import Resident
from maskfleet.unet.inference.statistics import Segmentation, Statistics
from maskfleet.unet.inference.streams import Stream, Streams, pinned_buffer
from maskfleet.unet.memory import keep_freed_memory
from maskfleet.unet.network import Network
from maskfleet.unet.pixels.arrays import image_of
from maskfleet.unet.pixels.batch import Pixels
from maskfleet.unet.pixels.normalization import Levels, Normalization
from maskfleet.unet.precision import Precision, device_named, resolved
from maskfleet.unet.process_state import IEEE_FP32, cpu_threads

Read = Callable[[int, int], NDArray[Any]]
"""Returns the rows of an image from start to stop, (1, rows, W, C)."""

_ALONE_PIXELS = 2**19
"""Images of more pixels get all threads of a CPU: they take long, and two of them take twice the memory."""


class Segmenter:
    """A network on a device, fed with batches of images of one shape.

    Args:
        model: The network, such as `unet.model.UNet` or `unet.ensemble.Ensemble`. It is copied.
        device: "cpu", "cuda", or "cuda:N".
        precision: Type of the convolutions; see `unet.precision.resolved`.
        batch_size: Images per batch, or None for `batches`, then `batch_pixels`, from 1 to 64 images.
        batch_pixels: Pixels per batch; None for a quarter of a million on a CPU, four million on a GPU.
        batches: Measured images per batch, by height and width.
        thresholds: See `unet.inference.decision.decide`.
        tile: Core of tiles in px, a multiple of the network's grid; 0 for no tiles; None for tiles in images of more
            than 2²² pixels alone.
        approximate: Whether to cut images for a network whose tiles are not exact, too.
        normalize: Mean and standard deviation of each channel in [0, 1], as used in training; None for a network
            trained on [0, 1].
        declared: Normalisation of every image, instead of `normalize`; None for numbers in [0, 1].
        plain_threads: CPU threads of the plain pass that decides ties; None for this process's number. PyTorch's fp32
            convolution depends on it, so a fleet must agree on one number.
        fused: Whether convolution and ReLU are one pass, if no activation can overflow; None for on a CPU alone. On a
            GPU the last bits depend on it, so a fleet must agree on it, too.

    Attributes:
        concurrency: Batches computed at once, for as many calling threads. Two: a GPU copies or adds up one batch while
            it computes the other. On a CPU two batches with half of the threads each never wait, while threads sharing
            a batch wait for each other, and for a decoder that took the core of one of them.
        fits: By height and width of images, the requested fit, followed by the result of each shortage of memory.

    Raises:
        DeviceError: There is no such device, or it cannot compute in that precision. It never falls back to another.
        NotTileable: `tile` is given, tiles of the network are not exact, and `approximate` is not set.
        ValueError: `tile` is not a multiple of the network's grid.
    """

    def __init__(
        self,
        model: Network,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int | None = None,
        batch_pixels: int | None = None,
        batches: Mapping[Shape, int] | None = None,
        thresholds: Sequence[float] | None = None,
        tile: int | None = None,
        approximate: bool = False,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        declared: Normalization | None = None,
        plain_threads: int | None = None,
        fused: bool | None = None,
    ) -> None:
        self.device = device_named(device)
        self.precision = resolved(precision, self.device)
        self.n_channels, self.n_classes, self.min_side = model.n_channels, model.n_classes, model.min_side
        self.classes = max(2, self.n_classes)
        self._declared = declared
        self._fitting = Fitting(
            model,
            self.device,
            tile=tile,
            approximate=approximate,
            batch_size=batch_size,
            batch_pixels=batch_pixels,
            batches=batches,
            release=self._release,
        )
        self.fits = self._fitting.fits
        self._threads = torch.get_num_threads()
        # The rest takes microseconds, less than threads take to meet while sharing their cores with decoders.
        self._other_threads = 1 if self.device.type == "cpu" else self._threads
        self.concurrency = 1 if self.device.type == "cpu" and self._threads % 2 else 2
        self._streams = Streams(self.device, self.concurrency)
        self._resident = Resident(
            model,
            device=self.device,
            precision=self.precision,
            normalize=None if declared else normalize,
            declared=declared is not None,
            plain_threads=plain_threads,
            fused=fused,
        )
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.synchronize(self.device)  # the streams do not wait for the default stream
        self._passes = Passes(
            self._resident,
            self._fitting,
            bounds=self._measured_bounds(),
            thresholds=thresholds,
            threads=self._threads,
        )
        self.segment(np.zeros((1, self.min_side, self.min_side, self.n_channels), np.uint8))
        self.fits.clear()

    @classmethod
    def load(
        cls,
        weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        thresholds: Sequence[float] | None = None,
        tta: Views = "off",
        batch_size: int | None = None,
        tile: int | None = None,
        approximate: bool = False,
    ) -> Self:
        """Return a Segmenter for weights in local files.

        Args:
            weights: Path of a safetensors file, or name of a built-in model such as "nuclei"; several for an ensemble.
            device: "auto" for a GPU if there is one, "cpu", "cuda", or "cuda:N".
            precision: Type of the convolutions. "auto" is the fastest that the device has, "fp32" the exact one.
            thresholds: Probability above which a pixel may be of a class, for each class after the first (and for the
                only one). None means 0.5 with one class, and the likeliest class with several.
            tta: Test-time augmentation: mean probabilities over the four flips, or all eight flips and quarter turns.
            batch_size: Images per batch; None for as many as suit the device.
            tile: See `Segmenter`.
            approximate: See `Segmenter`.

        Raises:
            FileNotFoundError: There are no such weights.
            WeightsError: A file holds no network of this package, or several networks do not fit together.
            DeviceError: There is no such device, or it cannot compute in that precision.
            NotTileable: `tile` is given, tiles of the network are not exact, and `approximate` is not set.
            ValueError: `tile` is not a multiple of the network's grid.
        """
        names = [weights] if isinstance(weights, str | os.PathLike) else weights
        loaded = weights_files.together([weights_files.load_local(name) for name in names], tta)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            loaded.model,
            device=device,
            precision=precision,
            batch_size=batch_size,
            thresholds=thresholds,
            tile=tile,
            approximate=approximate,
            normalize=loaded.normalize,
            declared=loaded.input,
        )

    @property
    def network(self) -> Any:
        """The network as given."""
        return self._resident.plain

    @property
    def dtype(self) -> torch.dtype:
        """Type of the convolutions."""
        return self._resident.dtype

    def batch_size(self, height: int, width: int) -> int:
        """Return the number of images of this size in px in a batch."""
        return self._fitting.batch_size(height, width)

    def concurrency_of(self, height: int, width: int) -> int:
        """Return the number of batches computed at once: `concurrency`, or one for large images on a CPU."""
        return 1 if self.device.type == "cpu" and height * width > _ALONE_PIXELS else self.concurrency

    def pinned_buffer(self, batch: int, height: int, width: int, dtype: str = "uint8") -> NDArray[Any]:
        """Return memory for a batch of this size, (B, H, W, C), from which copies to the device are fastest."""
        return pinned_buffer(self.device, (batch, height, width, self.n_channels), dtype)

    def forward_shape(self, height: int, width: int) -> Shape:
        """Return the size of the network's input for images of this size: the images' own, or their tiles'."""
        return self._fitting.forward_shape((height, width))

    @property
    def thresholds(self) -> Sequence[float] | None:
        """Thresholds of the classes; see `unet.inference.decision.decide`."""
        return self._passes.thresholds

    def __call__(self, images: NDArray[Any] | Sequence[NDArray[Any]]) -> list[Segmentation]:
        """Segment images of any sizes.

        Args:
            images: One array (B, H, W, C), or arrays (H, W, C), C as in the network. A network of one channel also
                takes (H, W). They are uint8, uint16 or floats in [0, 1]; other numbers need a declared normalisation.

        Returns:
            Class map and numbers of each image, in the given order.

        Raises:
            TypeError: An image has numbers without a known range of values.
            ValueError: An image has another number of channels, or a side below the network's `min_side`.
            NotTileable: An image needs tiles, and tiles of the network are not exact.
            MemoryError: An image does not fit into memory.
            FloatingPointError: The network's logits are not finite.
        """
        given = [
            image_of(np.asarray(image), number, channels=self.n_channels, declared=self._declared)
            for number, image in enumerate(images)
        ]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, (array, _) in enumerate(given):
            alike.setdefault((array.dtype, *array.shape), []).append(number)
        found: dict[int, Segmentation] = {}
        for (_, *shape), numbers in alike.items():
            batch = self.batch_size(*shape[:2])
            for start in range(0, len(numbers), batch):
                some = numbers[start : start + batch]
                stated = [levels for number in some if (levels := given[number][1]) is not None]
                labels, statistics = self.segment(
                    np.stack([given[number][0] for number in some]), levels=stated or None
                )
                for number, classes, finite, row in zip(
                    some, labels, statistics.finite, statistics.rows(), strict=True
                ):
                    if not finite:
                        raise FloatingPointError(
                            f"the logits of image {number} contain NaN or infinity, even in fp32; use other weights"
                        )
                    found[number] = Segmentation(classes, row)
        return [found[number] for number in range(len(given))]

    def segment(
        self, images: NDArray[Any], size: Shape | None = None, *, levels: Sequence[Levels] | None = None
    ) -> tuple[NDArray[np.uint8], Statistics]:
        """Return class maps and statistics of a batch. Threads may share the Segmenter; `concurrency` run at a time.

        Args:
            images: Pixels of images of one shape, (B, H, W, C), C as in the network: uint8, uint16, int16, float16 or
                float32.
            size: Height and width of the class maps. The logits are resized to it (bilinear, corners not aligned)
                before the decision. None for the images' own.
            levels: Levels of each image; None for uint8 pixels, seen as v / 255, and for float32 numbers that are
                normalised already.

        Returns:
            The class of each pixel, (B, height, width), and the `Statistics`. An image that overflows fp16 or bf16 is
            computed again in fp32.

        Raises:
            ValueError: The batch has another number of channels, or a side below the network's `min_side`.
            NotTileable: The images need tiles, and tiles of the network are not exact.
            MemoryError: Not even a tile of the smallest core fits, or the images may not be cut.
        """
        self._check(images.shape)
        shape = (images.shape[1], images.shape[2])
        labels = np.empty((len(images), *(size or shape)), np.uint8)
        # An image of many batches gains nothing from another, and is decided by itself.
        alone = shape[0] * shape[1] > WHOLE_PIXELS
        parts = [slice(index, index + 1) for index in range(len(images))] if alone else [slice(0, len(images))]
        with self._computing() as stream, cpu_threads(self._other_threads):
            work = partial(self._passes.segment, stream=stream, threads=self._threads_of(shape))
            pixels = Pixels.of(images, levels)
            found = [self._fitting.run(shape, partial(work, pixels.part(part), labels[part])) for part in parts]
        return labels, Statistics.joined(found)

    def segment_rows(
        self, read: Read, height: int, width: int, write: Callable[[NDArray[np.uint8]], None], *,
        levels: Levels | None = None,
    ) -> Statistics:  # fmt: skip
        """Segment one image that need not be in memory. Threads may share the Segmenter.

        The class map equals `segment`'s, for a network with exact tiles.

        Args:
            read: Returns rows from start to stop, (1, rows, W, C); starts never decrease.
            height: Height of the image in px.
            width: Width of the image in px.
            write: Takes the class map's rows, (rows, W), from top to bottom.
            levels: See `segment`.

        Raises:
            ValueError: The image has a side below the network's `min_side`.
            NotTileable: The image needs tiles, and tiles of the network are not exact.
            MemoryError: Not even a tile of the smallest core fits.
        """
        self._check((1, height, width, self.n_channels))
        statistics = self._resident.no_statistics(1)
        shape, tiling = (height, width), self._fitting.tiling
        with self._computing(), cpu_threads(self._other_threads):
            stated = None if levels is None else [levels]
            for row in tiling.spans(height, self._fitting.requested(shape).core):
                top, bottom = rows_needed(row, height, tiling)
                strip = Strip(Pixels.of(read(top, bottom), stated), top, shape)
                white = strip.pixels.white
                fast, plain = self._resident.fast_pass(self._threads, white), self._resident.plain_pass(white)
                band, part = self._fitting.run(shape, partial(self._passes.band, strip, row, forward=fast))
                if self._passes.overflowed(part):
                    band, part = self._fitting.run(shape, partial(self._passes.band, strip, row, forward=plain))
                statistics.add(part)
                write(band)
        return statistics

    def decided(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return class maps (B, H, W) by one fast pass over all images at once, for timing; ties are not looked for.

        Raises:
            RuntimeError: The batch does not fit into memory.
        """
        with self._computing():
            logits_BKHW = self._resident.forward(Pixels(images).on_device(self.device), self._threads)
            labels: NDArray[np.uint8] = decide(logits_BKHW, self.thresholds).labels.cpu().numpy()
        return labels

    def bare_pass(self, batch: int, height: int, width: int) -> Callable[[], None]:
        """Return the bare forward pass, for timing: the network alone, on random input on the device.

        It runs on one stream, with the CPU threads of one of `concurrency_of` batches.
        """
        x_BCHW = torch.rand(batch, self.n_channels, height, width, device=self.device)
        x_BCHW = x_BCHW.to(self.dtype, memory_format=torch.channels_last)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        threads = self._threads_of((height, width))

        def once() -> None:
            with self._computing():
                with cpu_threads(threads):
                    self._resident.fast(x_BCHW)
                if self.device.type == "cuda":  # this stream alone, so that the other one goes on
                    torch.cuda.current_stream(self.device).synchronize()

        return once

    @contextmanager
    def _computing(self) -> Iterator[Stream]:
        exact = IEEE_FP32.on() if self.device.type == "cuda" else nullcontext()
        with self._streams.one() as stream, torch.inference_mode(), exact:
            yield stream

    def _measured_bounds(self) -> TieBounds:
        if self.precision != "fp32":
            return TieBounds()
        with self._computing():
            numbers = (self._threads // self.concurrency, self._threads)
            return TieBounds.measured(self._resident, numbers)

    def _threads_of(self, shape: Shape) -> int:
        """CPU threads of one batch."""
        return self._threads // self.concurrency_of(*shape)

    def _release(self) -> None:
        self._streams.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[3] != self.n_channels:
            raise ValueError(f"the network takes (B, H, W, {self.n_channels}) batches, got {shape}")
        if min(shape[1:3]) < self.min_side:
            raise ValueError(f"the network needs sides of at least {self.min_side} px, got {shape[2]}×{shape[1]}")
