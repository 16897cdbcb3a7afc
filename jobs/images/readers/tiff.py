"""TIFF, read by tifffile and imagecodecs as its tags say: any byte order, BigTIFF, strips, tiles, planes and depth.

Rows are read segment by segment, so an image larger than memory takes no more than the segments of the rows wanted.
A segment that is stated to be absent (GDAL's sparse files) holds the no-data value, or zeros; one that is cut off is an
error. The tags are those of "TIFF Revision 6.0" (Adobe, 1992).
"""

import logging
from typing import IO, Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.images.contract import Undecodable
from maskfleet.jobs.images.formats import ImageFile

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_JPEG = (6, 7)
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_ALPHA = (1, 2)
_OF_ANOTHER = 0b101
"""Bits of a page that is a smaller copy of another one (cloud-optimised GeoTIFF) or its transparency mask."""

_ORIENTATION, _SUBFILE_TYPE, _COLOR_MAP = 274, 254, 320
_LAYOUT = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530}
"""Tags without which pixels would be read as something else."""

_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_MODES = {(1, 0): "L", (1, 1): "LA", (3, 0): "RGB", (3, 1): "RGBA"}
"""Pillow's modes by the number of colours and of further bands."""

_CONVERTED = {_CMYK: ("CMYK", 4), _YCBCR: ("YCbCr", 3), _CIELAB: ("LAB", 3)}
"""Colour spaces that Pillow converts, with their number of bands."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it reports damaged tags of hostile files at length


class TiffFile(ImageFile):
    """A TIFF file.

    Args:
        file: Open file.

    Raises:
        Undecodable: Its first page is no image, or of a kind that is not supported.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._tiff = tifffile.TiffFile(file, name="image.tif")
        self._page: Any = self._tiff.pages.first
        self._file = file
        self.width, self.height = int(self._page.imagewidth), int(self._page.imagelength)
        if not self.width or not self.height or self._unread_tags():
            raise Undecodable("corrupt", "the TIFF lacks tags that describe its pixels; upload it again")

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
        pages: list[Any] = list(self._tiff.pages)
        single = sum(
            not number or not int(page.tags.valueof(_SUBFILE_TYPE, 0)) & _OF_ANOTHER
            for number, page in enumerate(pages)
        )
        return max(single, self._planes())

    def _planes(self) -> int:
        """Return the number of images stored behind one header: by ImageJ, tifffile, or as an image depth."""
        depth = int(self._page.imagedepth)
        if self._page.is_imagej:
            return max(depth, int((self._tiff.imagej_metadata or {}).get("images", 1)))
        if self._page.is_shaped and (shaped := self._tiff.shaped_metadata):
            stated = int(np.prod(shaped[0].get("shape", (1,)), dtype=np.int64))
            return max(depth, stated // max(1, int(self._page.size)))
        return depth

    def orientation(self) -> int:
        stated = self._page.tags.valueof(_ORIENTATION, 1)
        return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1

    def pixels(self) -> Image.Image | NDArray[Any]:
        return self.rows(0, self.height)

    def rows(self, top: int, bottom: int) -> Image.Image | NDArray[Any]:
        """See `ImageFile.rows`."""
        _refuse_other_kinds(self._page)
        return self._interpreted(self._stored(top, bottom))

    def _stored(self, top: int, bottom: int) -> NDArray[Any]:
        """Decode rows as stored, (rows, W, bands), in native byte order."""
        page = self._page
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        bands = page.samplesperpixel
        rows = np.zeros((bottom - top, self.width, bands), page.dtype)
        down = page.tilelength if page.is_tiled else page.rowsperstrip
        across = -(-self.width // page.tilewidth) if page.is_tiled else 1
        steps = -(-self.height // down)
        for plane in range(planes):
            target = rows[..., plane : plane + 1] if planes > 1 else rows
            for step in range(top // down, -(-bottom // down)):
                for column in range(across):
                    self._place((plane * steps + step) * across + column, target, top, step * down)
        return rows

    def _place(self, index: int, target: NDArray[Any], top: int, first: int) -> None:
        """Decode a segment and copy its rows to where they belong.

        Args:
            index: Number of the segment.
            target: Rows wanted, of all bands or of one plane.
            top: First of the rows wanted.
            first: First row of the segment.
        """
        left = index % -(-self.width // self._page.tilewidth) * self._page.tilewidth if self._page.is_tiled else 0
        down = self._page.tilelength if self._page.is_tiled else self._page.rowsperstrip
        start, stop = max(top, first), min(top + len(target), first + down, self.height)
        decoded = self._segment(index, start - first, stop - first)
        part = target[start - top : stop - top, left : left + (self._page.tilewidth or self.width)]
        if decoded is None:
            part[...] = self._page.nodata
        else:
            part[...] = decoded[:, : part.shape[1]]

    def _segment(self, index: int, start: int, stop: int) -> NDArray[Any] | None:
        """Return rows of a segment, (rows, W, bands); None if the file states that it is absent."""
        page = self._page
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise Undecodable("corrupt", "the TIFF lacks the places of its pixels; upload it again")
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        if not offset or not count:
            return None
        if plain := self._plain_rows(offset, count, start, stop):
            return np.frombuffer(*plain).reshape(stop - start, self.width, -1)
        data = self._read(offset, count)
        decoded = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        segment: NDArray[Any] = decoded[0, start:stop]
        return segment

    def _plain_rows(self, offset: int, count: int, start: int, stop: int) -> tuple[bytes, np.dtype[Any]] | None:
        """Return the bytes of rows that are stored plainly, without reading the rest of the strip."""
        page = self._page
        whole_bytes = page.bitspersample in (8, 16, 32, 64)
        if page.compression != 1 or page.is_tiled or page.predictor != 1 or page.fillorder != 1 or not whole_bytes:
            return None
        bands = 1 if page.planarconfig == 2 else page.samplesperpixel
        row = self.width * bands * page.dtype.itemsize
        if stop * row > count:
            raise Undecodable("corrupt", "a strip is shorter than its rows; upload it again")
        return self._read(offset + start * row, (stop - start) * row), page.dtype.newbyteorder(self._tiff.byteorder)

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) < count:
            raise Undecodable("corrupt", "the file ends before its pixels do; upload it again")
        return data

    def _interpreted(self, samples: NDArray[Any]) -> Image.Image | NDArray[Any]:
        """Return stored samples as an image of Pillow, or as an array, with `colours` and `maximum` for the latter."""
        page, bits = self._page, int(self._page.bitspersample)
        photometric, bands = int(page.photometric), samples.shape[2]
        if photometric == _PALETTE:
            return _with_palette(samples[..., 0], page.tags.valueof(_COLOR_MAP), bits)
        if photometric == _MINISWHITE:
            samples = (
                1 - samples if samples.dtype.kind == "f" else np.bitwise_xor(samples, samples.dtype.type(2**bits - 1))
            )
        if bits == 1 and bands == 1:
            return Image.fromarray(samples[..., 0].astype(np.bool_))
        decoded_colours = photometric == _YCBCR and page.compression in _JPEG
        if photometric in _CONVERTED and not decoded_colours:
            space, count = _CONVERTED[photometric]
            if bits == 8 and bands >= count:
                return _merged(space, samples[..., :count])
            raise Undecodable("unsupported", f"{space} of {bits} bits is not supported; store RGB")
        alphas = sum(kind in _ALPHA for kind in page.extrasamples)
        self.colours = 3 if photometric == _RGB or decoded_colours or bands - alphas == 3 else bands - alphas
        self.maximum = 2**bits - 1 if samples.dtype.kind == "u" else None
        mode = _MODES.get((self.colours, bands - self.colours))
        return _merged(mode, samples) if samples.dtype == np.uint8 and bits == 8 and mode is not None else samples


def read_header(file: IO[bytes]) -> TiffFile:
    """Read the header of a TIFF file."""
    return TiffFile(file)


def _refuse_other_kinds(page: Any) -> None:
    kind, bits = page.sampleformat, page.bitspersample
    if page.dtype is None or kind not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED):
        name = {5: "complex integers", 6: "complex numbers"}.get(kind, f"samples of format {kind}")
        raise Undecodable("unsupported", f"{name} of {bits} bits; store 8 or 16 bits")
    if int(page.photometric) not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, *_CONVERTED):
        name = getattr(page.photometric, "name", str(page.photometric))
        raise Undecodable("unsupported", f"TIFF of the colour space {name}; store RGB or grey")


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
