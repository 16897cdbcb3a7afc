"""Sorted streams of tables: into key order with bounded memory, and several of them as one."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, StorageError

CHUNK = 8192
"""Rows that are handled at once."""

_SORTED_AT_ONCE = 32 * CHUNK


def in_key_order(tables: Iterable[pa.Table], *, sorted_already: bool) -> Iterator[pa.Table]:
    """Tables sorted by `key`, all keys distinct, of `CHUNK` rows or a few more, with bounded memory.

    Args:
        tables: In any order.
        sorted_already: Whether they are said to come in key order, which lets the first go out before the last is in.

    Raises:
        JobError: Two rows have one key.
        StorageError: They do not come in the order that was promised.
    """
    last: pa.Scalar = pa.scalar(None, pa.string())
    for table in _gathered(iter(tables)) if sorted_already else _sorted(iter(tables)):
        keys = table["key"].combine_chunks()
        before = pa.concat_arrays([pa.array([last]), keys.slice(0, len(keys) - 1)])
        if pc.any(pc.less_equal(keys, before)).as_py():
            raise _misplaced(before, keys)
        last = keys[-1]
        yield table


def _misplaced(before: pa.Array, keys: pa.Array) -> JobError | StorageError:
    wrong = pc.index(pc.less_equal(keys, before), True).as_py()
    key, last = keys[wrong].as_py(), before[wrong].as_py()
    if key == last:
        return JobError(
            f"two inputs have the key {key!r}; name each once in the list, or give them folders of their own"
        )
    return StorageError(
        f"the input is not listed in order of key ({key!r} after {last!r}); "
        "write its images into a .txt list and give that as 'input'"
    )


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables as few: what is done to each costs the same for one row and for a thousand."""
    while batch := list(_up_to(tables, CHUNK)):
        whole = pa.concat_tables(batch).combine_chunks()
        if whole.num_rows:
            yield whole


def _sorted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Sorted by key: in memory where that is small, else in runs on the local disk that are then merged."""
    with tempfile.TemporaryDirectory(prefix="maskfleet-sort-") as folder, ExitStack() as open_files:
        runs: list[Iterator[pa.Table]] = []
        while batch := list(_up_to(tables, _SORTED_AT_ONCE)):
            table = pa.concat_tables(batch).sort_by("key")
            if not runs and table.num_rows < _SORTED_AT_ONCE:
                yield from _chunks(table)
                return
            path = str(Path(folder, str(len(runs))))
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=CHUNK)
            runs.append(_stored(open_files.enter_context(pa.memory_map(path))))
        yield from merged(runs)


def even(tables: Iterable[pa.Table], rows: int = CHUNK) -> Iterator[pa.Table]:
    """The same rows as tables of so many each, but for the last; each a copy that holds nothing else in memory."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(part.num_rows for part in held) >= rows:
            whole = pa.concat_tables(held)
            held, whole = [whole.slice(rows)], whole.slice(0, rows).combine_chunks()
            yield whole
    if sum(part.num_rows for part in held):
        yield pa.concat_tables(held).combine_chunks()


def _up_to(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    seen = 0
    while seen < rows and (table := next(tables, None)) is not None:
        seen += table.num_rows
        yield table


def _stored(source: pa.MemoryMappedFile) -> Iterator[pa.Table]:
    reader = pa.ipc.open_file(source)
    for number in range(reader.num_record_batches):
        yield pa.Table.from_batches([reader.get_batch(number)])


def _chunks(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, CHUNK):
        yield table.slice(start, CHUNK)


def merged(runs: Iterable[Iterator[pa.Table]], *, newest: bool = False) -> Iterator[pa.Table]:
    """Streams that are each sorted by `key`, as one that is.

    Args:
        runs: Of equal schemas, oldest first. Of each, about a table is held at a time.
        newest: Of the rows of one key, give only that of the last run; within one run keys must then be distinct.
    """
    heads = [_Head(run) for run in runs]
    while heads := [head for head in heads if head.rows()]:
        # Up to here no stream has anything more to say.
        frontier = min(head.last for head in heads)
        taken = [head.take(frontier) for head in heads]
        if len(taken) == 1:
            yield taken[0]
            continue
        ages = pa.chunked_array([pa.array([age] * len(part), pa.int32()) for age, part in enumerate(taken)])
        rows = pa.concat_tables(taken).append_column("_age", ages)
        rows = rows.sort_by([("key", "ascending"), ("_age", "descending")])
        if newest and len(rows) > 1:
            same = pc.equal(rows["key"].slice(1), rows["key"].slice(0, len(rows) - 1))
            rows = rows.filter(pa.chunked_array([pa.array([True]), *pc.invert(same).chunks]))
        yield rows.drop_columns("_age").combine_chunks()


class _Head:
    """The next rows of a sorted stream."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._table: pa.Table | None = None
        self.last = ""

    def rows(self) -> int:
        while self._table is None or not self._table.num_rows:
            self._table = next(self._tables, None)
            if self._table is None:
                return 0
            if self._table.num_rows:
                self.last = self._table["key"][-1].as_py()
        return int(self._table.num_rows)

    def take(self, up_to: str) -> pa.Table:
        """The rows with keys up to this one, which leave the stream."""
        assert self._table is not None
        count = rows_up_to(self._table, up_to)
        taken, self._table = self._table.slice(0, count), self._table.slice(count)
        return taken


def rows_up_to(table: pa.Table, key: str) -> int:
    """How many first rows of a sorted table have keys up to this one."""
    return int(pc.sum(pc.less_equal(table["key"], key)).as_py() or 0)


class Ahead:
    """A sorted stream that is read up to a key at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._head = _Head(tables)

    def up_to(self, key: str, schema: pa.Schema) -> pa.Table:
        """All further rows with keys up to this one."""
        taken = [schema.empty_table()]
        while self._head.rows():
            taken.append(self._head.take(key))
            if self._head.last > key:
                break
        return pa.concat_tables(taken)

    def next(self) -> pa.Table | None:
        """The next rows, or None at the end."""
        return self._head.take(self._head.last) if self._head.rows() else None
