"""Decoding of mask files to one code per pixel, in the decoder processes. Knows nothing about classes.

A mask holds labels, so its numbers are taken as they are stored, and none is converted for display. A code has five
bytes: what kind of label it is, and a number of 32 bits:

| stored as                          | kind   | number                                        |
|------------------------------------|--------|-----------------------------------------------|
| integers of 8 bits or more         | NUMBER | the integer, −2³¹ … 2³¹ − 1                   |
| colours                            | COLOUR | 2¹⁶ R + 2⁸ G + B                              |
| a palette, or 1, 2 or 4 bits       | INDEX  | 2²⁴ · index + the colour that a viewer shows  |

Alpha is dropped, unless it tells apart pixels of one colour; such a mask is refused.
"""

import io
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import recognised

CODEC = "maskfleet.jobs.training.truth.codes:decode"
"""Codec name for `jobs.images.decoders.Decoders`."""

CHANNELS = 5
"""Bytes per code."""

_CODE = np.dtype([("kind", "u1"), ("number", "<u4")])
_INTEGERS = np.iinfo(np.int32)
_RAMP = np.arange(256, dtype=np.uint32) * 0x010101
_FLOATS = "the mask has floating-point values; store one integer per pixel"


class Kind(IntEnum):
    """Kind of a code; see above."""

    NUMBER = 0
    COLOUR = 1
    INDEX = 2


def decode(data: bytes, *, max_pixels: int, **_: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode a mask file to one code per pixel, on the stored grid. Classes are turned and scaled later.

    Args:
        data: Bytes of the file.
        max_pixels: Largest accepted number of pixels, checked before decoding.

    Returns:
        Codes (H, W, 5), uint8; and the height and width.

    Raises:
        Undecodable: The file is not a mask; carries the error class and a message.
    """
    if not data:
        raise Undecodable("empty", "the file is empty; upload it again")
    try:
        file = io.BytesIO(data)
        pixels = recognised(file).open(file, max_pixels=max_pixels).numbers()
        kind, numbers = _of_image(pixels) if isinstance(pixels, Image.Image) else _of_array(pixels)
        if numbers.size > max_pixels:
            raise Undecodable("too_large", f"{numbers.size} pixels; raise run.max_image_pixels")
    except (Undecodable, MemoryError):
        raise
    except Exception as error:  # Pillow raises almost any exception on hostile bytes
        raise Undecodable("corrupt", f"the mask cannot be decoded ({type(error).__name__}); save it again") from error
    codes = np.empty(numbers.shape, _CODE)
    codes["kind"], codes["number"] = kind, numbers
    height, width = numbers.shape
    return codes.view(np.uint8).reshape(height, width, CHANNELS), (height, width)


def codes_of(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the codes (H, W) of a decoded mask (H, W, 5): 2³² · kind + number."""
    packed = np.ascontiguousarray(pixels).view(_CODE)[..., 0]
    codes: NDArray[np.int64] = packed["number"].astype(np.int64)
    codes += packed["kind"].astype(np.int64) << 32
    return codes


def _of_image(image: Image.Image) -> tuple[Kind, NDArray[Any]]:
    if image.mode == "1":
        return _of_indices(np.asarray(image).astype(np.uint8), np.array([0, 0xFFFFFF], np.uint32))
    if image.mode in ("P", "PA"):
        table = np.zeros(768, np.uint32)
        stored = (image.getpalette("RGB") or [])[:768]
        table[: len(stored)] = stored
        indices = image.getchannel(0) if image.mode == "PA" else image
        return _of_indices(np.asarray(indices), _packed(table.reshape(256, 3)))
    if image.mode in ("L", "I") or image.mode.startswith("I;16"):
        return _of_array(np.asarray(image))
    if image.mode == "F":
        raise Undecodable("unsupported", _FLOATS)
    return _of_array(np.asarray(image if image.mode in ("RGB", "RGBA", "LA") else image.convert("RGB")))


def _of_array(array: NDArray[Any]) -> tuple[Kind, NDArray[Any]]:
    """Return the codes of an array (H, W) or (H, W, C): a number or a colour, and alpha if C is even."""
    bands = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or bands > 4 or array.dtype.kind not in "bui":
        raise Undecodable(
            "unsupported", f"the mask has shape {array.shape} and dtype {array.dtype}; store one integer per pixel"
        )
    if array.ndim == 2 and array.dtype == np.bool_:
        return _of_indices(array.astype(np.uint8), np.array([0, 0xFFFFFF], np.uint32))
    if array.ndim == 2:
        return Kind.NUMBER, _in_32_bits(array)
    kind, numbers = _of_array(array[..., 0]) if bands < 3 else _of_colours(array[..., :3])
    if bands in (2, 4):
        _refuse_telling_alpha(numbers, array[..., -1])
    return kind, numbers


def _of_indices(indices: NDArray[Any], colours: NDArray[np.uint32]) -> tuple[Kind, NDArray[Any]]:
    if len(colours) == 256 and ((colours == _RAMP).all() or (colours == _RAMP[::-1]).all()):
        return Kind.NUMBER, indices  # plain greys, or the inverting table of ImageJ, for which the index is the value
    return Kind.INDEX, (indices.astype(np.uint32) << 24) | colours[indices]


def _of_colours(colours: NDArray[Any]) -> tuple[Kind, NDArray[Any]]:
    if (colours == colours[..., :1]).all():
        return Kind.NUMBER, _in_32_bits(colours[..., 0])
    if colours.dtype == np.uint16 and not (colours % 257).any():  # 8 bits in 16
        colours = colours // 257
    if colours.min() < 0 or colours.max() > 255:
        raise Undecodable("unsupported", f"the mask has colours of {colours.dtype}; store 8 bits per colour")
    return Kind.COLOUR, _packed(colours)


def _packed(colours: NDArray[Any]) -> NDArray[np.uint32]:
    red, green, blue = (colours[..., band].astype(np.uint32) for band in range(3))
    packed: NDArray[np.uint32] = (red << 16 | green << 8 | blue).astype(np.uint32, copy=False)
    return packed


def _in_32_bits(numbers: NDArray[Any]) -> NDArray[Any]:
    if numbers.dtype.itemsize < 4:
        return numbers.astype(np.int32).view(np.uint32)
    if numbers.min() < _INTEGERS.min or numbers.max() > _INTEGERS.max:
        raise Undecodable("unsupported", f"the mask has the value {numbers.max()}; store classes as small integers")
    return numbers.astype(np.int32).view(np.uint32)


def _refuse_telling_alpha(numbers: NDArray[Any], alpha: NDArray[Any]) -> None:
    """Refuse a mask with one colour in several opacities: it is drawn in its alpha channel."""
    if alpha.min() == alpha.max():
        return
    for number in np.unique(numbers)[:256]:
        here = alpha[numbers == number]
        if here.min() != here.max():
            raise Undecodable(
                "unsupported",
                "the mask is drawn in its alpha channel: one colour has several opacities; save the alpha channel as "
                "a grey image",
            )
