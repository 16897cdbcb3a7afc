"""Boxes of ISO base media files (ISO/IEC 14496-12), in which JPEG 2000, JPEG XL and AVIF are stored."""

from collections.abc import Iterator
from typing import NamedTuple

_HEAD = 8
_LONG = 16


class Box(NamedTuple):
    """A box.

    Attributes:
        kind: Its type, four bytes.
        content: Bytes after the header, as many as there are.
    """

    kind: bytes
    content: memoryview


def boxes(data: bytes | memoryview) -> Iterator[Box]:
    """Yield the boxes of a file, or of a box that holds boxes; stop where a length is impossible."""
    view = memoryview(data)
    place = 0
    while place + _HEAD <= len(view):
        size, kind = int.from_bytes(view[place : place + 4]), bytes(view[place + 4 : place + 8])
        head = _HEAD
        if size == 1:
            size, head = int.from_bytes(view[place + 8 : place + 16]), _LONG
        end = place + size if size else len(view)
        if end < place + head:
            return
        yield Box(kind, view[place + head : end])
        place = end
