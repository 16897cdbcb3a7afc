"""Pixels as stored to pixels as the network sees them: channels and bit depths, the same for all formats.

What a file becomes, by Pillow's mode, for a network of three channels, of one, or of n others:

| mode                        | three channels                   | one channel                       | n channels |
|-----------------------------|----------------------------------|-----------------------------------|------------|
| 1 (bilevel)                 | 0 or 255, three times            | 0 or 255                          | refused    |
| L                           | the grey, three times            | as stored                         | refused    |
| LA                          | alpha dropped, then as L         | alpha dropped                     | 2: as stored |
| I;16 (16-bit grey)          | round(v · 255 / 65535), as L     | round(v · 255 / 65535)            | refused    |
| F (32-bit float) in [0, 1]  | round(v · 255), as L             | round(v · 255)                    | refused    |
| F beyond, I (32-bit)        | refused: no range is stated      | refused                           | refused    |
| P, PA (palette)             | the palette's colours            | their luma                        | refused    |
| RGB                         | as stored                        | luma, 0.299 R + 0.587 G + 0.114 B | refused    |
| RGBA, RGBX                  | alpha dropped, colours as stored | alpha dropped, then luma          | 4: as stored |
| CMYK                        | Pillow's conversion, no profile  | that, then luma                   | 4: as stored |
| YCbCr, LAB, HSV             | Pillow's conversion, no profile  | that, then luma                   | refused    |
| .npy of (H, W)              | as L                             | as L                              | refused    |
| .npy of (H, W, C)           | C = 1 as L, C = 3 as RGB         | C = 1 as L, C = 3 as RGB          | C: as stored |

In an array, bool becomes 0 or 255, uint8 stays as stored, uint16 and floats are treated as I;16 and F. TIFF is read by
its tags: n bits as round(v · 255 / (2ⁿ - 1)), MINISWHITE inverted, bands after the colours dropped for one and three
channels. 16-bit colour PNG reaches the network by its high byte. Nothing is clipped. ICC profiles are ignored.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable

_AS_STORED = {"LA": 2, "RGBA": 4, "RGBX": 4, "CMYK": 4}
"""Pillow's modes whose bands a network of that many channels takes unchanged."""


def planes_of(
    pixels: Image.Image | NDArray[Any], channels: int, *, colours: int | None = None, maximum: int | None = None
) -> list[Image.Image]:
    """Convert stored pixels to 8 bits and the channels of a network.

    Args:
        pixels: Pillow image, or array (H, W) or (H, W, C).
        channels: Input channels of the network.
        colours: Bands of the array that are colours, see `ImageFile.colours`.
        maximum: Largest number in the array, see `ImageFile.maximum`.

    Returns:
        One image of mode L or RGB, or one of mode L per channel.

    Raises:
        Undecodable: The image lacks such channels, or its type states no range of values.
    """
    if isinstance(pixels, Image.Image):
        return _of_image(pixels, channels)
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (1, 3) and colours in (1, 3):
        pixels, bands = np.atleast_3d(pixels)[..., :colours], colours
    if bands not in (1, 3) if channels in (1, 3) else bands != channels:
        hint = "; store the channels last, (H, W, C)" if len(pixels) in (1, 3, 4, channels) else ", use other weights"
        raise Undecodable("unsupported", f"an image of {bands} bands; the network takes {channels}{hint}")
    return _of_array(pixels, channels, maximum)


def _of_image(image: Image.Image, channels: int) -> list[Image.Image]:
    if channels not in (1, 3):
        if _AS_STORED.get(image.mode) != channels:
            raise Undecodable(
                "unsupported", f"{image.mode} images do not have {channels} channels; use other weights, or .npy arrays"
            )
        return list(image.split())
    if image.mode.startswith("I;16"):
        image = Image.fromarray(narrowed(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(from_unit(np.asarray(image)))
    elif image.mode == "I":
        raise Undecodable("unsupported", "32-bit integers (mode I) have no known value range; store 8 or 16 bits")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return [image if image.mode == mode else image.convert(mode)]  # `convert` would copy an image of the same mode


def _of_array(array: NDArray[Any], channels: int, maximum: int | None) -> list[Image.Image]:
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype in (np.uint8, np.uint16):
        array = narrowed(array, np.iinfo(array.dtype).max if maximum is None else maximum)
    elif array.dtype.kind == "f":
        array = from_unit(array)
    else:
        raise Undecodable(
            "unsupported", f"{array.dtype} pixels have no known value range; store uint8, uint16, or floats in [0, 1]"
        )
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(np.atleast_3d(array), 2, 0)]
    if channels not in (1, 3):
        return planes
    return _of_image(planes[0] if len(planes) == 1 else Image.merge("RGB", planes), channels)


def narrowed(wide: NDArray[Any], maximum: int = 65535) -> NDArray[np.uint8]:
    """Convert numbers from 0 to `maximum` to 8 bits: round(v · 255 / maximum)."""
    if maximum == 255:
        return wide.astype(np.uint8, copy=False)
    return ((wide.astype(np.uint32) * 255 + maximum // 2) // maximum).astype(np.uint8)


def from_unit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert floats in [0, 1] to 8 bits: round(v · 255).

    Raises:
        Undecodable: A value lies outside [0, 1] or is not a number.
    """
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise Undecodable(
            "unsupported",
            f"floating-point pixels must lie in [0, 1], got {values.min():g} … {values.max():g}; scale them, or store "
            "8 or 16 bits",
        )
    return np.rint(values * 255.0).astype(np.uint8)
