"""The rows of all runs of an output, streamed: the newest row of each image, or all of them.

Rows come from committed shards. Those of a finished run are read from its compacted statistics, which hold the same
rows in fewer files; an unfinished run counts with the shards committed so far.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger import catalog, statistics
from maskfleet.jobs.ledger.runs import state_of
from maskfleet.jobs.ledger.sorted_tables import merged
from maskfleet.jobs.run.recovery.derived import committed_rows, missed_by, rows_of_finished
from maskfleet.jobs.storage.contract import Storage

_RUNS_IN_FLIGHT = 16


def newest_rows(storage: Storage, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the newest row of each image over all runs, sorted by key, in tables of bounded size.

    Images missing from the newest complete listing of their input are left out.

    Args:
        storage: Output storage.
        columns: Columns to return; None for all of `jobs.ledger.statistics.SCHEMA`.

    Raises:
        JobError: There is no such column.
    """
    wanted = schema_of(columns)
    schema = schema_of(dict.fromkeys(["key", "status", *wanted.names]))
    streams = _of_each_run(storage, lambda run_id: _outcomes(storage, run_id, schema))
    for table in merged(streams, newest=True):
        yield _arranged(table.filter(pc.not_equal(table["status"], catalog.GONE)), wanted)


def all_rows(storage: Storage, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of every run, the oldest run first, each sorted by key, in tables of bounded size.

    Args:
        storage: Output storage.
        columns: Columns to return; None for all of `jobs.ledger.statistics.SCHEMA`.

    Raises:
        JobError: There is no such column.
    """
    wanted = schema_of(columns)
    for stream in _of_each_run(storage, lambda run_id: rows_of_run(storage, run_id)):
        for table in stream:
            yield _arranged(table, wanted)


def rows_of_run(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the rows of a run in key order, with all columns; of an unfinished run those committed so far."""
    if state_of(storage, run_id) == "unfinished":
        yield from committed_rows(storage, run_id)
    else:
        yield from rows_of_finished(storage, run_id)


def schema_of(columns: Sequence[str] | dict[str, None] | None) -> pa.Schema:
    """Return the schema of some columns of the statistics, in the order given.

    Raises:
        JobError: There is no such column.
    """
    names = statistics.SCHEMA.names if columns is None else list(columns)
    if unknown := [name for name in names if name not in statistics.SCHEMA.names]:
        raise JobError(
            f"the statistics have no column {unknown[0]!r}; choose from {', '.join(statistics.SCHEMA.names)}"
        )
    return pa.schema([statistics.SCHEMA.field(name) for name in names], statistics.SCHEMA.metadata)


def _arranged(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([table[name] for name in schema.names], schema=schema)


def _of_each_run(storage: Storage, opened: Callable[[str], Iterator[pa.Table]]) -> list[Iterator[pa.Table]]:
    """Return a stream for each run, the oldest run first. Many are started at once to hide a bucket's latency."""
    with ThreadPoolExecutor(_RUNS_IN_FLIGHT) as pool:
        return list(pool.map(lambda run_id: _started(opened(run_id)), storage.names("runs")))


def _started(stream: Iterator[pa.Table]) -> Iterator[pa.Table]:
    first = next(stream, None)
    return iter(()) if first is None else chain([first], stream)


def _outcomes(storage: Storage, run_id: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a run and the tombstones of the images it missed, in key order."""
    rows = (_arranged(table, schema) for table in rows_of_run(storage, run_id))
    return merged([rows, (_tombstones(table, schema) for table in missed_by(storage, run_id))])


def _tombstones(known: pa.Table, schema: pa.Schema) -> pa.Table:
    count = known.num_rows
    columns = {"key": known["key"], "status": pa.array([catalog.GONE] * count)}
    return pa.Table.from_arrays(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema
    )
