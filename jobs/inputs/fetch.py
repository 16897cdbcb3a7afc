"""Reads records' bytes, wherever they are: files of their own, members of tars, rows of Parquet files.

Of a shard's images that lie in one file, neighbours are read together: a few large ranges in place of a
request each, and never more of the file in memory than two of these.
"""

import itertools
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import pyarrow.parquet as pq

from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.inputs.tables import Rows, opened
from maskfleet.jobs.storage.contract import Fault, Storage
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.schemes import open_storage, split_url
from maskfleet.jobs.storage.subresource import Part, part_of

_WINDOW = 16 * 2**20
"""Bytes of a tar's members that are read together."""

_GAP = 2**18
"""Bytes between two members that are read for nothing rather than asking twice."""

_RANGES_IN_FLIGHT = 16
_COPIED_AT_ONCE = 64 * 2**20
_FOOTERS = 64
"""Of Parquet files, kept between shards."""


class Inputs:
    """Reads records. One per process; safe from several threads."""

    def __init__(self, *, profile: str | None = None) -> None:
        self.profile = profile
        self._stores: dict[str, Storage] = {}
        self._footers: dict[tuple[str, str | None], pq.FileMetaData] = {}
        self._ranges = ThreadPoolExecutor(_RANGES_IN_FLIGHT, "range")

    def reader(self, records: Sequence[Record]) -> "Reader":
        """For records that will all be read, about in this order."""
        return Reader(self, records)

    def read(self, record: Record) -> bytes:
        """One record's bytes; see `Reader.read`."""
        return self.reader([record]).read(record)

    @contextmanager
    def opened(self, record: Record) -> Iterator[BinaryIO]:
        """The same as a local file, for what does not fit into memory. Raises likewise, on closing too."""
        part = part_of(record.url)
        if part is None:
            storage, path = self.found(record.url)
            with storage.opened(path, record.etag) as file:
                yield file
            return
        with tempfile.TemporaryFile() as file:
            for piece in self._pieces(record, part):
                file.write(piece)
            file.seek(0)
            yield file

    def _pieces(self, record: Record, part: Part) -> Iterator[bytes]:
        if "offset" not in part.place:
            yield self.read(record)
            return
        storage, path = self.found(part.file)
        start, size = _span(part)
        for done in range(0, size, _COPIED_AT_ONCE):
            yield storage.read_range(path, start + done, min(_COPIED_AT_ONCE, size - done), record.etag)

    def found(self, url: str) -> tuple[Storage, str]:
        """A file's storage, and its path there."""
        root, path = split_url(url)
        storage = self._stores.get(root)
        if storage is None:  # every image asks for it
            storage = self._stores.setdefault(root, open_storage(root, profile=self.profile))
        return storage, path

    def path(self, record: Record) -> str:
        """Of a record that is a local file."""
        storage, path = self.found(record.url)
        file = storage.local_path(path)
        assert file is not None
        return file

    def table(self, url: str, etag: str | None) -> pq.ParquetFile:
        """A Parquet file. Its footer is read once.

        Raises:
            Fault: It is none.
            StorageError: As reading.
        """
        storage, path = self.found(url)
        size = storage.entry(path).size
        file = opened(RangedFile(storage, path, size, etag), self._footers.get((url, etag)))
        if len(self._footers) >= _FOOTERS:
            self._footers.clear()
        self._footers[url, etag] = file.metadata
        return file

    def range(self, url: str, start: int, size: int, etag: str | None) -> Future[bytes]:
        """A piece of a file, on its way."""
        storage, path = self.found(url)
        return self._ranges.submit(storage.read_range, path, start, size, etag)

    def close(self) -> None:
        """End the threads."""
        self._ranges.shutdown(cancel_futures=True)

    @property
    def retries(self) -> int:
        """Requests repeated so far."""
        return sum(storage.retries for storage in self._stores.values())


class Reader:
    """Reads the records of a shard, each once. Safe from several threads.

    Args:
        inputs: Where they are.
        records: About in the order of reading.
    """

    def __init__(self, inputs: Inputs, records: Sequence[Record]) -> None:
        self._inputs = inputs
        parts = [(record, part) for record in records if (part := _sound(record.url)) is not None]
        members = [(record, part) for record, part in parts if "offset" in part.place]
        self._windows = [_Window(window) for window in _windows(members)]
        self._window_of = {key: number for number, window in enumerate(self._windows) for key in window.keys}
        self._rows: dict[str, list[int]] = {}
        for record, part in parts:
            if "row" in part.place:
                self._rows.setdefault(f"{part.file} {record.etag}", []).append(int(part.place["row"]))
        self._tables: dict[str, _Table] = {}
        self._lock = threading.Lock()

    def read(self, record: Record) -> bytes:
        """The bytes that the plan saw.

        Raises:
            NotFound: It is gone.
            Changed: It is another object now.
            Fault: It is part of a file, and cannot be had.
            StorageError: Storage failed.
        """
        part = part_of(record.url)
        if part is None:
            storage, path = self._inputs.found(record.url)
            return storage.read(path, record.etag)
        if "row" in part.place:
            return self._table(record, part).read(int(part.place["row"]))
        number = self._window_of[record.key]
        for window in self._windows[number : number + 2]:  # the next one is on its way while this one is used
            window.start(self._inputs)
        return self._windows[number].take(record.key)

    def _table(self, record: Record, part: Part) -> "_Table":
        name = f"{part.file} {record.etag}"
        with self._lock:
            if name not in self._tables:
                file = self._inputs.table(part.file, record.etag)
                self._tables[name] = _Table(file, part.place["column"], self._rows[name])
            return self._tables[name]


def _sound(url: str) -> Part | None:
    try:
        return part_of(url)
    except Fault:
        return None


def _span(part: Part) -> tuple[int, int]:
    return int(part.place["offset"]), int(part.place["size"])


def _windows(members: Sequence[tuple[Record, Part]]) -> Iterator[list[tuple[Record, Part]]]:
    """Consecutive members of one tar, as many as are read together."""
    for _, run in itertools.groupby(members, lambda member: (member[1].file, member[0].etag)):
        window: list[tuple[Record, Part]] = []
        held = 0
        for record, part in run:
            if window and held + _span(part)[1] > _WINDOW:
                yield window
                window, held = [], 0
            window.append((record, part))
            held += _span(part)[1]
        yield window


class _Range(NamedTuple):
    """A piece of a tar.

    Attributes:
        start: In bytes.
        stop: Behind its last byte.
    """

    start: int
    stop: int


class _Window:
    """Members of one tar that are read together. What it holds is let go with the last of them."""

    def __init__(self, members: list[tuple[Record, Part]]) -> None:
        self._file, self._etag = members[0][1].file, members[0][0].etag
        self._spans = {record.key: _span(part) for record, part in members}
        self._ranges = list(_coalesced(self._spans.values()))
        self._left = len(self._spans)
        self._pieces: list[Future[bytes]] | None = None
        self._lock = threading.Lock()

    @property
    def keys(self) -> Iterator[str]:
        return iter(self._spans)

    def start(self, inputs: Inputs) -> None:
        with self._lock:
            if self._pieces is None:
                self._pieces = [
                    inputs.range(self._file, piece.start, piece.stop - piece.start, self._etag)
                    for piece in self._ranges
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
                raise Fault("damaged_tar", f"{self._file} ends before byte {offset + size}; write it again")
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


class _Table:
    """Rows of one Parquet file, by their number in it."""

    def __init__(self, file: pq.ParquetFile, column: str, wanted: Sequence[int]) -> None:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._file, self._column = file, column
        self._wanted: dict[int, list[int]] = {}
        for row in wanted:
            group = self._group(row)
            self._wanted.setdefault(group, []).append(row - self._starts[group])
        self._groups: dict[int, Rows] = {}
        self._lock = threading.Lock()

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def read(self, row: int) -> bytes:
        group = self._group(row)
        # One file is one reader: its row groups take turns.
        with self._lock:
            if group not in self._groups:
                self._groups[group] = Rows(self._file, self._column, group, self._wanted[group])
            return self._groups[group].read(row - self._starts[group])
