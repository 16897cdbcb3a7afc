"""The strips and tiles of a TIFF page, decoded by tifffile and imagecodecs: rows as stored, in bounded memory.

A segment without a place in the file (GDAL's sparse files) holds the no-data value, or zeros. One that is cut off
is an error.
"""

from typing import IO, Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.codecs import jpeg_strict, lerc
from maskfleet.jobs.images.contract import Undecodable

_JPEG = (6, 7)
_LERC = 34887
_GREY, _RGB = 1, 2
"""Colour spaces of imagecodecs."""

_SEPARATE = 2
"""Planar configuration of bands that are stored one after the other."""


class Segments:
    """The segments of a page.

    Args:
        page: Page of tifffile.
        file: Open file.
        byteorder: Byte order of the file, "<" or ">".
        plane: Number of the image, of several behind one header; counted from 0.

    Raises:
        Undecodable: The images behind the header cannot be told apart.
    """

    def __init__(self, page: Any, file: IO[bytes], byteorder: str, *, plane: int = 0) -> None:
        self._page, self._file = page, file
        self._stored = page.dtype.newbyteorder(byteorder)
        self._planes = page.samplesperpixel if page.planarconfig == _SEPARATE else 1
        self._bands = page.samplesperpixel // self._planes
        """Bands of a segment."""
        self._height = page.tilelength if page.is_tiled else page.rowsperstrip
        self._width = page.tilewidth if page.is_tiled else page.imagewidth
        self._across, self._down = -(-page.imagewidth // self._width), -(-page.imagelength // self._height)
        plain = page.compression == page.predictor == page.fillorder == 1 and not page.is_tiled
        self._is_plain = plain and page.bitspersample in (8, 16, 32, 64)
        """Whether rows can be read without the rest of their strip."""
        self._depth, self._layer = divmod(plane if page.imagedepth > 1 else 0, page.tiledepth if page.is_tiled else 1)
        self._deep = -(-page.imagedepth // (page.tiledepth if page.is_tiled else 1))
        """Segments behind one another."""
        self._shift = page.nbytes * plane if page.imagedepth == 1 else 0
        """Bytes between this image and the first."""
        if self._shift and not page.is_contiguous:
            raise Undecodable("unsupported", "a compressed stack with one header; write a header for each image")
        self._held: dict[int, NDArray[Any]] = {}

    def rows(self, top: int, bottom: int) -> NDArray[Any]:
        """Decode rows, (rows, W, bands), in native byte order.

        A segment used in part is held for the next call, unless these rows end the image: one strip may hold all rows.

        Args:
            top: First row.
            bottom: Row after the last one.

        Raises:
            Undecodable: The file ends before its pixels do.
        """
        rows = np.zeros((bottom - top, self._page.imagewidth, self._planes * self._bands), self._page.dtype)
        used: dict[int, NDArray[Any]] = {}
        for plane in range(self._planes):
            bands = rows[..., plane * self._bands : (plane + 1) * self._bands]
            for step in range(top // self._height, -(-bottom // self._height)):
                first = step * self._height
                start, stop = max(top, first), min(bottom, first + self._height)
                for column in range(self._across):
                    index = ((plane * self._deep + self._depth) * self._down + step) * self._across + column
                    left = column * self._width
                    place = bands[start - top : stop - top, left : left + self._width]
                    place[...] = self._part(index, start - first, stop - first, used)[:, : place.shape[1]]
        self._held = used if bottom < self._page.imagelength else {}
        return rows

    def _part(self, index: int, start: int, stop: int, used: dict[int, NDArray[Any]]) -> NDArray[Any]:
        """Return rows of a segment, (rows, W, bands). Notes a decoded segment in `used`."""
        page = self._page
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise Undecodable("corrupt", "the TIFF lacks the places of its pixels; upload it again")
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        if not offset:
            return np.full((1, 1, 1), page.nodata, page.dtype).repeat(self._width, 1)
        offset += self._shift
        if self._is_plain:
            return self._plain(offset, count, start, stop)
        if (segment := self._held.get(index)) is None:
            segment = self._decoded(index, self._read(offset, count))
            if len(segment) < stop:
                raise Undecodable("corrupt", "a strip is shorter than its rows; upload it again")
        if stop - start < len(segment):
            used[index] = segment
        return segment[start:stop]

    def _decoded(self, index: int, data: bytes) -> NDArray[Any]:
        page = self._page
        if page.compression == _LERC and not self._layer:
            return lerc.decoded(data, page)
        if page.compression in _JPEG:  # imagecodecs passes over libjpeg's warnings
            jpeg_strict.judge(_whole_jpeg(data, page))
            if page.jpegheader is None and (space := self._unconverted) is not None:
                tables = page.jpegtables
                pixels = imagecodecs.jpeg8_decode(data, tables=tables, colorspace=space, outcolorspace=space)
                return np.atleast_3d(pixels)
        decoded = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        layer: NDArray[Any] = decoded[self._layer]
        return layer

    @property
    def _unconverted(self) -> int | None:
        """Colour space that keeps libjpeg from taking bands for YCbCr; None where tifffile knows it."""
        if self._planes > 1:
            return _GREY
        return _RGB if self._bands == 3 and self._page.extrasamples else None

    def _plain(self, offset: int, count: int, start: int, stop: int) -> NDArray[Any]:
        row = self._width * self._bands * self._stored.itemsize
        if 0 < count < stop * row:  # some programs state no count
            raise Undecodable("corrupt", "a strip is shorter than its rows; upload it again")
        data = self._read(offset + start * row, (stop - start) * row)
        return np.frombuffer(data, self._stored).reshape(stop - start, self._width, self._bands)

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(max(0, count))  # tifffile's estimate of a missing count may be negative
        if len(data) != count:
            raise Undecodable("corrupt", "the file ends before its pixels do; upload it again")
        return data


def _whole_jpeg(data: bytes, page: Any) -> bytes:
    """Return a strip or tile as a file of its own, with the tables that the page has for all."""
    if page.jpegheader is not None:
        return bytes(page.jpegheader) + data
    return data if page.jpegtables is None else data[:2] + bytes(page.jpegtables)[2:-2] + data[2:]
