"""TIFF, read by Pillow."""

from typing import IO

from PIL import Image, TiffImagePlugin

from maskfleet.jobs.images.readers.pillow import PillowFile

_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""From the upright grid to the stored one, by EXIF orientation."""

_BIGTIFF = 43
_SUBFILE_TYPE = 254
_OF_ANOTHER = 0b101
"""Bits of a page that is a smaller copy of another one (cloud-optimised GeoTIFF) or its transparency mask."""


class TiffFile(PillowFile):
    """A TIFF file."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, TiffImagePlugin.TiffImageFile)
        self._file = file
        self._orientation: int | None = None

    def frames(self) -> int:
        before = self._file.tell()
        pages = _pages(self._file)
        self._file.seek(before)
        return pages

    def pixels(self) -> Image.Image:
        # Pillow turns TIFF, and no other format, upright by itself and then forgets the orientation.
        back = _BACK.get(self.orientation())
        image = super().pixels()
        return image if back is None else image.transpose(back)

    def orientation(self) -> int:
        if self._orientation is None:
            self._orientation = super().orientation()
        return self._orientation


def read_header(file: IO[bytes]) -> TiffFile:
    """Read the header of a TIFF file."""
    return TiffFile(file)


def _pages(file: IO[bytes]) -> int:
    """Count the pages that are images of their own; the first always is."""
    file.seek(0)
    header = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header + (file.read(8) if header[2] == _BIGTIFF else b""))
    places: list[int] = []
    found = 0
    while tags.next and tags.next not in places:
        places.append(tags.next)
        file.seek(tags.next)
        tags.load(file)
        found += not found or not tags.get(_SUBFILE_TYPE, 0) & _OF_ANOTHER
    return found
