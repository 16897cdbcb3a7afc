"""Parquet files with a column of images: each row is a member.

A member is named by its row number in nine digits, and by the last component of the row's own name if it has one. So
neighbours in a run are neighbours in the file.
"""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from maskfleet.jobs.inputs.containers.contract import Container, Listing, Member, MemberReader, Reference
from maskfleet.jobs.inputs.containers.parquet_pool import OpenTable, ParquetPool, table_of_file
from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable, too_many
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile

NO_IMAGES = "no_images"
"""Error class of a file without images, which is no input if it only lies beside others."""

_KEPT_BYTES = 64 * 2**20
"""Bytes of rows kept when passed on the way to others. Beyond that, they are read again in their turn."""

_LARGEST_MEAN = 2.0**40
"""Largest mean size of an image in bytes that is believed."""

_OF_A_ROW = {"damaged_parquet": "damaged_row", "too_large_parquet": "too_large_row"}
"""Faults of a row, by the fault of the file that it comes from."""


class Row(NamedTuple):
    """A row of a Parquet file.

    Attributes:
        number: Row number in the file, from 0.
        name: Name of the image, or None.
        column: Path of the column of bytes, such as `image.bytes`.
    """

    number: int
    name: str | None
    column: str


class ParquetFiles(Container[Row]):
    """Parquet files with a column of images."""

    endings = (".parquet",)
    place = r"row=\d+&column=[^&#]+"
    faults = {  # noqa: RUF012  (a constant)
        "no_column": "the Parquet file has several columns of images, or not the one named; name one with 'column'",
        NO_IMAGES: "the Parquet file has no column of images; leave it out",
        "damaged_parquet": "the Parquet file cannot be read to its end, so images are missing; write it again",
        "encrypted": "the image column, or the file's footer, is encrypted; write the file without encryption",
        "too_large_parquet": (
            "reading the Parquet file takes more than 4 GiB of memory, or it has more rows than bytes; write it again "
            "with smaller row groups"
        ),
        "damaged_row": "this part of the Parquet file is damaged; write the file again",
        "too_large_row": (
            "reading this part of the Parquet file takes more than 4 GiB of memory, or the image has over 512 MiB; "
            "write smaller row groups, or the image as a file"
        ),
        "no_bytes": "the row has no image bytes; embed the image's file",
    }
    damage = ("damaged_parquet", "encrypted", "too_large_parquet")
    in_order = True
    entry = Row

    def entries(self, file: RangedFile, listing: Listing) -> Iterator[Row]:
        table = table_of_file(file, listing.files)
        try:
            column, names, rows, mean = _checked(table.ask("images", listing.column).header, file.size())
            listing.report_mean(mean)
            if names is None:
                yield from (Row(number, None, column) for number in range(rows))
                return
            number = 0
            for (name,) in table.values([names]):
                if not isinstance(name, str | None):
                    raise Unreadable("damaged_parquet")
                yield Row(number, name, column)
                number += 1
            if number != rows:
                raise Unreadable("damaged_parquet")
        except Unreadable as refusal:
            raise _fault(refusal.error_class, "the file") from refusal
        finally:
            table.release()

    def member(self, entry: Row) -> Member:
        last = (entry.name or "").rstrip("/").rsplit("/", 1)[-1]
        name = f"{entry.number:09}-{last}" if last else f"{entry.number:09}"
        return Member(name, {"row": str(entry.number), "column": entry.column})

    def reader(self, files: Files, members: Sequence[Reference]) -> MemberReader:
        return _RowReader(files, members)


def _checked(header: Any, size: int) -> tuple[str, str | None, int, float]:
    """Return the answer about a file's images if it is possible: the process may be in the hands of the file."""
    match header:
        case [str(column), str() | None as names, int(rows), float(mean)] if rows >= 0 and 0 <= mean <= _LARGEST_MEAN:
            if too_many(rows, size):
                raise Unreadable("too_large_parquet")
            return column, names, rows, mean
    raise Unreadable("damaged_parquet")


def _fault(error_class: str, what: str) -> Fault:
    """Return the fault of a file or a row, explained."""
    slow = "reading the Parquet file takes too long; run again, and if that does not help, write it again"
    return Fault(error_class, f"{what}: {ParquetFiles.faults.get(error_class, slow)}")


class _RowReader(MemberReader):
    """Reader of rows of any number of files."""

    def __init__(self, files: Files, members: Sequence[Reference]) -> None:
        self._files = files
        self._rows: dict[tuple[str, str | None], list[int]] = {}
        for member in members:
            self._rows.setdefault((member.file, member.etag), []).append(int(member.place["row"]))
        self._tables: dict[tuple[str, str | None], _Table] = {}
        self._lock = threading.Lock()

    def read(self, member: Reference) -> bytes:
        row = int(member.place["row"])
        try:
            return self._table(member).read(row)
        except Unreadable as refusal:
            error_class = _OF_A_ROW.get(refusal.error_class, refusal.error_class)
            raise _fault(error_class, f"row {row} of {member.file}") from refusal

    def _table(self, member: Reference) -> "_Table":
        version = member.file, member.etag
        with self._lock:
            if version not in self._tables:
                file = self._files.ranged(*version)
                pool = self._files.companion(ParquetPool)
                opened = OpenTable(pool, file, version if member.etag is not None else object())
                self._tables[version] = _Table(opened, member.place["column"], self._rows[version])
            return self._tables[version]


class _Table:
    """Rows of one file, by number, each to be read once. Safe from several threads.

    Args:
        table: The file.
        column: Path of the column of bytes.
        wanted: Rows to read; fastest in ascending order.
    """

    def __init__(self, table: OpenTable, column: str, wanted: Sequence[int]) -> None:
        self._table, self._column = table, column
        self._wanted = set(wanted)
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._held: dict[int, bytes | str] = {}
        self._held_bytes = 0
        self._unreadable: dict[int, str] = {}

    def read(self, row: int) -> bytes:
        """Return the bytes of a row.

        Raises:
            Unreadable: The row has none, or cannot be read.
        """
        with self._lock:  # a file has one reader, so its rows take turns
            try:
                if row not in self._held:
                    self._fetch(row)
                found = self._held.pop(row)
            finally:
                self._wanted.discard(row)
                if not self._wanted:
                    self._table.release()
            if isinstance(found, str):
                raise Unreadable(found)
            self._held_bytes -= len(found)
            return found

    def _fetch(self, row: int) -> None:
        """Read until a row is held, and keep other wanted rows on the way to it."""
        if not self._starts:
            groups = self._table.list_of("groups")
            if not all(isinstance(rows, int) and rows >= 0 for rows in groups):
                raise Unreadable("damaged_parquet")
            self._starts = [0, *itertools.accumulate(groups)]
        group = bisect_right(self._starts, row) - 1
        if group in self._unreadable:
            raise Unreadable(self._unreadable[group])
        try:
            start, stop = self._starts[group : group + 2]
            wanted = sorted({row, *(other for other in self._wanted - self._held.keys() if start <= other < stop)})
            while row not in self._held:
                wanted = self._pass(start, group, row, wanted)
        except (Unreadable, ValueError, TypeError, LookupError) as error:
            # Further rows of the group would cost as much, and end the same.
            self._unreadable[group] = error.error_class if isinstance(error, Unreadable) else "damaged_parquet"
            raise Unreadable(self._unreadable[group]) from error

    def _pass(self, start: int, group: int, row: int, wanted: list[int]) -> list[int]:
        """Read some rows of a group; return the rows still to be passed."""
        answer = self._table.ask("rows", self._column, group, row - start, [other - start for other in wanted])
        place = 0
        asked = set(wanted)
        for number, size in answer.header:
            if start + number not in asked:
                raise Unreadable("damaged_parquet")
            asked.discard(start + number)
            data = {None: "no_bytes", -1: "too_large_row"}.get(size)
            found = answer.data[place : place + size] if data is None else data
            place += size if data is None else 0
            if start + number == row or self._held_bytes < _KEPT_BYTES:
                self._held[start + number] = found
                self._held_bytes += 0 if data else size
        if len(asked) == len(wanted):
            raise Unreadable("damaged_parquet")
        return sorted(asked)
