"""Columns of images in Parquet files. Foreign bytes are parsed here, so only the reading process may use this module.

A column of images is a struct with a field `bytes`, as in Hugging Face datasets (`{bytes, path}`), plain binary, or a
list of bytes if a job names it. The schema in the file's footer tells.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable, too_many
from maskfleet.jobs.storage.ranged import RangedFile

_BUFFER = 4 * 2**20
_BATCH_BYTES = 16 * 2**20
_BATCH_ROWS = 16
_MOST_GROUPS = 2**20
_LONGEST_TEXT = 4096
"""Characters of a text that are kept, from its end."""

_SIGNATURE = 28
"""Bytes that follow a footer in plain text if columns are encrypted. Arrow aborts when asked about these columns."""


class Images(NamedTuple):
    """The columns of a file's images.

    Attributes:
        column: Path of the column of bytes, such as `image.bytes`.
        names: Path of the column of names, or None.
    """

    column: str
    names: str | None


class Table:
    """A Parquet file.

    Args:
        file: The file.

    Attributes:
        groups: Number of rows of each row group.

    Raises:
        Unreadable: The file is damaged, encrypted, or not a Parquet file.
    """

    def __init__(self, file: RangedFile) -> None:
        size = file.size()
        tail = file.at(max(0, size - 8), 8)
        if tail[4:] == b"PARE":
            raise Unreadable("encrypted")
        self._file = pq.ParquetFile(pa.PythonFile(file, "r"), buffer_size=_BUFFER, pre_buffer=False)
        metadata = self._file.metadata
        self._signed = metadata.serialized_size + _SIGNATURE == int.from_bytes(tail[:4], "little")
        if metadata.num_row_groups > _MOST_GROUPS or too_many(metadata.num_rows, size):
            raise Unreadable("too_large_parquet")
        self.groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        if min(self.groups, default=0) < 0 or sum(self.groups) != metadata.num_rows:
            raise Unreadable("damaged_parquet")

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._file.schema_arrow

    def check(self, column: str) -> None:
        """Read one row of a column if it may be encrypted.

        Raises:
            Unreadable: The column is encrypted.
        """
        if self._signed and self.groups:
            try:
                next(self.batches(column, [0], 1), None)
            except OSError as error:
                raise Unreadable("encrypted") from error

    def mean_size(self, column: str, groups: Sequence[int] | None = None) -> float:
        """Return the mean size of a column's rows in bytes, uncompressed, as the footer says."""
        metadata = self._file.metadata
        numbers = range(metadata.num_row_groups) if groups is None else groups
        rows = sum(self.groups[number] for number in numbers)
        if self._signed:
            return float(sum(metadata.row_group(number).total_byte_size for number in numbers) / max(1, rows))
        paths = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
        places = [place for place, path in enumerate(paths) if f"{path}.".startswith(f"{column}.")]
        chunks = (metadata.row_group(number).column(place) for number in numbers for place in places)
        return float(sum(chunk.total_uncompressed_size for chunk in chunks) / max(1, rows))

    def values(self, columns: list[str], at_once: int) -> Iterator[list[Any]]:
        """Yield the values of some columns, row by row. Several columns may have no paths."""
        for batch in self._file.iter_batches(at_once, None, columns, use_threads=False):
            arrays = [batch.column(name) for name in columns] if len(columns) > 1 else [_leaf(batch.column(0))]
            yield from map(list, zip(*map(_plain, arrays), strict=True))

    def batches(self, column: str, groups: list[int], at_once: int) -> Iterator[pa.Array]:
        """Yield the values of a column, some rows at a time."""
        for batch in self._file.iter_batches(at_once, groups, [column], use_threads=False):
            yield _leaf(batch.column(0))

    def rows(self, column: str, group: int) -> Iterator[bytes | None]:
        """Yield the bytes of each row of a row group, or None."""
        at_once = int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, self.mean_size(column, [group])))))
        for values in self.batches(column, [group], at_once):
            for place in range(len(values)):
                yield _bytes(values[place])


def _leaf(values: pa.Array) -> pa.Array:
    """Return the only field of a struct, and of structs in it. Arrow reads no other fields."""
    while pa.types.is_struct(values.type):
        values = values.flatten()[0]  # keeps the fields of a null struct null
    return values


def _plain(values: pa.Array) -> list[Any]:
    """Return values of simple types. Texts that are not UTF-8 or very long are made usable as names."""
    if not is_text(values.type):
        plain: list[Any] = values.to_pylist()
        return plain
    try:
        texts: list[str | None] = values.to_pylist()
    except UnicodeDecodeError:
        raw = values.cast(pa.large_binary()).to_pylist()
        texts = [None if text is None else text.decode("utf-8", "backslashreplace") for text in raw]
    return [text and text[-_LONGEST_TEXT:].replace("\0", "\\0") for text in texts]


def _bytes(scalar: Any) -> bytes | None:
    if not isinstance(scalar, pa.ListScalar):
        value: bytes | None = scalar.as_py()
        return value
    values = scalar.values
    if values is None or values.null_count:
        return None
    return bytes(values.to_numpy().tobytes())


def images_of(schema: pa.Schema, column: str | None) -> Images | None:
    """Find the column of images: the named one, else the only one, else the one called `image`.

    Structs come before plain binary. A name may be a path, such as `sample.image`.

    Returns:
        The columns, or None if there is no such column, or more than one.
    """
    if column is not None:
        return _named(schema, column)
    for is_kind in (_has_bytes, _is_binary):
        if found := [field.name for field in schema if is_kind(field.type)]:
            name = "image" if "image" in found else found[0]
            return _named(schema, name) if name == "image" or len(found) == 1 else None
    return None


def may_have_images(schema: pa.Schema) -> bool:
    """Return whether any column may hold images. Lists of bytes are images only if a job says so."""
    return any(_has_bytes(field.type) or _is_binary(field.type) for field in schema)


def _named(schema: pa.Schema, path: str) -> Images | None:
    """Find the column at a path: a struct with bytes, or bytes."""
    found = _field(schema, path)
    if found is None:
        return None
    kind = found.type
    if _has_bytes(kind):
        has_path = any(field.name == "path" and is_text(field.type) for field in kind)
        return Images(f"{path}.bytes", f"{path}.path" if has_path else None)
    return Images(path, None) if _is_binary(kind) or _is_bytes_list(kind) else None


def _field(fields: Any, path: str) -> pa.Field | None:
    """Find a field by its path. A name may hold dots itself."""
    for field in fields:
        if field.name == path:
            return field
        if path.startswith(f"{field.name}.") and pa.types.is_struct(field.type):
            found = _field(field.type, path[len(field.name) + 1 :])
            if found is not None:
                return found
    return None


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def candidates(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that may hold images."""
    return [field.name for field in schema if _has_bytes(field.type) or _is_binary(field.type)]


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(
        field.name == "bytes" and (_is_binary(field.type) or _is_bytes_list(field.type)) for field in kind
    )


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_bytes_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type))
