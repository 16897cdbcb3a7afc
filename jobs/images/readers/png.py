"""PNG, read by Pillow.

Pillow refuses an image whose texts or colour profile are large or damaged. These chunks say nothing of the pixels, so
such an image is read without them.
"""

import io
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, PngImagePlugin

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.readers.pillow import PillowFile, with_greys

_SIGNATURE = 8
_FRAME = 12
"""Bytes of a chunk besides its data: length, type and checksum."""

_SHORT = {"L;2": 2, "L;4": 4}
"""Bits of greys that Pillow stretches to 255, by its raw mode."""

_WITHOUT_PIXELS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM"}


class PngFile(PillowFile):
    """A PNG file.

    Args:
        file: Open file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file
        try:
            super().__init__(file, PngImagePlugin.PngImageFile)
        except (Undecodable, ValueError, SyntaxError, OSError):
            self._open_without_metadata()

    def frames(self) -> int:
        try:
            return super().frames()
        except (ValueError, SyntaxError, OSError):
            self._open_without_metadata()
            return super().frames()

    def pixels(self) -> Image.Image:
        try:
            return super().pixels()
        except (ValueError, SyntaxError, OSError):
            self._open_without_metadata()
            return super().pixels()

    def numbers(self) -> Image.Image:
        """See `ImageFile.numbers`."""
        bits = _SHORT.get(str(self.image.tile[0].args)) if self.image.tile else None
        image = self.pixels()
        return image if bits is None else with_greys(np.asarray(image) // (255 // (2**bits - 1)), bits)

    def _open_without_metadata(self) -> None:
        """Open the file again without the chunks that say nothing of its pixels.

        Raises:
            Undecodable: Something else is wrong.
        """
        file, self._file = self._file, None
        if file is None:
            raise Undecodable("corrupt", "the PNG file is damaged; upload it again")
        file.seek(0)
        super().__init__(io.BytesIO(b"".join(_pixels_alone(file.read()))), PngImagePlugin.PngImageFile)


def read_header(file: IO[bytes]) -> PngFile:
    """Read the header of a PNG file."""
    return PngFile(file)


def _pixels_alone(data: bytes) -> Iterator[bytes]:
    yield data[:_SIGNATURE]
    start = _SIGNATURE
    while start < len(data):
        end = start + _FRAME + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] not in _WITHOUT_PIXELS:
            yield data[start:end]
        start = end
