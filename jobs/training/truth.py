"""Mask files to codes of their pixels' values, in the decoding processes. Knows nothing of classes.

A code is the grey value, or the palette's index, or 2²⁴ + 2¹⁶ R + 2⁸ G + B for a colour; alpha is dropped. Nothing
is converted: a mask's values are names, not light.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from maskfleet.jobs.images.decode import Undecodable, opened

CODEC = "maskfleet.jobs.training.truth:decode"
"""For `jobs.images.decoders.Decoders`."""

CHANNELS = 4
"""Bytes of a code."""

_COLOUR = 1 << 24


def decode(
    data: bytes, *, channels: int, scale: float, max_pixels: int, upright: bool, room: Any = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Codes of a mask's pixels.

    Args:
        data: The file's bytes.
        channels: `CHANNELS`.
        scale: Resize both sides by this, truncated to whole pixels, taking the nearest pixel.
        max_pixels: Larger masks are refused, from their header.
        upright: Turn the mask as its EXIF orientation says.
        room: Not used; see `jobs.images.decode.decode`.

    Returns:
        Codes (H, W, 4), little-endian bytes, after scaling; and the height and width as stored.

    Raises:
        Undecodable: With a named reason.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        if data.startswith(b"\x93NUMPY"):
            codes = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            image = opened(io.BytesIO(data), max_pixels)
            codes = _codes(ImageOps.exif_transpose(image) if upright else image)
        if codes.ndim != 2 or codes.dtype.kind not in "bui" or codes.size > max_pixels:
            raise Undecodable(
                "unsupported", f"a mask of shape {codes.shape} and type {codes.dtype}; store one whole number per pixel"
            )
        codes = np.ascontiguousarray(codes).astype("<u4")
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise Undecodable("corrupt", f"the mask does not decode ({type(error).__name__}); save it again") from error
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
        raise Undecodable("unsupported", "a mask of floating-point numbers; store one whole number per pixel")
    colours: NDArray[np.uint32] = np.asarray(image.convert("RGB")).astype(np.uint32)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    if (red == green).all() and (green == blue).all():
        return red
    return _COLOUR + (red << 16) + (green << 8) + blue


def code_of(value: int | tuple[int, int, int]) -> int:
    """The code of a pixel that shows this grey value or colour."""
    if isinstance(value, int):
        return value
    red, green, blue = value
    return int(red) if red == green == blue else _COLOUR + (red << 16) + (green << 8) + blue


def value_of(code: int) -> int | tuple[int, int, int]:
    """What a pixel of this code shows."""
    if code < _COLOUR:
        return code
    return (code >> 16) & 255, (code >> 8) & 255, code & 255
