"""Decoding of mask files to one code per pixel, in the decoder processes. Knows nothing about classes.

The code of a pixel is its grey value, its palette index, or 2²⁴ + 2¹⁶ R + 2⁸ G + B for a colour. Alpha is dropped.
Values are labels, not intensities, so none is ever converted.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.decode import turned
from maskfleet.jobs.images.formats import recognised

CODEC = "maskfleet.jobs.training.truth:decode"
"""Codec name for `jobs.images.decoders.Decoders`."""

CHANNELS = 4
"""Bytes per code."""

_COLOUR = 1 << 24


def decode(
    data: bytes, *, channels: int, scale: float, max_pixels: int, upright: bool, min_side: int = 1, buffer: Any = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode a mask file to one code per pixel.

    Args:
        data: Bytes of the file.
        channels: Always `CHANNELS`.
        scale: Factor for both sides, truncated to whole pixels; nearest neighbour.
        max_pixels: Largest accepted number of pixels, checked before decoding.
        upright: Whether to apply the EXIF orientation.
        min_side: Not used; the image of the pair is checked instead.
        buffer: Not used; see `jobs.images.decode.decode`.

    Returns:
        Little-endian codes (H, W, 4), uint8, after scaling; and the stored height and width.

    Raises:
        Undecodable: The file is not a mask; carries the error class and a message.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        file = io.BytesIO(data)
        image = recognised(file).open(file, max_pixels=max_pixels)
        pixels = image.pixels()
        codes = _codes(pixels) if isinstance(pixels, Image.Image) else pixels
        if codes.ndim != 2 or codes.dtype.kind not in "bui" or codes.size > max_pixels:
            raise Undecodable(
                "unsupported", f"the mask has shape {codes.shape} and dtype {codes.dtype}; store one integer per pixel"
            )
        codes = np.ascontiguousarray(codes).astype("<u4")
        if upright:
            codes = np.ascontiguousarray(turned(Image.fromarray(codes.view("<i4")), image.orientation())).astype("<u4")
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # Pillow raises almost any exception on hostile bytes
        raise Undecodable("corrupt", f"the mask cannot be decoded ({type(error).__name__}); save it again") from error
    height, width = codes.shape
    size = int(scale * width), int(scale * height)
    if size != (width, height):
        nearest = Image.fromarray(codes.view("<i4")).resize(size, Image.Resampling.NEAREST)
        codes = np.ascontiguousarray(np.asarray(nearest)).astype("<u4")
    return codes.view(np.uint8).reshape(size[1], size[0], CHANNELS), (height, width)


def _codes(image: Image.Image) -> NDArray[Any]:
    if image.mode in ("LA", "La"):
        image = image.getchannel("L")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("L", "P", "I") or image.mode.startswith("I;16"):
        codes: NDArray[Any] = np.asarray(image)
        return codes
    if image.mode == "F":
        raise Undecodable("unsupported", "the mask has floating-point values; store one integer per pixel")
    colours: NDArray[np.uint32] = np.asarray(image.convert("RGB")).astype(np.uint32)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    if (red == green).all() and (green == blue).all():
        return red
    return _COLOUR + (red << 16) + (green << 8) + blue


def code_of(value: int | tuple[int, int, int]) -> int:
    """Return the code of a grey value or an RGB colour."""
    if isinstance(value, int):
        return value
    red, green, blue = value
    return int(red) if red == green == blue else _COLOUR + (red << 16) + (green << 8) + blue


def value_of(code: int) -> int | tuple[int, int, int]:
    """Return the grey value or RGB colour of a code."""
    if code < _COLOUR:
        return code
    return (code >> 16) & 255, (code >> 8) & 255, code & 255
