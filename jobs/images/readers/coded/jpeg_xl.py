"""JPEG XL (ISO/IEC 18181): a codestream, or a container around it."""

from typing import IO, Any

import imagecodecs
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile
from maskfleet.jobs.images.readers.coded.boxes import boxes

_CODESTREAM = b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height, by the number of the ratio."""

_HEAD = 64
"""Bytes that hold all that is read of the header."""


class JpegXlFile(ImageFile):
    """A JPEG XL file.

    Args:
        file: Open file.

    Raises:
        Undecodable: It is damaged, or an animation.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._data = file.read()
        bits = _Bits(_codestream(self._data)[2:_HEAD])
        self.width, self.height = _size(bits)
        self._orientation, depth, is_float = 1, 8, False
        if not bits.take(1):  # else all is as usual
            if bits.take(1):
                self._orientation = 1 + bits.take(3)
                if bits.take(1):
                    _size(bits)
                if bits.take(1):
                    raise Undecodable("unsupported", "a JPEG XL image with a preview; save it without")
                if bits.take(1):
                    raise Undecodable("unsupported", "an animated JPEG XL image; save its frames as single images")
            is_float = bool(bits.take(1))
            depth = (
                bits.number((0, 32), (0, 16), (0, 24), (6, 1))
                if is_float
                else bits.number((0, 8), (0, 10), (0, 12), (6, 1))
            )
        self.maximum = None if is_float else 2**depth - 1

    def pixels(self) -> NDArray[Any]:
        pixels: NDArray[Any] = imagecodecs.jpegxl_decode(self._data, keeporientation=True, numthreads=1)
        bands = pixels.shape[2] if pixels.ndim == 3 else 1
        self.colours = 1 if bands <= 2 else 3
        return pixels

    def orientation(self) -> int:
        return self._orientation


def read_header(file: IO[bytes]) -> JpegXlFile:
    """Read the header of a JPEG XL file."""
    return JpegXlFile(file)


class _Bits:
    """Bits of a header, the least significant first.

    Args:
        data: Bytes of the header.
    """

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        if count > self._left:
            raise Undecodable("corrupt", "the JPEG XL file ends in its header; upload it again")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def number(self, *choices: tuple[int, int]) -> int:
        """Return a number, of whose four forms two bits choose one: so many bits, plus a constant."""
        bits, constant = choices[self.take(2)]
        return constant + self.take(bits)


def _codestream(data: bytes) -> bytes:
    if data.startswith(_CODESTREAM):
        return data[:_HEAD]
    for box in boxes(data):
        if box.kind == b"jxlc":
            return bytes(box.content[:_HEAD])
        if box.kind == b"jxlp":
            return bytes(box.content[4 : _HEAD + 4])
    raise Undecodable("corrupt", "the JPEG XL file has no codestream; upload it again")


def _size(bits: _Bits) -> tuple[int, int]:
    """Read a width and a height."""
    small = bits.take(1)
    forms = ((9, 1), (13, 1), (18, 1), (30, 1))
    height = 8 * (1 + bits.take(5)) if small else bits.number(*forms)
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio]
        return height * across // down, height
    return 8 * (1 + bits.take(5)) if small else bits.number(*forms), height
