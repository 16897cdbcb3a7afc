"""A listing in key order: sorted with bounded memory, in runs on the local disk if it is large."""

import hashlib
import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.containers.formats import DUPLICATE
from maskfleet.jobs.inputs.record import CHUNK, Record, records, rows_up_to, table_of
from maskfleet.jobs.ledger.sorted_tables import merged

_RUN_ROWS = 32 * CHUNK
"""Rows sorted in memory at once."""


def in_key_order(
    tables: Iterable[pa.Table], *, sorted_already: bool, repeated: Callable[[], object] = lambda: None
) -> Iterator[pa.Table]:
    """Yield tables sorted by `key`, with distinct keys and about `CHUNK` rows each, using bounded memory.

    Of several files with one key the first counts: by URL in a listing that is sorted here, else by place. Each other
    one gets a key of its own, with a digest of its URL, and a URL that says why it cannot be read.

    Args:
        tables: Tables in any order.
        sorted_already: Whether the tables are expected in key order. If so, rows are passed on as they come.
        repeated: Called for each row dropped because it repeats key and URL of the one before.

    Raises:
        StorageError: Rows expected in key order are not.
    """
    last, url = pa.scalar(None, pa.string()), pa.scalar(None, pa.string())
    held: list[Record] = []
    for table in _gathered(iter(tables)) if sorted_already else _sorted(iter(tables)):
        keys = table["key"].combine_chunks()
        before = pa.concat_arrays([pa.array([last]), keys.slice(0, len(keys) - 1)])
        last = keys[-1]
        if not pc.any(pc.less_equal(keys, before)).as_py():
            url = table["url"][-1]
            yield from _with(held, table)
            continue
        if pc.any(pc.less(keys, before)).as_py():
            raise _misplaced(before, keys)
        same = pc.fill_null(pc.equal(keys, before), False)
        first = str(url)
        for record, is_same in zip(records(table), same.to_pylist(), strict=True):
            if not is_same:
                first = record.url
                continue
            other = duplicate(record)
            if record.url == first or other in held:
                repeated()
            else:
                heapq.heappush(held, other)
        url = pa.scalar(first, pa.string())
        yield from _with(held, table.filter(pc.invert(same)))
    yield from (table_of([record]) for record in sorted(held))


def duplicate(record: Record) -> Record:
    """Return the record of a file with a key that belongs to another one. Reading it gives the reason."""
    digest = hashlib.sha256(record.url.encode()).hexdigest()[:8]
    return record._replace(key=f"{record.key}@{digest}", url=f"{record.url.removesuffix('#')}#{DUPLICATE}")


def _with(held: list[Record], table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table, and in their order the held records before its end."""
    while held and table.num_rows and held[0].key < table["key"][-1].as_py():
        record = heapq.heappop(held)
        before = rows_up_to(table, record.key)
        yield pa.concat_tables([table.slice(0, before), table_of([record])])
        table = table.slice(before)
    if table.num_rows:
        yield table


def _misplaced(before: pa.Array, keys: pa.Array) -> StorageError:
    wrong = pc.index(pc.less(keys, before), True).as_py()
    key, last = keys[wrong].as_py(), before[wrong].as_py()
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
            table = pa.concat_tables(batch).sort_by([("key", "ascending"), ("url", "ascending")])
            if not runs and table.num_rows < _RUN_ROWS:
                yield from _chunks(table)
                return
            path = str(Path(folder, str(len(runs))))
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=CHUNK)
            runs.append(_stored(open_files.enter_context(pa.memory_map(path))))
        yield from merged(runs, then="url")


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
