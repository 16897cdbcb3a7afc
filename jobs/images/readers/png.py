"""PNG, read by Pillow; colours of 16 bits by imagecodecs, since Pillow keeps their high byte alone.

Pillow refuses an image whose texts or colour profile are large or damaged. These chunks say nothing of the pixels, so
such an image is read without them. Pillow does not look at the checksums of the pixels; they are checked here.
"""

import io
import mmap
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.readers.pillow import PillowFile, with_greys

_SIGNATURE = 8
_FRAME = 12
"""Bytes of a chunk besides its data: length, type and checksum."""

_SHORT = {"L;2": 2, "L;4": 4}
"""Bits of greys that Pillow stretches to 255, by its raw mode."""

_WIDE_COLOURS = {"LA;16B": 1, "RGB;16B": 3, "RGBA;16B": 3}
"""Bands that are colours in images of 16 bits with colours or alpha, by Pillow's raw mode."""

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_CRITICAL = (*_PIXELS, b"IEND")
_COLOUR_TYPE, _PALETTE = 25, 3
"""Place of the colour type in the file, and the type of images with a palette."""

_WITHOUT_PIXELS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM"}


class PngFile(PillowFile):
    """A PNG file.

    Args:
        file: Open file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._is_as_stored = True
        try:
            super().__init__(file, PngImagePlugin.PngImageFile)
        except (Undecodable, ValueError, SyntaxError, OSError):
            self._open_without_metadata()
        self.colours = _WIDE_COLOURS.get(str(self.image.tile[0].args)) if self.image.tile else None

    def frames(self) -> int:
        try:
            return super().frames()
        except (ValueError, SyntaxError, OSError):
            self._open_without_metadata()
            return super().frames()

    def pixels(self) -> Image.Image | NDArray[Any]:
        self._file.seek(0)
        data = self._file.read()
        _refuse_damage(data)
        if self.colours is not None:
            return self._wide(data)
        return self._by_pillow()

    def _wide(self, data: bytes) -> NDArray[np.uint16]:
        bands = len(str(self.image.tile[0].args).partition(";")[0]) + ("transparency" in self.image.info)
        wide = np.empty((self.height, self.width, bands), np.uint16)
        try:
            imagecodecs.png_decode(data, out=wide)
        except Exception:
            # imagecodecs keeps its reference to the array if the file is damaged, so that it would never be freed.
            wide.resize(0, refcheck=False)
            raise
        return wide

    def _loaded(self) -> Image.Image:
        self.image.load()
        return self.image

    def _by_pillow(self) -> Image.Image:
        try:
            return self._loaded()
        except (ValueError, SyntaxError, OSError):
            self._open_without_metadata()
            return self._loaded()

    def numbers(self) -> Image.Image | NDArray[Any]:
        """See `ImageFile.numbers`."""
        bits = _SHORT.get(str(self.image.tile[0].args)) if self.image.tile else None
        image = self.pixels()
        if bits is None or not isinstance(image, Image.Image):
            return image
        return with_greys(np.asarray(image) // (255 // (2**bits - 1)), bits)

    def check_rows(self) -> None:
        """See `ImageFile.check_rows`."""
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _refuse_damage(data)

    def _open_without_metadata(self) -> None:
        """Open the file again without the chunks that say nothing of its pixels.

        Raises:
            Undecodable: Something else is wrong.
        """
        if not self._is_as_stored:
            raise _damaged()
        self._is_as_stored = False
        self._file.seek(0)
        data = self._file.read()
        pixels = (data[chunk.start : chunk.end] for chunk in _chunks(data) if chunk.kind not in _WITHOUT_PIXELS)
        alone = io.BytesIO(data[:_SIGNATURE] + b"".join(pixels))
        super().__init__(alone, PngImagePlugin.PngImageFile)


def read_header(file: IO[bytes]) -> PngFile:
    """Read the header of a PNG file."""
    return PngFile(file)


class _Chunk(NamedTuple):
    """Type of a chunk, its first byte and the one after its last."""

    kind: bytes
    start: int
    end: int


def _chunks(data: bytes | mmap.mmap) -> Iterator[_Chunk]:
    """Yield the chunks up to the end of the image; what lies behind it may be anything."""
    kind, start = b"", _SIGNATURE
    while start < len(data) and kind != b"IEND":
        kind, end = data[start + 4 : start + 8], start + _FRAME + int.from_bytes(data[start : start + 4])
        yield _Chunk(kind, start, end)
        start = end


def _refuse_damage(data: bytes | mmap.mmap) -> None:
    """Refuse a file whose pixels are not those that were written.

    Raises:
        Undecodable: A checksum is wrong, the file is cut, its palette is missing, or it needs an unknown chunk.
    """
    has_palette = data[_COLOUR_TYPE] != _PALETTE
    with memoryview(data) as view:
        for kind, start, end in _chunks(data):
            if kind in _PIXELS:
                stated = int.from_bytes(view[end - 4 : end]) if end <= len(data) else None
                if imagecodecs.zlibng_crc32(cast("bytes", view[start + 4 : end - 4])) != stated:
                    raise _damaged()
                has_palette |= kind == b"PLTE"
            elif kind[:1].isupper() and kind not in _CRITICAL:
                name = kind.decode("ascii", "replace")
                raise Undecodable("unsupported", f"a PNG with the critical chunk {name}; save it again as plain PNG")
    if not has_palette:
        raise _damaged()


def _damaged() -> Undecodable:
    return Undecodable("corrupt", "the PNG file is damaged; upload it again")
