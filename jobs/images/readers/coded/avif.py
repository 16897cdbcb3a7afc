"""AVIF. Pillow reads the header; imagecodecs decodes, since Pillow narrows 10 and 12 bits to 8."""

from typing import IO, Any

import imagecodecs
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.readers.pillow import PillowFile

_CONFIGURATION = b"av1C"
_HIGH, _TWELVE = 0x40, 0x20


class AvifFile(PillowFile):
    """An AVIF file.

    Args:
        file: Open file.

    Raises:
        Undecodable: It is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, AvifImagePlugin.AvifImageFile)
        file.seek(0)
        self._data = file.read()
        self.maximum = 2 ** _bits(self._data) - 1

    def pixels(self) -> NDArray[Any]:
        pixels: NDArray[Any] = imagecodecs.avif_decode(self._data, numthreads=1)
        bands = pixels.shape[2] if pixels.ndim == 3 else 1
        self.colours = 1 if bands <= 2 else 3
        return pixels


def read_header(file: IO[bytes]) -> AvifFile:
    """Read the header of an AVIF file."""
    return AvifFile(file)


def _bits(data: bytes) -> int:
    """Return the bits of a sample, by the first configuration of AV1 ("AV1 in ISO base media files", 2.3.3)."""
    place = data.find(_CONFIGURATION)
    if place < 0 or place + 7 > len(data):
        raise Undecodable("corrupt", "the AVIF file states no depth; upload it again")
    flags = data[place + 6]
    return (12 if flags & _TWELVE else 10) if flags & _HIGH else 8
