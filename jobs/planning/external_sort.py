"""A listing in key order: sorted with bounded memory, in runs on the local disk if it is large."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.inputs.record import CHUNK
from maskfleet.jobs.ledger.sorted_tables import merged

_RUN_ROWS = 32 * CHUNK
"""Rows sorted in memory at once."""


def in_key_order(tables: Iterable[pa.Table], *, sorted_already: bool) -> Iterator[pa.Table]:
    """Yield tables sorted by `key`, with distinct keys and about `CHUNK` rows each, using bounded memory.

    Args:
        tables: Tables in any order.
        sorted_already: Whether the tables are expected in key order. If so, rows are passed on as they come.

    Raises:
        JobError: Two rows have the same key.
        StorageError: Rows expected in key order are not.
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
        return JobError(f"two inputs have the key {key!r}; list each once, or put them into separate folders")
    return StorageError(
        f"the input is not listed in key order ({key!r} after {last!r}); "
        "write its images into a .txt list and use that as 'input'"
    )


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield fewer, larger tables: the cost per table hardly depends on its number of rows."""
    while batch := list(_up_to(tables, CHUNK)):
        whole = pa.concat_tables(batch).combine_chunks()
        if whole.num_rows:
            yield whole


def _sorted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Sort by key: in memory if it suffices, else by merging sorted runs on the local disk."""
    with tempfile.TemporaryDirectory(prefix="maskfleet-sort-") as folder, ExitStack() as open_files:
        runs: list[Iterator[pa.Table]] = []
        while batch := list(_up_to(tables, _RUN_ROWS)):
            table = pa.concat_tables(batch).sort_by("key")
            if not runs and table.num_rows < _RUN_ROWS:
                yield from _chunks(table)
                return
            path = str(Path(folder, str(len(runs))))
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=CHUNK)
            runs.append(_stored(open_files.enter_context(pa.memory_map(path))))
        yield from merged(runs)


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
