"""Streams of tables sorted by key: merged into one, cut into even tables, read up to a key."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.inputs.record import CHUNK, rows_up_to


def even(tables: Iterable[pa.Table], rows: int = CHUNK) -> Iterator[pa.Table]:
    """Yield the same rows as tables of `rows` rows, except the last.

    Each table is a copy, so that it keeps no other rows in memory.
    """
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(part.num_rows for part in held) >= rows:
            whole = pa.concat_tables(held)
            held, whole = [whole.slice(rows)], whole.slice(0, rows).combine_chunks()
            yield whole
    if sum(part.num_rows for part in held):
        yield pa.concat_tables(held).combine_chunks()


def merged(runs: Iterable[Iterator[pa.Table]], *, newest: bool = False, then: str = "_age") -> Iterator[pa.Table]:
    """Merge streams sorted by `key` into one sorted stream.

    Args:
        runs: Streams of one schema, oldest first. About one table of each is held at a time.
        newest: Whether only the last stream's row of each key is kept. Keys must then be distinct within a stream.
        then: Column that orders rows of one key, in which they are sorted already. By default the newest comes first.
    """
    heads = [_Head(run) for run in runs]
    while heads := [head for head in heads if head.rows()]:
        # No stream has further rows up to this key.
        frontier = min(head.last for head in heads)
        taken = [head.take(frontier) for head in heads]
        if len(taken) == 1:
            yield taken[0]
            continue
        ages = pa.chunked_array([pa.array([age] * len(part), pa.int32()) for age, part in enumerate(taken)])
        rows = pa.concat_tables(taken).append_column("_age", ages)
        rows = rows.sort_by([("key", "ascending"), (then, "descending" if then == "_age" else "ascending")])
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
        """Remove and return the rows with keys up to and including `up_to`."""
        assert self._table is not None
        count = rows_up_to(self._table, up_to)
        taken, self._table = self._table.slice(0, count), self._table.slice(count)
        return taken


class SortedCursor:
    """A position in a sorted stream, advanced key by key."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._head = _Head(tables)

    def up_to(self, key: str, schema: pa.Schema) -> pa.Table:
        """Return all further rows with keys up to and including `key`."""
        taken = [schema.empty_table()]
        while self._head.rows():
            taken.append(self._head.take(key))
            if self._head.last > key:
                break
        return pa.concat_tables(taken)

    def next(self) -> pa.Table | None:
        """Return the next rows, or None at the end."""
        return self._head.take(self._head.last) if self._head.rows() else None
