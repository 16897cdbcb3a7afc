"""How fast a network could be: its arithmetic, and what a device makes of it with nothing else to do."""

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from maskfleet.unet.inference.segmenter import Segmenter

_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


class Forward(NamedTuple):
    """A bare forward pass: the network alone, on input that is on the device already.

    Attributes:
        images_per_second: Median of several measurements.
        tflops: The same in 10¹² floating-point operations per second, see `flops`.
        peak_share: Median of the ratios to `product_tflops`, each measured right after the pass.
    """

    images_per_second: float
    tflops: float
    peak_share: float


def flops(model: Any, height: int, width: int) -> float:
    """Floating-point operations of one image's convolutions.

    Two per multiply-add: a convolution of C channels to K with a kernel of k² costs 2 K C k² per output pixel, a
    transposed one as much per input pixel (Sze et al., "Efficient Processing of Deep Neural Networks", 2017, §III).
    What lies between, below 0.3 % of a U-Net's, does not count. Counted by torch, on shapes alone.
    """
    shapes = copy.deepcopy(model).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, model.n_channels, height, width, device="meta"))
    return float(counter.get_total_flops())


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What the device reaches in one large product of square matrices: the peak that a convolution can hope for."""
    side = _PRODUCT_SIDE[device.type]
    a, b = (torch.rand(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        product()
        return 2 * side**3 / seconds_per_pass(product, least_seconds=0.3) / 1e12


def seconds_per_pass(once: Callable[[], None], *, least_seconds: float) -> float:
    """Mean time of a pass, over at least so long; at least one."""
    started = time.perf_counter()
    passes = 0
    while not passes or time.perf_counter() - started < least_seconds:
        once()
        passes += 1
    return (time.perf_counter() - started) / passes


def images_per_second(segmenter: "Segmenter", batch: int, height: int, width: int, *, least_seconds: float) -> float:
    """Rate of the bare forward pass, in all lanes at once.

    Args:
        segmenter: Whose network, in its precision and on its device.
        batch: Images per pass.
        height: Of the images, in px.
        width: Likewise.
        least_seconds: Of the measurement.
    """
    lanes = [segmenter.resident(batch, height, width) for _ in range(segmenter.lanes_of(height, width))]

    def seconds(once: Callable[[], None]) -> float:
        once()
        together.wait()
        return seconds_per_pass(once, least_seconds=least_seconds)

    together = threading.Barrier(len(lanes))
    with ThreadPoolExecutor(len(lanes)) as pool:
        return sum(batch / found for found in pool.map(seconds, lanes))


def forward(
    segmenter: "Segmenter", height: int, width: int, *, batch: int | None = None, pairs: int = 3, seconds: float = 2.0
) -> Forward:
    """Measure a network's bare forward pass, in pairs with a matrix product of the same precision.

    Args:
        segmenter: Whose network, in its precision and on its device.
        height: Of the images, in px.
        width: Likewise.
        batch: Images per pass; None for the Segmenter's own.
        pairs: Measurements of both.
        seconds: That each takes at least.
    """
    batch = batch or segmenter.batch_size(height, width)
    per_image = flops(segmenter.network, height, width)
    rates, shares = [], []
    for _ in range(pairs):
        rate = images_per_second(segmenter, batch, height, width, least_seconds=seconds)
        rates.append(rate)
        shares.append(rate * per_image / 1e12 / product_tflops(segmenter.device, segmenter.dtype))
    rate = float(np.median(rates))
    return Forward(rate, rate * per_image / 1e12, float(np.median(shares)))
