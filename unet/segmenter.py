"""A U-Net resident on one device: uint8 images in, class maps and statistics out.

Knows nothing about files, jobs or shards. A constructed Segmenter is ready: weights on the device,
batch normalisation folded, one forward pass done.

**Ties.** Floating-point sums depend on the order of their terms, and so on batch, memory layout and
folding. The difference is a few units in the last place, yet it can flip a pixel whose two best
classes are that close. In fp32 such pixels are found (the margin between the two best logits is
below `TIE`), and their image is decided by the plain pass: unfolded network, contiguous memory, one
image, which is the arithmetic of Pytorch-UNet's predict.py. So in fp32 an image's mask does not
depend on its batch, and equals that program's.
"""

import copy
import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.decision import Decision, Statistics, decide, moments
from unet.model import MIN_SIDE, DoubleConv

Precision = Literal["auto", "fp32", "bf16", "fp16"]

TIE = 16
"""Margins below this many times the difference between the fast and the plain pass, as seen on a test image, are ties.

The difference is taken as a share of the image's largest logit, since both grow together; it was
seen to be 4e-7 to 2e-6. The factor covers images that the test image does not resemble.
"""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH_PIXELS = {"cpu": 2**19, "cuda": 2**22}
_MAX_BATCH = 64
_TEST_SIDE = 96


class DeviceError(RuntimeError):
    """The device that was asked for is not there, or cannot do what was asked; the message says what to do."""


class Segmenter:
    """A network on a device, fed with batches of one shape.

    Args:
        model: A network with `n_channels` and `n_classes`, such as `unet.model.UNet`. It is copied.
        device: "cpu", "cuda", or "cuda:N".
        precision: What the convolutions compute in. "auto" is bf16 where the device has instructions
            for it, else fp32.
        batch_size: Images per batch, or None for as many as hold about half a million pixels on a CPU,
            four million on a GPU, at least 1 and at most 64.
        threshold: For a one-logit network, the probability above which a pixel is foreground.
        plain_threads: CPU threads of the plain pass that decides ties; None for this process's number.
            Pytorch's fp32 convolution depends on it, so a fleet must agree on one.

    Raises:
        DeviceError: There is no such device, or it cannot compute in that precision. It never falls
            back to another.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int | None = None,
        threshold: float = 0.5,
        plain_threads: int | None = None,
    ) -> None:
        self.device = _device(device)
        self.precision = resolve_precision(precision, self.device)
        self.n_channels: int = model.n_channels
        self.n_classes: int = model.n_classes
        self.classes = max(2, self.n_classes)
        self.threshold = threshold
        self._batch_size = batch_size
        self._plain_threads = plain_threads or torch.get_num_threads()
        self._dtype = _DTYPES[self.precision]
        plain = copy.deepcopy(model).requires_grad_(False).eval()
        self._plain = plain.to(self.device) if self.precision == "fp32" else None
        self._model = _folded(plain).to(self.device, self._dtype, memory_format=torch.channels_last)
        self._lock = threading.Lock()
        if self.device.type == "cpu":
            keep_freed_memory()
        self._tie = self._calibrated_tie() if self._plain is not None else 0.0
        self.segment(np.zeros((1, MIN_SIDE, MIN_SIDE, self.n_channels), np.uint8))

    def batch_size(self, height: int, width: int) -> int:
        """Images of this size, in px, that make a batch."""
        if self._batch_size is not None:
            return self._batch_size
        return max(1, min(_MAX_BATCH, _BATCH_PIXELS[self.device.type] // (height * width)))

    def segment(
        self, images: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], Statistics]:
        """Class maps and statistics of a batch. Safe to call from several threads; one runs at a time.

        Args:
            images: Pixels of images of one shape, (B, H, W, C), C as the network's channels.
            size: Height and width of the class maps, to which the logits are resized (bilinear,
                corners not aligned) before the decision; None for the images' own.

        Returns:
            The class of each pixel, (B, height, width), and `Statistics`.

        Raises:
            ValueError: The batch has another number of channels or a side below 16 px.
        """
        self._check(images)
        size = size or (images.shape[1], images.shape[2])
        with self._lock, torch.inference_mode(), _ieee_fp32():
            pixels_BHWC = (
                torch.from_numpy(np.require(images, requirements="W")).to(self.device, non_blocking=True).float()
            )
            input_sum, input_square_sum = moments(pixels_BHWC)
            # Divided, not multiplied by 1/255: the product differs from Pytorch-UNet's quotient for 126 of 256 values.
            x_BCHW = pixels_BHWC.div_(255).permute(0, 3, 1, 2)
            logits_BKHW = _resized(self._model(x_BCHW.to(self._dtype)).float(), size)
            decision = decide(logits_BKHW, self.threshold)
            labels = decision.labels.cpu().numpy()
            input_pixels = torch.full((len(images),), images.shape[1] * images.shape[2])
            statistics = _statistics(decision, input_pixels, input_sum, input_square_sum)
            if self._plain is not None:
                for index in self._tied(decision, logits_BKHW):
                    one = slice(index, index + 1)
                    again = decide(self._plain_logits(x_BCHW[one], size), self.threshold)
                    labels[one] = again.labels.cpu().numpy()
                    statistics.replace(
                        index, _statistics(again, input_pixels[one], input_sum[one], input_square_sum[one])
                    )
        return labels, statistics

    def _check(self, images: NDArray[np.uint8]) -> None:
        if images.ndim != 4 or images.shape[3] != self.n_channels:
            raise ValueError(f"the network takes (B, H, W, {self.n_channels}) batches, got {images.shape}")
        if min(images.shape[1:3]) < MIN_SIDE:
            raise ValueError(
                f"the network needs sides of at least {MIN_SIDE} px, got {images.shape[2]}×{images.shape[1]}"
            )

    def _plain_logits(self, x_1CHW: Tensor, size: tuple[int, int]) -> Tensor:
        assert self._plain is not None
        with _threads(self._plain_threads):
            return _resized(self._plain(x_1CHW.contiguous()), size)

    def _calibrated_tie(self) -> float:
        """`TIE` times the difference between the two passes, as a share of the largest logit."""
        generator = torch.Generator().manual_seed(0)
        x_BCHW = torch.rand(1, self.n_channels, _TEST_SIDE, _TEST_SIDE, generator=generator).to(self.device)
        with torch.inference_mode(), _ieee_fp32():
            plain_BKHW = self._plain_logits(x_BCHW, (_TEST_SIDE, _TEST_SIDE))
            fast_BKHW = self._model(x_BCHW.contiguous(memory_format=torch.channels_last))
        largest = max(float(plain_BKHW.abs().max()), torch.finfo(torch.float32).tiny)
        return TIE * float((fast_BKHW - plain_BKHW).abs().max()) / largest

    def _tied(self, decision: Decision, logits_BKHW: Tensor) -> list[int]:
        if not self._tie:  # nothing to fold: the two passes are one
            return []
        # As they lie in memory, channels last: a reduction that jumps costs ten times as much.
        largest_B = torch.maximum(*(bound.abs() for bound in _bounds(logits_BKHW.permute(0, 2, 3, 1))))
        return [int(index) for index in (decision.margin < self._tie * largest_B).nonzero()[:, 0]]


def _bounds(value_BHWK: Tensor) -> tuple[Tensor, Tensor]:
    return value_BHWK.amin(dim=(1, 2, 3)), value_BHWK.amax(dim=(1, 2, 3))


def _statistics(decision: Decision, *inputs: Tensor) -> Statistics:
    columns = (*decision[2:], *inputs)
    return Statistics(*(column.cpu().numpy() for column in columns))


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What `precision` means on a device.

    Raises:
        DeviceError: The device cannot compute in that precision.
    """
    if device.type == "cuda":
        fast = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False), "fp16": True}
        works = fast
    else:
        instructions = torch.cpu.get_capabilities()
        fast = {
            "bf16": any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")),
            "fp16": any(instructions.get(name) for name in ("avx512_fp16", "amx_fp16")),
        }
        # oneDNN computes both where the processor cannot, exactly and slowly: a way to try a GPU's precision.
        works = {
            "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        }
    if precision == "auto":
        return "bf16" if fast["bf16"] else "fp32"
    if precision != "fp32" and not works[precision]:
        raise DeviceError(f"{device} cannot compute in {precision}; set inference.precision to 'auto' or 'fp32'")
    return precision


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in _BATCH_PIXELS:
        raise DeviceError(f"device {name!r} is not supported; use 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"there is no {name}: PyTorch {torch.__version__} sees no GPU; check nvidia-smi and the CUDA build"
        )
    return device


def _folded(model: Any) -> Any:
    """A copy with every batch normalisation folded into the convolution before it."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, DoubleConv):
            layers: Any = block.double_conv
            for convolution, norm in ((0, 1), (3, 4)):
                layers[convolution] = fuse_conv_bn_eval(layers[convolution], layers[norm])
                layers[norm] = nn.Identity()
    return model


def keep_freed_memory() -> None:
    """Have glibc keep large blocks when they are freed instead of giving them back to the kernel.

    Torch's CPU allocator has no cache: without this every activation is mapped, faulted in page by
    page and unmapped again, which was seen to take 40 % of a small network's forward pass. Blocks can
    be kept in the main arena alone, so every thread is to use that one (20 % of a large network's).
    Threads that have allocated before keep the arena that they have; a process that starts with
    MALLOC_ARENA_MAX=1 has none of those.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(arena_max, 1)


@contextmanager
def _ieee_fp32() -> Iterator[None]:
    """fp32 means fp32: without this a GPU rounds convolution inputs to TF32's 10 bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


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


def _resized(logits_BKHW: Tensor, size: tuple[int, int]) -> Tensor:
    if logits_BKHW.shape[-2:] == torch.Size(size):
        return logits_BKHW
    return F.interpolate(logits_BKHW, size, mode="bilinear")
