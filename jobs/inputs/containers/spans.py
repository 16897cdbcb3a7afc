"""Reads members stored as spans of bytes, neighbours together: a few large ranges instead of a request each.

Of each file at most two windows are in memory.
"""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from maskfleet.jobs.inputs.containers.contract import MemberReader, Reference
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.files import Files

PLACE = r"offset=\d+&size=\d+"
"""Form of a span in a member's URL; see `Container.place`."""

_WINDOW = 16 * 2**20
"""Bytes of members read together."""

_GAP = 2**18
"""Largest gap in bytes between two members of one request. The bytes in the gap are dropped."""

_PIECE = 64 * 2**20
"""Bytes per request of a member larger than memory."""


class SpanReader(MemberReader):
    """Reader of members with an `offset` and a `size` in bytes.

    Args:
        files: Opens files by URL.
        members: Members, about in the order of reading.
        damaged: Error class of a file that ends before a member does.
    """

    def __init__(self, files: Files, members: Sequence[Reference], *, damaged: str) -> None:
        self._files = files
        self._windows = [_Window(window, damaged) for window in _windows(members)]
        self._window_of = {key: number for number, window in enumerate(self._windows) for key in window.keys}

    def read(self, member: Reference) -> bytes:
        number = self._window_of[member.key]
        for window in self._windows[number : number + 2]:  # the next one is fetched while this one is used
            window.start(self._files)
        return self._windows[number].take(member.key)

    def pieces(self, member: Reference) -> Iterator[bytes]:
        storage, path = self._files.found(member.file)
        start, size = _span(member)
        for done in range(0, size, _PIECE):
            yield storage.read_range(path, start + done, min(_PIECE, size - done), member.etag)


def _span(member: Reference) -> tuple[int, int]:
    return int(member.place["offset"]), int(member.place["size"])


def _windows(members: Sequence[Reference]) -> Iterator[list[Reference]]:
    """Yield consecutive members of one file, as many as are read together."""
    for _, run in itertools.groupby(members, lambda member: (member.file, member.etag)):
        window: list[Reference] = []
        held = 0
        for member in run:
            if window and held + _span(member)[1] > _WINDOW:
                yield window
                window, held = [], 0
            window.append(member)
            held += _span(member)[1]
        yield window


class _Range(NamedTuple):
    """A range of a file.

    Attributes:
        start: Offset of the first byte.
        stop: Offset after the last byte.
    """

    start: int
    stop: int


class _Window:
    """Members of one file that are read together. Its bytes are freed with the last member taken."""

    def __init__(self, members: list[Reference], damaged: str) -> None:
        self._file, self._etag, self._damaged = members[0].file, members[0].etag, damaged
        self._spans = {member.key: _span(member) for member in members}
        self._ranges = list(_coalesced(self._spans.values()))
        self._left = len(self._spans)
        self._pieces: list[Future[bytes]] | None = None
        self._lock = threading.Lock()

    @property
    def keys(self) -> Iterator[str]:
        return iter(self._spans)

    def start(self, files: Files) -> None:
        with self._lock:
            if self._pieces is None:
                self._pieces = [
                    files.range(self._file, piece.start, piece.stop - piece.start, self._etag) for piece in self._ranges
                ]

    def take(self, key: str) -> bytes:
        offset, size = self._spans[key]
        number = bisect_right(self._ranges, offset, key=lambda piece: piece.start) - 1
        assert self._pieces is not None
        data = b""
        try:
            if size:
                start = offset - self._ranges[number].start
                data = self._pieces[number].result()[start : start + size]
            if len(data) < size:
                raise Fault(self._damaged, f"{self._file} ends before byte {offset + size}; write it again")
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._pieces = []
        return data


def _coalesced(spans: Iterable[tuple[int, int]]) -> Iterator[_Range]:
    start = stop = None
    for offset, size in sorted(span for span in spans if span[1]):
        if start is not None and stop is not None and offset - stop <= _GAP and stop - start <= 2 * _WINDOW:
            stop = max(stop, offset + size)
            continue
        if start is not None and stop is not None:
            yield _Range(start, stop)
        start, stop = offset, offset + size
    if start is not None and stop is not None:
        yield _Range(start, stop)
