"""PNG files of class maps. Their bytes depend on the class map and its values alone.

Not written by Pillow: masks are long runs, and deflate restricted to runs (`zlib.Z_RLE`) takes a quarter of the time of
Pillow's fastest level and two thirds of its bytes (tests/benchmarks/README.md). With the extra `fast`, zlib-ng writes
the same bytes in half the time.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:  # the extra `fast`
    from zlib_ng import zlib_ng as deflating
except ImportError:
    deflating: Any = zlib  # type: ignore[no-redef]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_FILTER_NONE, _FILTER_SUB = 0, 1


def default_values(classes: int) -> tuple[int, ...]:
    """Default pixel values: 0 and 255 for two classes, else the number of each class."""
    return (0, 255) if classes == 2 else tuple(range(classes))


class Encoder:
    """Encodes class maps as PNG files.

    Args:
        values: Pixel value of each class: integers in 0 … 255, or RGB triples. The values (0, 1) give a 1-bit image,
            as Pytorch-UNet's predict.py does.

    Raises:
        ValueError: The values are neither.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        table = np.asarray(values)
        if table.ndim > 2 or (table.ndim == 2 and table.shape[1] != 3) or table.min() < 0 or table.max() > 255:
            raise ValueError(f"mask values must be integers in 0 … 255, or RGB triples of them, got {list(values)}")
        self._bits = 1 if table.tolist() == [0, 1] else 8
        self._colour = _RGB if table.ndim == 2 else _GREY
        self._columns = table.reshape(len(table), -1).T.astype(np.uint8)

    def encode(self, classes: NDArray[np.uint8]) -> bytes:
        """Return the PNG file of a class map (H, W)."""
        rows = self.row_encoder(*classes.shape)
        rows.write(classes)
        return rows.finish()

    def row_encoder(self, height: int, width: int) -> "RowEncoder":
        """Start a file of `height` × `width` px; its rows arrive later. The bytes equal those of `encode`."""
        header = struct.pack(">IIBBBBB", width, height, self._bits, self._colour, 0, 0, 0)
        return RowEncoder(header, self._scanlines)

    def _scanlines(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = classes.shape
        lines = np.empty((height, 1 + (width * self._bits + 7) // 8 * len(self._columns)), np.uint8)
        lines[:, 0] = _FILTER_SUB if self._colour == _RGB else _FILTER_NONE
        rows = lines[:, 1:]
        if self._bits == 1:
            rows[:] = np.packbits(classes, axis=1)
            return lines
        for index, column in enumerate(self._columns):
            _look_up(classes, column, rows[:, index :: len(self._columns)])
        if self._colour == _RGB:  # runs of pixels become runs of bytes only as differences of neighbours
            rows[:, 3:] -= rows[:, :-3]
        return lines


def _look_up(classes: NDArray[np.uint8], table: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """Write the value of each class. Both branches are many times faster than indexing."""
    if len(table) == 2:
        np.multiply(classes, table[1:] - table[:1], out=into)  # modulo 256, like the sum below
        if table[0]:
            into += table[:1]
    else:
        values = classes.tobytes().translate(table.tobytes().ljust(256, b"\0"))
        into[:] = np.frombuffer(values, np.uint8).reshape(classes.shape)


class RowEncoder:
    """A PNG file, encoded while its rows arrive. Only its compressed part is in memory.

    Args:
        header: Body of the IHDR chunk.
        scanlines: Converts rows of classes into the file's scanlines.
    """

    def __init__(self, header: bytes, scanlines: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        self._header, self._scanlines = header, scanlines
        self._deflate = deflating.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self._parts: list[bytes] = []

    def write(self, classes: NDArray[np.uint8]) -> None:
        """Add rows of the class map, (rows, W)."""
        self._parts.append(self._deflate.compress(self._scanlines(classes).data))

    def finish(self) -> bytes:
        """Return the file after its last row."""
        data = b"".join((*self._parts, self._deflate.flush()))
        return b"".join((_SIGNATURE, *_chunk(b"IHDR", self._header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def shape_of(data: bytes) -> tuple[int, ...]:
    """Return the shape of a PNG file written by `Encoder`: (H, W), or (H, W, 3) if it is RGB.

    Raises:
        ValueError: `Encoder` did not write this file.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or data[37:41] != b"IDAT":
        raise ValueError("not a mask PNG of this package")
    width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
    return (height, width, 3) if colour == _RGB else (height, width)


def bands(data: bytes, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Decode a PNG file written by `Encoder`, `rows` rows at a time. A large mask is never in memory as a whole.

    Yields:
        uint8 arrays (rows, W) or (rows, W, 3), from top to bottom; the last one may have fewer rows.

    Raises:
        ValueError: `Encoder` did not write this file, or it is damaged.
    """
    height, width, *colours = shape_of(data)
    bits = data[24]
    line = 1 + (-(-width * bits // 8)) * (3 if colours else 1)
    (size,) = struct.unpack_from(">I", data, 33)
    inflate, packed = zlib.decompressobj(), data[41 : 41 + size]
    if len(packed) < size:
        raise ValueError("truncated, no complete mask")
    try:
        for top in range(0, height, rows):
            raw = _inflated(inflate, packed, min(rows, height - top) * line)
            packed = inflate.unconsumed_tail
            lines = np.frombuffer(raw, np.uint8).reshape(-1, line)[:, 1:]
            if bits == 1:
                yield np.unpackbits(lines, axis=1, count=width)
            elif colours:
                yield lines.reshape(-1, width, 3).cumsum(axis=1, dtype=np.uint8)
            else:
                yield lines
    except zlib.error as error:
        raise ValueError(f"damaged ({error}), no mask") from error


def class_bands(data: bytes, values: Sequence[Any], rows: int) -> Iterator[NDArray[np.uint8]]:
    """Decode a PNG file written by `Encoder` to classes, `rows` rows at a time; see `bands`.

    Args:
        data: The file.
        values: Pixel value of each class.
        rows: Rows decoded at once.

    Yields:
        Class maps (rows, W), uint8, from top to bottom.
    """
    # Values are unique, so that each names one class.
    table = np.asarray(values, np.uint8).reshape(len(values), -1)
    for band in bands(data, rows):
        shown = band.reshape(*band.shape[:2], -1)
        classes = np.zeros(band.shape[:2], np.uint8)
        for class_ in range(1, len(table)):
            classes[(shown == table[class_]).all(axis=2)] = class_
        yield classes


def _inflated(inflate: Any, packed: bytes, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = inflate.decompress(packed, size)
        packed = inflate.unconsumed_tail
        size -= len(part)
        parts.append(part)
        if not part and not packed:
            raise ValueError("truncated, no complete mask")
    return parts[0] if len(parts) == 1 else b"".join(parts)
