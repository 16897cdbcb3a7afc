"""Parquet files with a column of images: each row is a member.

A member is named by its row number in nine digits, and by the last component of the row's own name if it has one. So
neighbours in a run are neighbours in the file.
"""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from maskfleet.jobs.inputs.containers import image_columns
from maskfleet.jobs.inputs.containers.contract import Container, Listing, Member, MemberReader, Reference
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile

NO_IMAGES = "no_images"
"""Error class of a file without images, which is no input if it only lies beside others."""


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
        "damaged_parquet": "the Parquet file does not open; write it again",
        "no_bytes": "the row has no image bytes; embed the image's file",
    }
    in_order = True
    entry = Row

    def entries(self, file: RangedFile, listing: Listing) -> Iterator[Row]:
        table = image_columns.opened(file)
        images = image_columns.images_of(table.schema_arrow, listing.column)
        if images is None:
            fault = "no_column" if image_columns.candidates(table.schema_arrow) else NO_IMAGES
            raise Fault(fault, self.faults[fault])
        size = image_columns.column_bytes(table.metadata, images.column)
        listing.report_mean(size / max(1, table.metadata.num_rows))
        for number, name in enumerate(image_columns.names(table, images)):
            yield Row(number, name, images.column)

    def member(self, entry: Row) -> Member:
        last = (entry.name or "").rstrip("/").rsplit("/", 1)[-1]
        name = f"{entry.number:09}-{last}" if last else f"{entry.number:09}"
        return Member(name, {"row": str(entry.number), "column": entry.column})

    def reader(self, files: Files, members: Sequence[Reference]) -> MemberReader:
        return _RowReader(files, members)


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
        return self._table(member).read(int(member.place["row"]))

    def _table(self, member: Reference) -> "_Table":
        version = member.file, member.etag
        with self._lock:
            if version not in self._tables:
                file = self._files.ranged(*version)
                footer = self._files.summary(*version, lambda: image_columns.opened(file).metadata)
                table = image_columns.opened(file, footer)
                self._tables[version] = _Table(table, member.place["column"], self._rows[version])
            return self._tables[version]


class _Table:
    """Rows of one file, by number."""

    def __init__(self, file: pq.ParquetFile, column: str, wanted: Sequence[int]) -> None:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._file, self._column = file, column
        self._wanted: dict[int, list[int]] = {}
        for row in wanted:
            group = self._group(row)
            self._wanted.setdefault(group, []).append(row - self._starts[group])
        self._groups: dict[int, image_columns.GroupRows] = {}
        self._lock = threading.Lock()

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def read(self, row: int) -> bytes:
        group = self._group(row)
        # A file has one reader, so its row groups take turns.
        with self._lock:
            if group not in self._groups:
                wanted = self._wanted[group]
                self._groups[group] = image_columns.GroupRows(self._file, self._column, group, wanted)
            return self._groups[group].read(row - self._starts[group])
