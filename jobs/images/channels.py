"""Pixels as stored to the bands that the network takes, the same for all formats.

8 bits stay 8 bits and are seen as v / 255. Wider integers and floats keep their type; without a declared normalisation
the network sees the number that the table shows. By Pillow's mode, for a network of three channels, of one, or of n
others:

| mode                        | three channels                   | one channel                       | n channels |
|-----------------------------|----------------------------------|-----------------------------------|------------|
| 1 (bilevel)                 | 0 or 255, three times            | 0 or 255                          | refused    |
| L                           | the grey, three times            | as stored                         | refused    |
| LA                          | alpha dropped, then as L         | alpha dropped                     | 2: as stored |
| I;16 (16-bit grey)          | v / 65535, three times           | v / 65535                         | refused    |
| F (32-bit float) in [0, 1]  | v, three times                   | v                                 | refused    |
| F beyond, I (32-bit)        | refused: no range is stated      | refused                           | refused    |
| P, PA (palette)             | the palette's colours            | their luma                        | refused    |
| RGB                         | as stored                        | luma, 0.299 R + 0.587 G + 0.114 B | refused    |
| RGBA, RGBX                  | alpha dropped, colours as stored | alpha dropped, then luma          | 4: as stored |
| CMYK                        | Pillow's conversion, no profile  | that, then luma                   | 4: as stored |
| YCbCr, LAB, HSV             | Pillow's conversion, no profile  | that, then luma                   | refused    |
| .npy of (H, W)              | as L                             | as L                              | refused    |
| .npy of (H, W, C)           | C = 1 as L, C = 3 as RGB         | C = 1 as L, C = 3 as RGB          | C: as stored |

In an array, bool becomes 0 or 255, uint8 stays as stored, uint16 and floats are treated as I;16 and F. TIFF is read by
its tags: fewer than 8 bits as round(v · 255 / (2ⁿ - 1)), 8 to 16 bits as v / (2ⁿ - 1), MINISWHITE inverted, bands after
the colours dropped for one and three channels. `inference.bands` picks bands instead. Nothing is clipped. ICC profiles
are ignored.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.unet.pixels.numbers import Unstated, transported, white_of

_AS_STORED = {"LA": 2, "RGBA": 4, "RGBX": 4, "CMYK": 4}
"""Pillow's modes whose bands a network of that many channels takes unchanged."""

_COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3}
"""Colours among the bands of Pillow's modes."""

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, as in Pillow's conversion of 8 bits (ITU-R 601-2)."""


def is_8_bit(pixels: Image.Image | NDArray[Any]) -> bool:
    """Return whether stored pixels are of at most 8 bits."""
    if isinstance(pixels, Image.Image):
        return not (pixels.mode.startswith("I") or pixels.mode == "F")
    return pixels.dtype in (np.bool_, np.uint8)


class Wanted(NamedTuple):
    """The bands that a network takes of an image.

    Attributes:
        channels: Input channels of the network.
        colours: Bands of the array that are colours, see `ImageFile.colours`.
        maximum: Largest number in the array, see `ImageFile.maximum`.
        bands: Bands to take, counted from 1; empty for those of the table.
    """

    channels: int
    colours: int | None = None
    maximum: int | None = None
    bands: tuple[int, ...] = ()


def planes_of(pixels: Image.Image | NDArray[Any], wanted: Wanted) -> list[Image.Image]:
    """Convert stored pixels of at most 8 bits to the channels of a network.

    Args:
        pixels: Pillow image, or array (H, W) or (H, W, C).
        wanted: The bands that the network takes.

    Returns:
        One image of mode L or RGB, or one of mode L per channel.

    Raises:
        Undecodable: The image lacks such channels.
    """
    channels = wanted.channels
    if isinstance(pixels, Image.Image) and not wanted.bands:
        return _of_image(pixels, channels)
    array = _eight(_chosen(pixels, wanted), wanted.maximum)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(array, 2, 0)]
    if channels not in (1, 3):
        return planes
    return _of_image(planes[0] if len(planes) == 1 else Image.merge("RGB", planes), channels)


class Numbers(NamedTuple):
    """The bands that a network takes, as numbers.

    Attributes:
        values: (H, W, C) of a type of `unet.pixels.normalization.DTYPES`; float32 with NaN for no data if the file
            states such a number.
        white: The number that counts as 1 without a declared normalisation.
    """

    values: NDArray[Any]
    white: float


def numbers_of(
    pixels: Image.Image | NDArray[Any], wanted: Wanted, *, nodata: float | None = None, declared: bool = False
) -> Numbers:
    """Convert stored pixels to the channels of a network, in their own type.

    Args:
        pixels: See `planes_of`; of any type of numbers.
        wanted: The bands that the network takes.
        nodata: The number that stands for no data.
        declared: Whether a normalisation is declared, so that numbers may have any range.

    Raises:
        Undecodable: The image lacks such channels, or its numbers are complex, infinite, NaN without `nodata`, or of an
            unknown range.
    """
    stored, channels = _chosen(pixels, wanted), wanted.channels
    values: NDArray[Any]
    try:
        if is_8_bit(stored):
            values = _eight(stored, wanted.maximum)
        else:
            _refuse_not_finite(stored, nodata)
            values = transported(stored)
        if nodata is not None:
            values = np.where(stored == nodata, np.float32("nan"), values.astype(np.float32))
        # The range of integers follows from their type; that of floats from all numbers but no data.
        white = 1.0 if declared else white_of(values if stored.dtype.kind == "f" else stored, wanted.maximum)
    except Unstated as error:
        raise Undecodable("unsupported", str(error)) from error
    if channels == 3 and values.shape[2] == 1:
        values = values.repeat(3, axis=2)
    elif channels == 1 and values.shape[2] == 3:
        values = (values.astype(np.float32) @ np.array(_LUMA, np.float32))[..., None]
    return Numbers(values, white)


def _refuse_not_finite(stored: NDArray[Any], nodata: float | None) -> None:
    if stored.dtype.kind != "f":
        return
    if np.isnan(stored).any() and not (nodata is not None and np.isnan(nodata)):
        raise Unstated("NaN among its numbers; have the file state nan as its no-data value, or replace NaN")
    if (np.isinf(stored) & (stored != (np.nan if nodata is None else nodata))).any():
        raise Unstated("infinity among its numbers; replace it, or have the file state it as its no-data value")


def _as_array(pixels: Image.Image | NDArray[Any], colours: int | None) -> tuple[NDArray[Any], int | None]:
    """Return stored bands (H, W, C), and how many of them are colours."""
    if not isinstance(pixels, Image.Image):
        return np.atleast_3d(pixels), colours
    if pixels.mode == "1":
        pixels = pixels.convert("L")
    elif pixels.mode not in _COLOURS and pixels.mode != "CMYK" and is_8_bit(pixels):
        pixels = pixels.convert("RGB")
    return np.atleast_3d(np.asarray(pixels)), _COLOURS.get(pixels.mode)


def _chosen(pixels: Image.Image | NDArray[Any], wanted: Wanted) -> NDArray[Any]:
    """Return the bands that the network takes, (H, W, C)."""
    array, colours = _as_array(pixels, wanted.colours)
    stored, channels = array.shape[2], wanted.channels
    if wanted.bands:
        if max(wanted.bands) > stored:
            message = f"{_counted(stored)}, and inference.bands names band {max(wanted.bands)}; correct it"
            raise Undecodable("unsupported", message)
        return array[..., [band - 1 for band in wanted.bands]]
    if channels in (1, 3) and colours in (1, 3):
        return array[..., :colours]
    if stored not in (1, 3) if channels in (1, 3) else stored != channels:
        raise _other_count(stored, channels, height=len(array))
    return array


def _other_count(stored: int, channels: int, *, height: int = 0) -> Undecodable:
    remedy = "set inference.bands" if stored > channels else "use other weights"
    if height in (1, 3, 4, channels):
        remedy = "store the channels last, (H, W, C)"
    return Undecodable("unsupported", f"{_counted(stored)}, the network takes {channels}: {remedy}")


def _counted(bands: int) -> str:
    return "1 band" if bands == 1 else f"{bands} bands"


def _of_image(image: Image.Image, channels: int) -> list[Image.Image]:
    if channels not in (1, 3):
        if _AS_STORED.get(image.mode) != channels:
            raise _other_count(len(image.getbands()), channels)
        return list(image.split())
    if image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return [image if image.mode == mode else image.convert(mode)]  # `convert` would copy an image of the same mode


def _eight(array: NDArray[Any], maximum: int | None) -> NDArray[np.uint8]:
    """Return numbers of at most 8 bits as 0 … 255: round(v · 255 / maximum)."""
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    if maximum in (None, 255):
        return array
    return ((array.astype(np.uint32) * 255 + maximum // 2) // maximum).astype(np.uint8)
