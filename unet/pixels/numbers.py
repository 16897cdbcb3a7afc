"""Stored numbers: the types in which they travel to the device, and what the network sees of them.

Decoding processes use it too, so it knows no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.unet.pixels.measures import measured
from maskfleet.unet.pixels.normalization import DTYPES, Levels, Normalization

Blocks = Callable[[], Iterable[NDArray[Any]]]
"""Returns the rows of an image from the top on, (rows, W, C), as often as it is called."""


class Unstated(ValueError):
    """The numbers of an image have no known range; the message is a noun phrase with the remedy."""


def seen(values: NDArray[Any], levels: Levels) -> NDArray[np.float32]:
    """Return what the network sees of stored numbers (..., C), float32; 0 for no data (NaN)."""
    found = (values.astype(np.float64) - levels.offset) / levels.divisor
    return np.nan_to_num(found, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf).astype(np.float32)


def levels_of(declared: Normalization, channels: int, blocks: Blocks) -> Levels:
    """Return the levels of an image by a declared normalisation.

    Args:
        declared: The normalisation.
        channels: Bands of the image.
        blocks: The stored numbers; read only if the levels depend on them, at most three times.
    """
    if declared.range is not None:
        return _between([declared.range] * channels)
    if not declared.by_image:
        fixed = declared.fixed(channels)
        return Levels(tuple(fixed[:channels]), tuple(fixed[channels:]))
    percentiles, zscore = declared.percentile or (), declared.per_image == "zscore"
    found = measured(blocks, channels, percentiles=percentiles, moments=zscore)
    if zscore:
        return Levels(tuple(each.mean for each in found), tuple(each.std or 1.0 for each in found))
    return _between([(each.ranked[0], each.ranked[1]) if percentiles else (each.low, each.high) for each in found])


def _between(ends: Sequence[tuple[float, float]]) -> Levels:
    """Return the levels that map each low end to 0 and each high end to 1; a band of one number becomes 0."""
    return Levels(tuple(low for low, _ in ends), tuple((high - low) or 1.0 for low, high in ends))


def transported(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as a type of `DTYPES`: their own, else the next one that holds them.

    int8 becomes int16. Integers of 32 and 64 bits and float64 are rounded to float32.

    Raises:
        Unstated: They are complex, or no numbers.
    """
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.name in DTYPES:
        return values
    if values.dtype.kind not in "iuf":
        raise Unstated(f"pixels of the type {values.dtype}; store integers or floats")
    return values.astype(np.int16 if values.dtype == np.int8 else np.float32)


def white_of(values: NDArray[Any], maximum: int | None = None) -> float:
    """Return the number seen as 1 without a declared normalisation; 0 is seen as 0.

    Args:
        values: Unsigned integers of up to 16 bits, or floats in [0, 1].
        maximum: Largest number of integers; None for that of their type.

    Raises:
        Unstated: Their range is unknown.
    """
    kind = values.dtype
    if kind in (np.uint8, np.uint16):
        return float(maximum or np.iinfo(kind).max)
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if kind.kind == "f" and not (low < 0 or high > 1):  # NaN alone is no data alone
        return 1.0
    what = "floats" if kind.kind == "f" else f"{'un' * (kind.kind == 'u')}signed {8 * kind.itemsize}-bit integers"
    raise Unstated(
        f"{what} from {low:g} to {high:g} without a stated range; set inference.normalize, such as "
        f"normalize = {{ range = [{low:g}, {high if high > low else low + 1:g}] }} below [inference]"
    )
