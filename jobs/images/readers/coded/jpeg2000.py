"""JPEG 2000 (ISO/IEC 15444-1): a codestream, or a JP2 file around it."""

import struct
from typing import IO, Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile
from maskfleet.jobs.images.readers.coded.boxes import boxes

_CODESTREAM = b"\xff\x4f\xff\x51"
_COLOUR, _SIGN = 0, 0x80
_SPACES = {12: "CMYK", 14: "CIELab", 18: "sYCC", 24: "e-sYCC"}
"""Colour spaces that are not converted, by their numbers."""


class Jpeg2000File(ImageFile):
    """A JPEG 2000 file.

    Args:
        file: Open file.

    Raises:
        Undecodable: It is damaged, or its components differ.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._data = file.read()
        head, self._count = self._data, 1
        self._alphas, palette = 0, None
        if not self._data.startswith(_CODESTREAM):
            streams = [box.content for box in boxes(self._data) if box.kind == b"jp2c"]
            inner = {box.kind: box.content for box in self._inner()}
            head, self._count = bytes(streams[0][:65536]) if streams else b"", len(streams)
            self._alphas, palette = _alphas(inner.get(b"cdef")), inner.get(b"pclr")
            _refuse_space(inner.get(b"colr"))
        if not head.startswith(_CODESTREAM) or len(head) < 42:
            raise Undecodable("corrupt", "the JPEG 2000 file has no codestream; upload it again")
        right, bottom, left, top = struct.unpack_from(">4L", head, 8)
        self.width, self.height = right - left, bottom - top
        (components,) = struct.unpack_from(">H", head, 40)
        depths = set(head[42 : 42 + 3 * components : 3])
        if palette is not None:
            components, depths = palette[2], set(palette[3 : 3 + palette[2]])
        if len(depths) != 1:
            raise Undecodable("unsupported", "a JPEG 2000 image whose bands differ in depth; store TIFF")
        (depth,) = depths
        self.colours = min(components - self._alphas, 3 if components == 4 else components)
        self.maximum = None if depth & _SIGN else 2 ** (depth + 1) - 1

    def _inner(self) -> Any:
        for box in boxes(self._data):
            if box.kind == b"jp2h":
                yield from boxes(box.content)

    def frames(self) -> int:
        return self._count

    def pixels(self) -> NDArray[Any]:
        pixels: NDArray[Any] = imagecodecs.jpeg2k_decode(self._data, numthreads=1)
        return pixels


def read_header(file: IO[bytes]) -> Jpeg2000File:
    """Read the header of a JPEG 2000 file."""
    return Jpeg2000File(file)


def _alphas(definition: memoryview | None) -> int:
    """Return the number of channels that are no colours."""
    if definition is None:
        return 0
    kinds = np.frombuffer(definition[2 : 2 + (len(definition) - 2) // 6 * 6], ">u2").reshape(-1, 3)[:, 1]
    return int((kinds != _COLOUR).sum())


def _refuse_space(specification: memoryview | None) -> None:
    if specification is not None and len(specification) >= 7 and specification[0] == 1:
        number = int.from_bytes(specification[3:7])
        if number in _SPACES:
            raise Undecodable("unsupported", f"JPEG 2000 of the colour space {_SPACES[number]}; store RGB or grey")
