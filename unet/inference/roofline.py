"""Speed of a network on a device: its arithmetic, its bare forward pass, its segmentation, its best batch."""

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from maskfleet.unet.inference.fitting import MAX_BATCH
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.memory import ran_out
from maskfleet.unet.network import Network

_TIMINGS = 3
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


class Forward(NamedTuple):
    """Speed of a bare forward pass: the network alone, on input already on the device.

    Attributes:
        images_per_second: Median of several measurements.
        tflops: The same in 10¹² floating-point operations per second; see `flops`.
        peak_share: Median of the ratios to `product_tflops`, each measured right after the pass.
    """

    images_per_second: float
    tflops: float
    peak_share: float


def flops(model: Network, height: int, width: int) -> float:
    """Return the floating-point operations of one image's convolutions, counted by torch on shapes alone.

    A multiply-add is two operations: a convolution of C channels to K with a kernel of k² costs 2 K C k² per output
    pixel, a transposed one as much per input pixel (Sze et al., "Efficient Processing of Deep Neural Networks", 2017,
    §III). Other layers are not counted; in a U-Net they are below 0.3 %.
    """
    shapes = copy.deepcopy(model).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, model.n_channels, height, width, device="meta"))
    return float(counter.get_total_flops())


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of one large product of square matrices in TFLOPS: a bound on a convolution's speed."""
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
    """Return the mean time of a pass, over at least this long and at least one pass."""
    started = time.perf_counter()
    passes = 0
    while not passes or time.perf_counter() - started < least_seconds:
        once()
        passes += 1
    return (time.perf_counter() - started) / passes


def images_per_second(segmenter: Segmenter, batch: int, height: int, width: int, *, least_seconds: float) -> float:
    """Return the rate of the bare forward pass, with as many concurrent batches as in segmentation.

    Args:
        segmenter: The network in its precision on its device.
        batch: Images per pass.
        height: Height of the images in px.
        width: Width of the images in px.
        least_seconds: Shortest duration of the measurement.
    """
    passes = [segmenter.bare_pass(batch, height, width) for _ in range(segmenter.concurrency_of(height, width))]

    def seconds(once: Callable[[], None]) -> float:
        once()
        together.wait()
        return seconds_per_pass(once, least_seconds=least_seconds)

    together = threading.Barrier(len(passes))
    with ThreadPoolExecutor(len(passes)) as pool:
        return sum(batch / found for found in pool.map(seconds, passes))


def forward(
    segmenter: Segmenter, height: int, width: int, *, batch: int | None = None, pairs: int = 3, seconds: float = 2.0
) -> Forward:
    """Measure a network's bare forward pass, in pairs with a matrix product of the same precision.

    Args:
        segmenter: The network in its precision on its device.
        height: Height of the images in px.
        width: Width of the images in px.
        batch: Images per pass; None for the Segmenter's own.
        pairs: Number of measurements of both.
        seconds: Shortest duration of a measurement.
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


def seconds_of(segmenter: Segmenter, shape: tuple[int, int], passes: int = 2) -> float:
    """Return the shortest time per image of a shape, segmented in its batches, after a pass to warm up."""
    images = np.zeros((segmenter.batch_size(*shape), *shape, segmenter.n_channels), np.uint8)
    times = []
    for _ in range(1 + passes):
        started = time.perf_counter()
        segmenter.segment(images)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / len(images)


def best_batch(segmenter: Segmenter, height: int, width: int) -> int:
    """Return the smallest batch of images (or tiles) of this size whose speed is within 3 % of the best."""
    speeds: dict[int, float] = {}
    for batch in (2**power for power in range(MAX_BATCH.bit_length())):
        images = np.zeros((batch, height, width, segmenter.n_channels), np.uint8)
        try:
            times = [_seconds_of_batch(segmenter, images) for _ in range(_TIMINGS)]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            break
        speeds[batch] = batch / min(times)
        if batch > 1 and speeds[batch] < speeds[batch // 2]:
            break
    return min((batch for batch, speed in speeds.items() if speed >= 0.97 * max(speeds.values())), default=1)


def _seconds_of_batch(segmenter: Segmenter, images: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    segmenter.decided(images)
    return time.perf_counter() - started
