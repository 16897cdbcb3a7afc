"""Numbers about each band of an image: mean, standard deviation, ends and percentiles, over all of its rows.

An image comes in blocks of rows, so it need not be in memory. The result does not depend on the blocks. NaN is no data
and counts for nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIXELS = 2**20
"""Pixels counted at a time; counting takes eight bytes for each."""

_HALF = 16
"""Bits of a number that are counted at a time."""

_SIGN = np.uint32(1 << 31)


@dataclass(frozen=True)
class Measure:
    """Numbers about one band. A band without data has zeros.

    Attributes:
        mean: Mean.
        std: Standard deviation, with n as the divisor.
        low: Smallest number.
        high: Largest number.
        ranked: The percentiles asked for, as NumPy interpolates them.
    """

    mean: float = 0.0
    std: float = 0.0
    low: float = 0.0
    high: float = 0.0
    ranked: tuple[float, ...] = ()


def measured(
    blocks: Callable[[], Iterable[NDArray[Any]]], channels: int, *, percentiles: Sequence[float], moments: bool
) -> list[Measure]:
    """Measure each band of an image.

    Args:
        blocks: Returns the rows from the top on, (rows, W, C), of one dtype: uint8, uint16, int16, float16 or float32.
            Called up to three times.
        channels: Number of bands.
        percentiles: Percentiles to find, in 0 … 100.
        moments: Whether mean and standard deviation are wanted.
    """
    kind = next(iter(blocks())).dtype
    if kind.kind != "f":
        return _of_integers(blocks, channels, np.iinfo(kind), percentiles)
    ends = _ends(blocks, channels)
    means = _row_means(blocks, [0.0] * channels, channels, power=1) if moments else [0.0] * channels
    variances = _row_means(blocks, means, channels, power=2) if moments else means
    ranked = _ranked(blocks, channels, percentiles) if percentiles else [()] * channels
    return [
        Measure(mean, math.sqrt(variance), *end, found)
        for mean, variance, end, found in zip(means, variances, ends, ranked, strict=True)
    ]


def _parts(blocks: Callable[[], Iterable[NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    for block in blocks():
        rows = max(1, _PIXELS // block.shape[1])
        for top in range(0, len(block), rows):
            yield block[top : top + rows]


def _of_integers(
    blocks: Callable[[], Iterable[NDArray[Any]]], channels: int, kind: Any, percentiles: Sequence[float]
) -> list[Measure]:
    """Measure integers of up to 16 bits by counting each number, in one pass, exactly."""
    counts = np.zeros((channels, kind.max - kind.min + 1), np.int64)
    for part in _parts(blocks):
        for band in range(channels):
            counts[band] += np.bincount(part[..., band].ravel().astype(np.int64) - kind.min, minlength=counts.shape[1])
    return [_of_counts(of_band, kind.min, percentiles) for of_band in counts]


def _of_counts(counts: NDArray[np.int64], first: int, percentiles: Sequence[float]) -> Measure:
    present = np.flatnonzero(counts)
    numbers, times = [int(at) + first for at in present], counts[present].tolist()
    pixels = sum(times)
    total = sum(number * count for number, count in zip(numbers, times, strict=True))
    squares = sum(number * number * count for number, count in zip(numbers, times, strict=True))
    std = math.sqrt(pixels * squares - total * total) / pixels
    until = np.cumsum(times)

    def at(rank: int) -> float:
        return float(numbers[int(np.searchsorted(until, rank, side="right"))])

    ranked = tuple(_interpolated(at, pixels, percentile) for percentile in percentiles)
    return Measure(total / pixels, std, float(numbers[0]), float(numbers[-1]), ranked)


def _interpolated(at: Callable[[int], float], pixels: int, percentile: float) -> float:
    """Return a percentile, interpolated between the two numbers of the nearest ranks."""
    place = percentile / 100 * (pixels - 1)
    rank = min(int(place), pixels - 1)
    low, high = at(rank), at(min(rank + 1, pixels - 1))
    return low + (high - low) * (place - rank)


def _ends(blocks: Callable[[], Iterable[NDArray[Any]]], channels: int) -> list[tuple[float, float]]:
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for part in _parts(blocks):
        low = np.fmin(low, np.fmin.reduce(part, axis=(0, 1)))
        high = np.fmax(high, np.fmax.reduce(part, axis=(0, 1)))
    return [(float(a), float(b)) if a <= b else (0.0, 0.0) for a, b in zip(low, high, strict=True)]


def _row_means(
    blocks: Callable[[], Iterable[NDArray[Any]]], centres: Sequence[float], channels: int, *, power: int
) -> list[float]:
    """Return the mean of a power of the distance from a centre, by sums of rows: these do not depend on the blocks."""
    sums: list[list[float]] = [[] for _ in range(channels)]
    pixels = [0] * channels
    for part in _parts(blocks):
        for band in range(channels):
            distance = part[..., band].astype(np.float64) - centres[band]
            pixels[band] += int(np.count_nonzero(distance == distance))  # noqa: PLR0124 - false for NaN
            sums[band] += np.nansum(distance**power, axis=1).tolist()
    return [math.fsum(found) / max(1, count) for found, count in zip(sums, pixels, strict=True)]


def _ranked(
    blocks: Callable[[], Iterable[NDArray[Any]]], channels: int, percentiles: Sequence[float]
) -> list[tuple[float, ...]]:
    """Return percentiles of floats, exactly: their bits are counted, the upper half first, then the lower half."""
    upper = np.zeros((channels, 1 << _HALF), np.int64)
    for part in _parts(blocks):
        for band in range(channels):
            upper[band] += np.bincount(_keys(part[..., band]) >> _HALF, minlength=1 << _HALF)
    until = upper.cumsum(axis=1)
    pixels = until[:, -1].tolist()
    wanted = [sorted({rank for p in percentiles for rank in _ranks(count, p)}) for count in pixels]
    places = [np.searchsorted(until[band], ranks, side="right").tolist() for band, ranks in enumerate(wanted)]
    lower = [{place: np.zeros(1 << _HALF, np.int64) for place in of_band} for of_band in places]
    for part in _parts(blocks):
        for band, counts in enumerate(lower):
            keys = _keys(part[..., band])
            for place, count in counts.items():
                inside = keys[keys >> _HALF == place] & ((1 << _HALF) - 1)
                count += np.bincount(inside, minlength=1 << _HALF)  # noqa: PLW2901 - added in place
    found: list[tuple[float, ...]] = []
    for band, count in enumerate(pixels):
        values = {
            rank: _number(place, lower[band][place], rank - int(until[band][place] - upper[band][place]))
            for rank, place in zip(wanted[band], places[band], strict=True)
        }
        found.append(tuple(_interpolated(values.__getitem__, count, p) if count else 0.0 for p in percentiles))
    return found


def _ranks(pixels: int, percentile: float) -> Iterator[int]:
    if pixels:
        rank = min(int(percentile / 100 * (pixels - 1)), pixels - 1)
        yield rank
        yield min(rank + 1, pixels - 1)


def _keys(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Return integers in the order of the floats, for all that are not NaN."""
    bits = np.ascontiguousarray(values[~np.isnan(values)], np.float32).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _number(place: int, counts: NDArray[np.int64], rank: int) -> float:
    key = np.uint32(place << _HALF | int(np.searchsorted(counts.cumsum(), rank, side="right")))
    bits = key ^ _SIGN if key & _SIGN else ~key
    return float(np.array([bits], np.uint32).view(np.float32)[0])
