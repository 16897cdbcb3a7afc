"""Images in the rows of Parquet files, read by row group and column with a bound on memory.

A column of images is a struct with a field `bytes`, as Hugging Face datasets have it (`{bytes, path}`), or plain
binary. A file is told by its schema alone, which stands in its last bytes.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile

_BUFFER = 4 * 2**20
_ROWS_AT_ONCE = 16
_NAMES_AT_ONCE = 8192
_KEPT_BYTES = 64 * 2**20
"""Rows passed on the way to others are kept up to this; beyond, they are read again when their turn comes."""


class Images(NamedTuple):
    """Where a file has its images.

    Attributes:
        column: Of their bytes, as a path such as `image.bytes`.
        names: The column of their names, likewise, or None.
    """

    column: str
    names: str | None


def opened(file: RangedFile, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file that is read in ranges.

    Raises:
        Fault: It is none, or damaged.
    """
    try:
        return pq.ParquetFile(pa.PythonFile(file, "r"), metadata=metadata, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise Fault("damaged_parquet", f"the Parquet file does not open ({_line(error)}); write it again") from error


def images_of(schema: pa.Schema, column: str | None) -> Images | None:
    """Where the images are: in the column that is named, else in the only one there is, else in the one called image.

    Returns:
        None if there is no such column, or more than one.
    """
    structs = [field.name for field in schema if _has_bytes(field.type)]
    plain = [field.name for field in schema if _is_binary(field.type)]
    if column is None:
        kinds = [kind for kind in (structs, plain) if kind]
        found = kinds[0] if kinds else []
        column = "image" if "image" in found else found[0] if len(found) == 1 else None
    if column in structs:
        kind = schema.field(column).type
        has_path = any(field.name == "path" and pa.types.is_string(field.type) for field in kind)
        return Images(f"{column}.bytes", f"{column}.path" if has_path else None)
    return Images(column, None) if column is not None and column in plain else None


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def names(file: pq.ParquetFile, images: Images) -> Iterator[str | None]:
    """Each row's name, None where it has none. Reads the names alone.

    Raises:
        Fault: A page is damaged.
    """
    if images.names is None:
        yield from (None for _ in range(file.metadata.num_rows))
        return
    for values in _batches(file, images.names, None, _NAMES_AT_ONCE):
        yield from values.to_pylist()


def bytes_of(metadata: pq.FileMetaData, column: str) -> int:
    """Of a column, not compressed, by the file's footer."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _batches(file: pq.ParquetFile, column: str, groups: list[int] | None, rows: int) -> Iterator[pa.Array]:
    try:
        for batch in file.iter_batches(rows, groups, [column], use_threads=False):
            values: pa.Array = batch.column(0)
            if pa.types.is_struct(values.type):
                # `flatten` leaves a null struct's fields null.
                values = values.flatten()[0]
            yield values
    except (pa.ArrowException, OSError) as error:
        raise Fault("damaged_parquet", f"the Parquet file is damaged ({_line(error)}); write it again") from error


class Rows:
    """The images of one row group, some of which will be asked for. Safe from several threads.

    Args:
        file: The file.
        column: Of the bytes.
        group: The row group.
        wanted: Rows within the group that will be asked for, once each; better in ascending order.
    """

    def __init__(self, file: pq.ParquetFile, column: str, group: int, wanted: Iterable[int]) -> None:
        self._file, self._column, self._group = file, column, group
        self._wanted = set(wanted)
        self._lock = threading.Lock()
        self._passed: dict[int, bytes | None] = {}
        self._held = 0
        self._values: Iterator[pa.Array] = iter(())
        self._next = file.metadata.row_group(group).num_rows  # so that the first call begins at the start

    def read(self, row: int) -> bytes:
        """A row's bytes.

        Raises:
            Fault: It has none, or the group is damaged up to it.
        """
        with self._lock:
            if row not in self._passed:
                self._advance(row)
            data = self._passed.pop(row)
            self._wanted.discard(row)
            self._held -= len(data or b"")
        if data is None:
            message = f"row {row} of row group {self._group} has no bytes in {self._column}; embed the image's file"
            raise Fault("no_bytes", message)
        return data

    def _advance(self, row: int) -> None:
        if row < self._next:
            self._values = _batches(self._file, self._column, [self._group], _ROWS_AT_ONCE)
            self._next = 0
        while self._next <= row:
            values = next(self._values, None)
            if values is None:
                raise Fault("damaged_parquet", f"row group {self._group} ends before row {row}; write the file again")
            for place in range(len(values)):
                number = self._next + place
                if number == row or (number in self._wanted and self._held < _KEPT_BYTES):
                    self._passed[number] = values[place].as_py()
                    self._held += len(self._passed[number] or b"")
            self._next += len(values)


def _line(error: Exception) -> str:
    lines: list[Any] = str(error).strip().splitlines()
    return str(lines[0]) if lines else type(error).__name__
