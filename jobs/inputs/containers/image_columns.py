"""Columns of images in Parquet files, read by row group with bounded memory.

A column of images is a struct with a field `bytes`, as in Hugging Face datasets (`{bytes, path}`), or plain binary. The
schema in the file's footer tells.
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
"""Bytes of rows kept when passed on the way to others. Beyond that, they are read again in their turn."""


class Images(NamedTuple):
    """The columns of a file's images.

    Attributes:
        column: Path of the column of bytes, such as `image.bytes`.
        names: Path of the column of names, or None.
    """

    column: str
    names: str | None


def opened(file: RangedFile, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file that is read in ranges.

    Args:
        file: The file.
        metadata: Footer of the file, if known; it is then not read.

    Raises:
        Fault: The file is damaged or not a Parquet file.
    """
    try:
        return pq.ParquetFile(pa.PythonFile(file, "r"), metadata=metadata, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise Fault("damaged_parquet", f"the Parquet file cannot be opened ({_line(error)}); write it again") from error


def images_of(schema: pa.Schema, column: str | None) -> Images | None:
    """Find the column of images: the named one, else the only one, else the one called `image`.

    Returns:
        The columns, or None if there is no such column, or more than one.
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


def candidates(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that may hold images."""
    return [field.name for field in schema if _has_bytes(field.type) or _is_binary(field.type)]


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def names(file: pq.ParquetFile, images: Images) -> Iterator[str | None]:
    """Yield the name of each row, or None. Reads only the names.

    Raises:
        Fault: The file is damaged.
    """
    if images.names is None:
        yield from (None for _ in range(file.metadata.num_rows))
        return
    for values in _batches(file, images.names, None, _NAMES_AT_ONCE):
        yield from values.to_pylist()


def column_bytes(metadata: pq.FileMetaData, column: str) -> int:
    """Return the uncompressed size of a column in bytes, from the file's footer."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _batches(file: pq.ParquetFile, column: str, groups: list[int] | None, rows: int) -> Iterator[pa.Array]:
    try:
        for batch in file.iter_batches(rows, groups, [column], use_threads=False):
            values: pa.Array = batch.column(0)
            if pa.types.is_struct(values.type):
                # `flatten` keeps the fields of a null struct null.
                values = values.flatten()[0]
            yield values
    except (pa.ArrowException, OSError) as error:
        raise Fault("damaged_parquet", f"the Parquet file is damaged ({_line(error)}); write it again") from error


class GroupRows:
    """The images of one row group. Safe from several threads.

    Args:
        file: The file.
        column: Path of the column of bytes.
        group: Number of the row group.
        wanted: Rows to read, counted within the group, once each; fastest in ascending order.
    """

    def __init__(self, file: pq.ParquetFile, column: str, group: int, wanted: Iterable[int]) -> None:
        self._file, self._column, self._group = file, column, group
        self._wanted = set(wanted)
        self._lock = threading.Lock()
        self._passed: dict[int, bytes | None] = {}
        self._held = 0
        self._values: Iterator[pa.Array] = iter(())
        self._next = file.metadata.row_group(group).num_rows  # the first call starts from the beginning

    def read(self, row: int) -> bytes:
        """Return the bytes of a row, counted within the group.

        Raises:
            Fault: The row has no bytes, or the group is damaged before its end.
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
