"""The rows of all runs of an output, streamed: the newest row of each image, or all of them.

Rows come from committed shards. Those of a finished run are read from its compacted statistics, which hold the same
rows in fewer files; an unfinished run counts with the shards committed so far.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import leaves
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun, stored_runs, summary_of
from maskfleet.jobs.ledger.sorted_tables import merged
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.run.derived import committed_tables
from maskfleet.jobs.storage.contract import Storage


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
    streams = [_outcomes(storage, run, schema) for run in stored_runs(storage)]
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
    for run in stored_runs(storage):
        for table in _rows_of(storage, run, finished=summary_of(storage, run.run_id) is not None):
            yield _arranged(table, wanted)


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


def _outcomes(storage: Storage, run: StoredRun, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a run and, if it is finished, the tombstones of the images it missed, in key order."""
    finished = summary_of(storage, run.run_id) is not None
    rows = (_arranged(table, schema) for table in _rows_of(storage, run, finished=finished))
    if not finished:
        return rows
    missing = (_tombstones(table, schema) for table in gone_rows(storage, run.run_id))
    return merged([rows, missing])


def _tombstones(known: pa.Table, schema: pa.Schema) -> pa.Table:
    count = known.num_rows
    columns = {"key": known["key"], "status": pa.array([catalog.GONE] * count)}
    return pa.Table.from_arrays(
        [columns.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema
    )


def _rows_of(storage: Storage, run: StoredRun, *, finished: bool) -> Iterator[pa.Table]:
    groups = compacted.row_groups(storage, run.run_id) if finished else iter(())
    first = next(groups, None)
    if first is not None:
        return chain([first], groups)
    try:
        manifest = Manifest.stored(storage, run.run_id)
    except NotFound:
        return iter(())
    committed = leaves(manifest.shards(), run.commits(storage).all())
    return (table for _, table in committed_tables(storage, committed))
