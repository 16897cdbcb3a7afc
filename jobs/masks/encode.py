"""Class maps as PNG files and tar archives, with bytes that depend on the classes alone."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_TAR_END = bytes(1024)
_EMPTY_HEADER = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)
_PLAIN_HEADER = _EMPTY_HEADER[:148] + b" " * 8 + _EMPTY_HEADER[156:]


class Encoder:
    """Writes class maps as PNG.

    Not by Pillow: masks are runs, and deflate that looks for runs alone (`zlib.Z_RLE`) takes a quarter
    of the time of Pillow's fastest level and two thirds of its bytes (tests/benchmarks/README.md). With the
    extra `fast` zlib-ng looks for them, in half the time and to the same bytes.

    Args:
        values: What a pixel of each class shows: an int in 0 … 255 each, or three each for RGB. Exactly
            (0, 1) gives a 1-bit image, as Pytorch-UNet's predict.py does.

    Raises:
        ValueError: Values of another kind.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        table = np.asarray(values)
        if table.ndim > 2 or (table.ndim == 2 and table.shape[1] != 3) or table.min() < 0 or table.max() > 255:
            raise ValueError(f"mask values must be integers in 0 … 255, or three such each, got {list(values)}")
        self._bits = 1 if table.tolist() == [0, 1] else 8
        self._colour = _RGB if table.ndim == 2 else _GREY
        self._columns = table.reshape(len(table), -1).T.astype(np.uint8)

    def encode(self, classes: NDArray[np.uint8]) -> bytes:
        """A PNG file of a class map (H, W)."""
        writer = self.writer(*classes.shape)
        writer.write(classes)
        return writer.finish()

    def writer(self, height: int, width: int) -> "Writer":
        """For a class map that comes in rows; the file's bytes are those of `encode`."""
        header = struct.pack(">IIBBBBB", width, height, self._bits, self._colour, 0, 0, 0)
        return Writer(header, self._lines)

    def _lines(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = classes.shape
        lines = np.empty((height, 1 + (width * self._bits + 7) // 8 * len(self._columns)), np.uint8)
        lines[:, 0] = _FILTER_SUB if self._colour == _RGB else _FILTER_NONE
        rows = lines[:, 1:]
        if self._bits == 1:
            rows[:] = np.packbits(classes, axis=1)
            return lines
        for index, column in enumerate(self._columns):
            _look_up(classes, column, rows[:, index :: len(self._columns)])
        if self._colour == _RGB:  # runs of pixels are runs of bytes only as differences between neighbours
            rows[:, 3:] -= rows[:, :-3]
        return lines


def _look_up(classes: NDArray[np.uint8], table: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """The value of each class. Either way is many times faster than indexing."""
    if len(table) == 2:
        np.multiply(classes, table[1:] - table[:1], out=into)  # modulo 256, as what follows
        if table[0]:
            into += table[:1]
    else:
        values = classes.tobytes().translate(table.tobytes().ljust(256, b"\0"))
        into[:] = np.frombuffer(values, np.uint8).reshape(classes.shape)


class Writer:
    """A PNG file that grows by rows. Only its compressed part is kept.

    Args:
        header: Its first chunk.
        lines: Makes the file's lines of rows of classes.
    """

    def __init__(self, header: bytes, lines: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        self._header, self._lines = header, lines
        self._deflate = deflating.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self._parts: list[bytes] = []

    def write(self, classes: NDArray[np.uint8]) -> None:
        """Add rows of the class map, (rows, W)."""
        self._parts.append(self._deflate.compress(self._lines(classes).data))

    def finish(self) -> bytes:
        """The file, once all rows are written."""
        data = b"".join((*self._parts, self._deflate.flush()))
        return b"".join((_SIGNATURE, *_chunk(b"IHDR", self._header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b"")))


def shape_of(data: bytes) -> tuple[int, ...]:
    """Height, width, and 3 where it shows colours, of a PNG that `Encoder` wrote.

    Raises:
        ValueError: It is another file.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or data[37:41] != b"IDAT":
        raise ValueError("no mask of this package")
    width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
    return (height, width, 3) if colour == _RGB else (height, width)


def bands(data: bytes, rows: int) -> Iterator[NDArray[np.uint8]]:
    """The pixels of a PNG that `Encoder` wrote, so many rows at a time: of a large mask the whole is never in memory.

    Yields:
        (rows, W), or (rows, W, 3), from top to bottom; the last may be fewer.

    Raises:
        ValueError: It is another file, or damaged.
    """
    height, width, *colours = shape_of(data)
    bits = data[24]
    line = 1 + (-(-width * bits // 8)) * (3 if colours else 1)
    (size,) = struct.unpack_from(">I", data, 33)
    inflate, packed = zlib.decompressobj(), data[41 : 41 + size]
    if len(packed) < size:
        raise ValueError("cut off, no whole mask")
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


def _inflated(inflate: Any, packed: bytes, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = inflate.decompress(packed, size)
        packed = inflate.unconsumed_tail
        size -= len(part)
        parts.append(part)
        if not part and not packed:
            raise ValueError("cut off, no whole mask")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def default_values(classes: int) -> tuple[int, ...]:
    """What masks show where neither job nor weights say: 0 and 255 for two classes, else the class's number."""
    return (0, 255) if classes == 2 else tuple(range(classes))


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of named files; equal members give equal bytes. WebDataset reads it."""
    parts: list[bytes] = []
    for name, data in members:
        parts += (_tar_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))
    return b"".join((*parts, _TAR_END))


def _tar_header(name: str, size: int) -> bytes:
    """What `tarfile` writes, which for an ordinary name and size differs from another's in three places alone."""
    if len(name) < tarfile.LENGTH_NAME and name.isascii() and size < 2**32:
        header = bytearray(_PLAIN_HEADER)
        header[: len(name)] = name.encode()
        header[124:136] = b"%011o\0" % size
        header[148:156] = b"%06o\0 " % sum(header)  # over a sum of eight spaces
        return bytes(header)
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def untar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The regular files in an archive, in its order. Nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for header in archive:
            file = archive.extractfile(header) if header.isreg() else None
            if file is not None:
                yield header.name, file.read()
