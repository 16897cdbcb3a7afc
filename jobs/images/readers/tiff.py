"""TIFF, read by tifffile and imagecodecs as its tags say: any byte order, BigTIFF, strips, tiles, planes and depth.

The tags are those of "TIFF Revision 6.0" (Adobe, 1992). Strips and tiles are read in `tiff_segments`.
"""

from functools import cached_property
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile
from maskfleet.jobs.images.readers import tiff_planes
from maskfleet.jobs.images.readers.pillow import with_greys
from maskfleet.jobs.images.readers.tiff_segments import Segments

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_JPEG = (6, 7)
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_ALPHA = (1, 2)
_OF_ANOTHER = 0b101
"""Bits of a page that is a smaller copy of another one (cloud-optimised GeoTIFF) or its transparency mask."""

_ORIENTATION, _SUBFILE_TYPE, _COLOR_MAP, _COLOUR_SPACE = 274, 254, 320, 262
_RGB_BANDS = 3
_NODATA = 42113
_LAYOUT = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530}
"""Tags without which pixels would be read as something else."""

_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}


class _Space(NamedTuple):
    """A colour space: Pillow's mode, and its number of bands."""

    mode: str
    bands: int


_MODES: dict[tuple[int | None, int], str] = {(1, 0): "L", (1, 1): "LA", (3, 0): "RGB", (3, 1): "RGBA"}
"""Pillow's modes by the number of colours and of further bands."""

_CONVERTED = {_CMYK: _Space("CMYK", 4), _YCBCR: _Space("YCbCr", 3), _CIELAB: _Space("LAB", 3)}
"""Colour spaces converted by Pillow."""


class TiffFile(ImageFile):
    """A TIFF file.

    Args:
        file: Open file.

    Raises:
        Undecodable: Its first page is no image.
    """

    gives_rows = True

    def __init__(self, file: IO[bytes]) -> None:
        self._tiff = tifffile.TiffFile(file, name="image.tif")
        self._file = file
        self._plane = 0
        self._use(self._tiff.pages.first)

    def _use(self, page: Any) -> None:
        self._page: Any = page
        self.width, self.height = int(self._page.imagewidth), int(self._page.imagelength)
        if not self.width or not self.height or self._unread_tags():
            raise Undecodable("corrupt", "the TIFF lacks tags that describe its pixels; upload it again")
        bands, bits = int(self._page.samplesperpixel), int(np.max(self._page.bitspersample))
        jpeg = self._page.compression in _JPEG
        self._photometric = int(self._page.photometric)
        if _COLOUR_SPACE not in self._page.tags:  # read as GDAL does
            self._photometric = _RGB if bands >= _RGB_BANDS else _MINISBLACK
        if self._photometric == _YCBCR and jpeg:  # its decoder converts
            self._photometric = _RGB
        others = sum(kind in _ALPHA for kind in self._page.extrasamples)
        self.colours = 3 if self._photometric == _RGB else bands - others
        self.maximum = 2**bits - 1 if self._page.sampleformat in (_UNSIGNED, _UNDEFINED) else None
        self.nodata = self._stated_nodata()

    def _stated_nodata(self) -> float | None:
        """Return the number that stands for no data, by GDAL's tag."""
        try:
            stated = float(str(self._page.tags.valueof(_NODATA, "")).strip("\0 "))
        except ValueError:
            return None
        # Of inverted numbers, indices and converted colours it says nothing.
        return stated if self._photometric in (_MINISBLACK, _RGB) else None

    def _unread_tags(self) -> set[int]:
        """Return tags of the pixels' layout that the header names and tifffile left out, since the file is cut."""
        tiff: Any = self._tiff.tiff
        self._file.seek(self._page.offset)
        count = int.from_bytes(self._file.read(tiff.tagnosize), _ORDERS[self._tiff.byteorder])
        entries = self._file.read(count * tiff.tagsize)
        codes = {
            int.from_bytes(entries[place : place + 2], _ORDERS[self._tiff.byteorder])
            for place in range(0, len(entries), tiff.tagsize)
        }
        return {code for code in codes & _LAYOUT if code not in self._page.tags}

    def frames(self) -> int:
        return max(len(self._pages), self._planes)

    def page(self, number: int) -> "TiffFile":
        if number == 1:
            return self  # whatever follows, it may be damaged
        if len(self._pages) == 1 and number <= self._planes:
            self._plane = number - 1
        elif number <= len(self._pages):
            self._use(self._pages[number - 1])
        else:
            raise Undecodable("corrupt", f"the TIFF has no page {number}; upload it again")
        return self

    @cached_property
    def _pages(self) -> list[Any]:
        """Pages with an image of their own."""
        pages: list[Any] = list(self._tiff.pages)
        return [
            page
            for number, page in enumerate(pages)
            if not number or not int(page.tags.valueof(_SUBFILE_TYPE, 0)) & _OF_ANOTHER
        ]

    @cached_property
    def _planes(self) -> int:
        """Number of images behind the first header."""
        return tiff_planes.count(self._tiff, self._page)

    def orientation(self) -> int:
        stated = self._page.tags.valueof(_ORIENTATION, 1)
        return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1

    def pixels(self) -> Image.Image | NDArray[Any]:
        return self.rows(0, self.height)

    def rows(self, top: int, bottom: int) -> Image.Image | NDArray[Any]:
        """See `ImageFile.rows`."""
        samples = self._segments.rows(top, bottom)
        bits, bands = int(self._page.bitspersample), samples.shape[2]
        if self._photometric == _PALETTE:
            return _with_palette(samples[..., 0], self._page.tags.valueof(_COLOR_MAP), bits)
        if self._photometric == _MINISWHITE:
            samples = _inverted(samples, bits)
        if bits == bands == 1:
            return Image.fromarray(samples[..., 0].astype(np.bool_))
        if samples.dtype != np.uint8 or bits != 8:
            return samples
        space = _CONVERTED.get(self._photometric)
        mode = _MODES.get((self.colours, bands - self.colours)) if space is None else space.mode
        return samples if mode is None else _merged(mode, samples[..., : space.bands if space else bands])

    def numbers(self) -> Image.Image | NDArray[Any]:
        """See `ImageFile.numbers`."""
        bits = int(self._page.bitspersample)
        greys = self._photometric in (_MINISWHITE, _MINISBLACK)
        if not greys and not (self._photometric == _PALETTE and bits > 8):
            return self.pixels()
        samples = self._segments.rows(0, self.height)
        if bits < 8 and samples.shape[2] == 1:
            return with_greys(samples[..., 0], bits, white_first=self._photometric == _MINISWHITE)
        return samples

    @cached_property
    def _segments(self) -> Segments:
        _refuse_other_kinds(self._page, self._photometric)
        return Segments(self._page, self._file, self._tiff.byteorder, plane=self._plane)


def read_header(file: IO[bytes]) -> TiffFile:
    """Read the header of a TIFF file."""
    return TiffFile(file)


def _refuse_other_kinds(page: Any, photometric: int) -> None:
    kind, bits = page.sampleformat, page.bitspersample
    if isinstance(bits, tuple):
        raise Undecodable("unsupported", f"bands of {', '.join(map(str, bits))} bits; store all bands alike")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        name = getattr(page.compression, "name", str(page.compression))
        raise Undecodable("unsupported", f"TIFF of the compression {name}; store Deflate or LZW")
    if page.dtype is None or kind not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED):
        name = {5: "complex integers", 6: "complex numbers"}.get(kind, f"samples of format {kind}")
        raise Undecodable("unsupported", f"{name} of {bits} bits; store 8 or 16 bits")
    if photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, *_CONVERTED):
        name = getattr(page.photometric, "name", str(page.photometric))
        raise Undecodable("unsupported", f"TIFF of the colour space {name}; store RGB or grey")
    if photometric in _CONVERTED and (bits != 8 or page.samplesperpixel < _CONVERTED[photometric].bands):
        raise Undecodable("unsupported", f"{_CONVERTED[photometric].mode} of {bits} bits is not supported; store RGB")


def _inverted(samples: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return greys of which the largest is black."""
    if samples.dtype.kind == "f":
        return 1 - samples
    return ~samples if samples.dtype.kind == "i" else samples ^ samples.dtype.type(2**bits - 1)


def _merged(mode: str, samples: NDArray[np.uint8]) -> Image.Image:
    if mode == "LAB":  # a and b are stored as signed numbers
        samples = samples ^ np.array([0, 128, 128], np.uint8)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(samples, 2, 0)]
    return planes[0] if len(planes) == 1 else Image.merge(mode, planes)


def _with_palette(indices: NDArray[Any], stored: Any, bits: int) -> Image.Image:
    """Return an image with a palette. Colours are of 16 bits; some programs write 8-bit values."""
    if stored is None or bits > 8:
        raise Undecodable("unsupported", f"a palette of {bits} bits; store RGB")
    wide = np.asarray(stored, np.uint16).reshape(3, -1)
    colours = (wide if wide.max() < 256 else wide >> 8).astype(np.uint8)
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours.T.tobytes())
    return image
