"""Tables derived from commits and reproducible from them: compacted statistics and the catalog."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import Commit, leaves
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.runs import set_aside_of, state_of, stored_run, stored_runs, summary_of
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.ledger.sorted_tables import even
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.storage.contract import Storage

_GROUPS_OF_A_PART = 12
_READS_AHEAD = 16


def committed_tables(storage: Storage, done: Iterable[tuple[Shard, Commit]]) -> Iterator[tuple[Shard, pa.Table]]:
    """Yield the statistics of committed shards in order. Reads ahead to hide the latency of object storage."""
    reading: deque[tuple[Shard, Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(_READS_AHEAD) as pool:
        for shard, commit in done:
            reading.append((shard, pool.submit(rows_of, storage, commit)))
            if len(reading) > _READS_AHEAD:
                yield _read(*reading.popleft())
        while reading:
            yield _read(*reading.popleft())


def _read(shard: Shard, table: Future[pa.Table]) -> tuple[Shard, pa.Table]:
    return shard, table.result()


def compact(
    output: RunOutput, done: Iterable[tuple[Shard, Commit]], input_: str, errors: Counter[str],
    on_rows: Callable[[pa.Table], None] = lambda _: None,
) -> Iterator[pa.Table]:  # fmt: skip
    """Write a run's statistics as a few large files, in the manifest's order.

    Args:
        output: Output of the run.
        done: Committed shards in the manifest's order.
        input_: Input of the job.
        errors: Receives the number of failures by error class.
        on_rows: Called with the rows of each row group.

    Yields:
        The same rows as catalog rows.
    """
    groups = even(_tables_with_shards(output, done), statistics.ROW_GROUP)
    for number, first in enumerate(groups):
        part = statistics.TableWriter()
        for group in chain([first], islice(groups, _GROUPS_OF_A_PART - 1)):
            part.add(group.drop_columns(["shard", "mask"]))
            for failure in group["error_class"].drop_null().value_counts().to_pylist():
                errors[failure["values"]] += failure["counts"]
            on_rows(group)
            yield catalog.from_statistics(group, input_=input_)
        compacted.write_part(output.storage, output.run_id, number, part.close())


def _tables_with_shards(output: RunOutput, done: Iterable[tuple[Shard, Commit]]) -> Iterator[pa.Table]:
    """Yield the statistics of committed shards, with the shard and the name of the mask of each row."""
    for shard, table in committed_tables(output.storage, done):
        names = table["mask_member"]
        if names.null_count:  # failed images, and formats without names, have them in the plan alone
            with suppress(Damaged):  # without a plan, the shard's rows are all there is
                names = pc.coalesce(names, output.manifest.masks(shard))
        shards = pa.array([shard.id] * table.num_rows, pa.string())
        yield table.append_column("shard", shards).append_column("mask", names)


def rebuild_catalog(storage: Storage) -> list[str]:
    """Rebuild a lost catalog from the statistics and listings of the finished runs.

    Returns:
        A sentence for people about each run with unreadable records. Its images are planned again.
    """
    notices = []
    for run in stored_runs(storage):
        if state_of(storage, run.run_id) == "unfinished":
            continue
        try:
            catalog.add(storage, run.run_id, catalog_rows(storage, run.run_id, run.input))
        except (Damaged, NotFound, pa.ArrowException, OSError):
            notices.append(f"the statistics of run {run.run_id} are unreadable, so its images are done again")
    return notices


def catalog_rows(storage: Storage, run_id: str, input_: str) -> Iterator[pa.Table]:
    """Yield a finished run's rows and tombstones as catalog rows. `shard` is null, since statistics do not contain it.

    Args:
        storage: Output storage.
        run_id: The run.
        input_: Input of the job.
    """
    rows = (catalog.from_statistics(table, input_=input_) for table in rows_of_finished(storage, run_id))
    return catalog.with_tombstones(rows, missed_by(storage, run_id), run_id)


def missed_by(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the catalog rows of the images that a run's listing missed, if this counts.

    It counts once the run is finished, or at least in the catalog: a run may die between the two. Otherwise the next
    run compares its own listing with the same catalog.
    """
    if summary_of(storage, run_id) is not None or _is_in_catalog(storage, run_id):
        yield from gone_rows(storage, run_id)


def _is_in_catalog(storage: Storage, run_id: str) -> bool:
    """Return whether the catalog holds the tombstones of a run. A damaged list of them counts as none."""
    version = catalog.current(storage)
    with suppress(Damaged):
        for table in gone_rows(storage, run_id):
            for key in table["key"].to_pylist():
                row = catalog.find(storage, version, key)
                if row is None or row["run_id"] <= run_id:  # a later row says nothing about this run
                    return row is not None and row["run_id"] == run_id
    return False


def rows_of_finished(storage: Storage, run_id: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a finished run in key order: the compacted ones, or the committed ones if those are lost.

    Args:
        storage: Output storage.
        run_id: The run.
        columns: Columns to return; None for all.
    """
    groups = compacted.row_groups(storage, run_id, columns)
    try:
        first = next(groups, None)
    except Damaged:
        first = None
    if first is not None:
        yield from chain([first], groups)
        return
    for table in committed_rows(storage, run_id):
        yield table if columns is None else table.select(list(columns))


def committed_rows(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the committed rows of a run in key order; none if it was interrupted before its plan was stored."""
    if set_aside_of(storage, run_id) is not None:  # what was kept of it is compacted
        return
    try:
        run, manifest = stored_run(storage, run_id), Manifest.stored(storage, run_id)
    except NotFound:
        return
    committed = leaves(manifest.shards(), run.commits(storage).all())
    yield from (table for _, table in committed_tables(storage, committed))
