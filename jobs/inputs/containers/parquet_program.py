"""The program of a process reading tables: Arrow parses foreign bytes here, so that a crash costs a file and no run.

The tables are Parquet files, and the gzipped CSV files of an S3 Inventory.

Started by `jobs.isolation.process`. It keeps one file open, and the place that was read last; every request also works
in another process, from the start.
"""

import gzip
import io
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
from pyarrow import csv

from maskfleet.jobs.inputs.containers import image_columns
from maskfleet.jobs.inputs.containers.parquet_protocol import AREA, Answer, Server, Unreadable
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.jobs.isolation.child import Serve, limit_time
from maskfleet.jobs.storage.ranged import RangedFile

_SECONDS = 300.0
"""Limit of CPU time of one request, should the process that asked be dead."""

_ANSWER = 4 * 2**20
"""Size in bytes at which an answer of rows ends."""

_BUFFER = 2**20

_LARGEST_ROW = 2**29
"""Size in bytes of the largest image."""


class Reader:
    """Answers requests about one file after another.

    Args:
        server: Reads the file through the other process.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._file: RangedFile
        self._parsed: image_columns.Table | None = None
        self._scan: tuple[Any, ...] = ()
        self._next = 0
        self._rest: Iterator[Any] = iter(())
        self._requests: dict[str, Callable[..., Answer]] = {
            "open": self._open, "columns": self._columns, "images": self._images, "values": self._values,
            "groups": self._groups, "rows": self._rows, "inventory": self._inventory,
        }  # fmt: skip

    def answer(self, name: str, arguments: Sequence[Any]) -> Answer:
        """Answer a request.

        Raises:
            Unreadable: The file, or a part of it, cannot be read.
        """
        try:
            return self._requests[name](*arguments)
        except Exception as error:  # hostile bytes make Arrow raise nearly anything, and any of it is damage
            self._scan = ()  # an iterator that has raised must not be used again
            if isinstance(error, Unreadable):
                raise
            raise Unreadable("too_large_parquet" if isinstance(error, MemoryError) else "damaged_parquet") from error

    def _open(self, size: int) -> Answer:
        self._scan, self._parsed = (), None
        self._file = RangedFile(self._server, "", size, None)
        return Answer(None, b"")

    @property
    def _table(self) -> image_columns.Table:
        if self._parsed is None:
            self._parsed = image_columns.Table(self._file)
        return self._parsed

    def _inventory(self, names: list[str], start: int, count: int) -> Answer:
        """Answer with some rows of a CSV file of an S3 Inventory, given its columns; see `inventory`."""
        self._go_to(("inventory", names), start, lambda: inventory(self._file, names))
        values = list(islice(self._rest, count))
        self._next += len(values)
        return Answer(None, json.dumps(values).encode())

    def _groups(self) -> Answer:
        """Answer with the number of rows of each row group."""
        return Answer(None, json.dumps(self._table.groups).encode())

    def _columns(self, named: str | None) -> Answer:
        """Answer with the names of all columns and of those with text, and whether the named or another has images."""
        schema = self._table.schema
        texts = [field.name for field in schema if image_columns.is_text(field.type)]
        images = image_columns.images_of(schema, named) or image_columns.images_of(schema, None)
        return Answer([schema.names, texts, images is not None], b"")

    def _images(self, named: str | None) -> Answer:
        """Answer with the paths of images and names, the number of rows, and the mean size of an image in bytes."""
        images = image_columns.images_of(self._table.schema, named)
        if images is None:
            raise Unreadable("no_column" if image_columns.may_have_images(self._table.schema) else "no_images")
        for column in images:
            if column is not None:
                self._table.check(column)
        return Answer([*images, sum(self._table.groups), self._table.mean_size(images.column)], b"")

    def _values(self, columns: list[str], start: int, count: int) -> Answer:
        """Answer with some rows of some columns: a list of values for each row, none at the end."""
        self._go_to(("values", columns), start, lambda: self._table.values(columns, count))
        values = list(islice(self._rest, count))
        self._next += len(values)
        return Answer(None, json.dumps(values).encode())

    def _rows(self, column: str, group: int, target: int, wanted: list[int]) -> Answer:
        """Answer with the wanted rows met on the way to a row of a group and behind it, until the answer is large.

        The header has the number and the size of each: None if the row has no bytes, -1 if it has too many.
        """
        self._go_to(("rows", column, group), target, lambda: self._table.rows(column, group), skip=False)
        found: list[list[int | None]] = []
        pieces: list[bytes] = []
        held, asked = 0, set(wanted)
        last = max(wanted)
        while held < _ANSWER and self._next <= last:
            try:
                data = next(self._rest)
            except StopIteration:
                break
            self._next += 1
            if self._next - 1 not in asked:
                continue
            too_large = data is not None and len(data) > _LARGEST_ROW
            found.append([self._next - 1, -1 if too_large else None if data is None else len(data)])
            if data and not too_large:
                pieces.append(data)
                held += len(data)
        return Answer(found, b"".join(pieces))

    def _go_to(self, scan: tuple[Any, ...], row: int, make: Callable[[], Iterator[Any]], *, skip: bool = True) -> None:
        """Go on with a scan, or begin it again if it is another one or already beyond the row."""
        if self._scan != scan or self._next > row:
            self._scan, self._next, self._rest = scan, 0, make()
        while skip and self._next < row:
            next(self._rest)
            self._next += 1


def inventory(file: RangedFile, names: list[str]) -> Iterator[list[str | None]]:
    """Yield key, size and ETag of each newest object in a gzipped CSV file of an S3 Inventory; None for what it lacks.

    Args:
        file: The file.
        names: Names of its columns.
    """
    wanted = [name for name in ("Key", "Size", "ETag", "IsLatest", "IsDeleteMarker") if name in names]
    with closing(gzip.GzipFile(fileobj=io.BufferedReader(file, _BUFFER))) as plain:
        if not plain.peek(1):
            return
        reader = csv.open_csv(
            plain,
            csv.ReadOptions(column_names=names, use_threads=False),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), null_values=[""],
                strings_can_be_null=True,
            ),
        )  # fmt: skip
        for batch in reader:
            columns = {name: batch.column(name).to_pylist() for name in wanted}
            nothing = [None] * batch.num_rows
            latest, deleted = columns.get("IsLatest", nothing), columns.get("IsDeleteMarker", nothing)
            for key, size, etag, is_latest, is_deleted in zip(
                columns["Key"], columns.get("Size", nothing), columns.get("ETag", nothing), latest, deleted, strict=True
            ):
                if is_latest != "false" and is_deleted != "true":
                    yield [unquote_plus(key or ""), size, etag]


def program(settings: dict[str, Any]) -> Serve:
    """Prepare Arrow; return the function that answers requests."""
    block = mmap.mmap(settings["block"], AREA)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # a machine short of memory ends this process, not the worker
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve large parts of the limited address space

    def serve(channel: Channel) -> None:
        server = Server(channel, block)
        reader = Reader(server)
        while True:
            name, *arguments = server.request()
            limit_time(_SECONDS)
            try:
                server.answer(reader.answer(name, arguments))
            except Unreadable as refusal:
                server.refuse(refusal)

    return serve
