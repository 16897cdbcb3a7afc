"""One entry of a tar archive: its own header, with the extra headers before it. Keeps no data.

Reads POSIX.1-1988 (ustar), POSIX.1-2001 (pax: `path` and `size`) and GNU (long names, base-256 sizes, sparse maps).
Numbers are taken as the formats define them: no sign, no separator, no size beyond the end of the archive.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

BLOCK = 512

_FAR = 2**20
"""Smallest size in bytes of a member that is skipped. Reading past a smaller one costs no more than a request."""

_READ_AHEAD = 4 * 2**20
_FIRST_READ = 2**18
_LONGEST_HEADER = 2**20
"""Largest size of a pax or GNU header in bytes. A larger one is taken for damage."""

_MOST_HEADERS = 32
"""Largest number of extra headers of one entry. More are taken for damage."""

_LONGEST_NAME = 4096
"""Length of the longest usable name, as in the file systems of Linux."""

_SHOWN = 64
"""Characters of a longer name that are kept, from each end."""

_EXTRA = b"xXgLK"
_LINKS = b"12"
_WITHOUT_DATA = b"123456"
_NOT_FILES = b"3456DVN"
"""Devices, folders, pipes, and GNU's lists of folders, labels and old long names. POSIX reads all others as files."""

_DIGITS = {8: re.compile(rb"[0-7]*"), 10: re.compile(rb"[0-9]*")}


class TarMember(NamedTuple):
    """A file in the archive.

    Attributes:
        name: Name as stored, without a leading `./`; '' if the header is damaged.
        offset: Offset of the data in bytes; that of the header if it is damaged.
        size: Size of the data in bytes.
        fault: Key of `tars.Tars.faults` if the file is unusable, else None.
    """

    name: str
    offset: int
    size: int
    fault: str | None = None


class Damaged(Exception):
    """A header is invalid."""


class CutOff(Exception):
    """A header is valid, and the archive ends before the data it announces."""


class Window:
    """The part of the archive in memory, around the next header.

    Args:
        read: Returns bytes, given an offset and a length; fewer only at the end of the archive.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._start, self._data, self._length = 0, b"", _FIRST_READ

    def at(self, offset: int, length: int) -> bytes:
        """Return bytes of the archive, and read ahead."""
        inside = offset - self._start
        if inside < 0 or inside + length > len(self._data):
            # The next member is likely as large as the last one.
            far = inside - len(self._data) >= _FAR
            self._start, self._data = offset, self._read(offset, max(length, BLOCK if far else self._length))
            self._length = _READ_AHEAD
            inside = 0
        return self._data[inside : inside + length]

    def chunk(self, offset: int) -> bytes:
        """Return the bytes in memory from an offset on; reads ahead if there are none."""
        self.at(offset, BLOCK)
        return self._data[offset - self._start :]


def entry_at(window: Window, offset: int, size: int) -> tuple[TarMember | None, int]:
    """Read the entry at an offset.

    Args:
        window: The archive.
        offset: Offset of its first header.
        size: Size of the archive in bytes.

    Returns:
        The file, and the offset behind it; or None, and the offset of a block of zeros. Folders and devices have no
        name.

    Raises:
        Damaged: A header is invalid.
        CutOff: The archive ends within the entry.
    """
    fields: dict[str, bytes] = {}
    for _ in range(_MOST_HEADERS):
        block = window.at(offset, BLOCK)
        if not block.strip(b"\0"):
            if fields:
                raise Damaged
            return None, offset
        kind, length = header(block)
        data = offset + BLOCK
        if kind not in _EXTRA:
            return _file(window, block, data, size=size, fields=fields)
        if length > _LONGEST_HEADER:
            raise Damaged
        if data + length > size:
            raise CutOff
        extra = window.at(data, length)
        if kind == b"L":
            fields["path"] = extra
        elif kind in b"xX":
            fields |= _pax(extra)
        offset = data + _padded(length)
        if offset >= size:
            raise CutOff
    raise Damaged


def _file(
    window: Window, block: bytes, data: int, *, size: int, fields: dict[str, bytes]
) -> tuple[TarMember | None, int]:
    """Return the file of a header, and the offset behind its data."""
    kind, length = header(block)
    if "size" in fields:
        length = _number(fields["size"], 10)
    if kind == b"S":
        data = _behind_map(window, block, data)
    stored = 0 if kind in _WITHOUT_DATA else length
    if data + stored > size:
        raise CutOff
    following = data + _padded(stored)
    if kind in _NOT_FILES:
        return TarMember("", data, 0), following
    stated = fields.get("GNU.sparse.name", fields.get("path"))
    name = _relative(_name(block) if stated is None else _text(stated))
    sparse = kind == b"S" or any(field.startswith("GNU.sparse.") for field in fields)
    fault = _fault(kind, name, sparse=sparse)
    if fault == "long_name":
        name = f"{name[:_SHOWN]}…{name[-_SHOWN:]}"
    return TarMember(name, data, stored, fault), following


def _behind_map(window: Window, block: bytes, data: int) -> int:
    """Return the offset of the data of GNU's sparse file: its map may continue in blocks after the header."""
    more = block[482]
    while more:
        extension = window.at(data, BLOCK)
        if len(extension) < BLOCK:
            raise CutOff
        more = extension[504]
        data += BLOCK
    return data


def header(block: bytes) -> tuple[bytes, int]:
    """Parse a header into its type and the size of its data.

    Raises:
        Damaged: The checksum does not match, or the size is no number.
        CutOff: The block is not whole.
    """
    if len(block) < BLOCK:
        raise CutOff
    stated = _number(block[148:156], 8)
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stated != total:
        # Some old writers summed signed bytes.
        signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != signed:
            raise Damaged
    field = block[124:136]
    length = int.from_bytes(field[1:]) if field[0] == 0x80 else _number(field, 8)
    return block[156:157], length


def _number(field: bytes, base: int) -> int:
    """Parse digits up to the first zero byte. `int` alone takes signs and underscores too."""
    digits = field.partition(b"\0")[0].strip(b" ")
    if len(digits) > 32 or not _DIGITS[base].fullmatch(digits):
        raise Damaged
    return int(digits or b"0", base)


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _pax(data: bytes) -> dict[str, bytes]:
    """Parse pax records, `<length> <name>=<value>` and a line feed each."""
    fields: dict[str, bytes] = {}
    start = 0
    while start < len(data) and data[start]:
        length, _, rest = data[start : start + 20].partition(b" ")
        end = start + _number(length, 10)
        name, equals, value = data[start + len(length) + 1 : end - 1].partition(b"=")
        if not rest or not equals or end <= start or data[end - 1 : end] != b"\n":
            raise Damaged
        fields[name.decode("utf-8", "replace")] = value
        start = end
    return fields


def _relative(name: str) -> str:
    return re.sub(r"^(?:\./+)+", "", name)


def _fault(kind: bytes, name: str, *, sparse: bool) -> str | None:
    if len(name) > _LONGEST_NAME:
        return "long_name"
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        return "unsafe_name"
    if sparse:
        return "sparse"
    return "link" if kind in _LINKS else None


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
