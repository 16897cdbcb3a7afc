"""What is made of commits, and can be made again: loose masks, compacted statistics, the catalog."""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import pyarrow as pa

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.ledger.sorted_tables import even
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.storage.contract import Storage

_GROUPS_OF_A_PART = 12
_READS_AHEAD = 16


def export_rest(output: RunOutput, done: Iterable[tuple[Shard, Commit]]) -> None:
    """Make the loose masks that are not there yet."""
    if output.format.loose:
        exported = set(output.storage.names(f"runs/{output.run_id}/exports"))
        for shard, commit in done:
            if shard.id not in exported:
                output.export(commit)


def compact(
    output: RunOutput, done: Iterable[tuple[Shard, Commit]], input_: str, errors: Counter[str]
) -> Iterator[pa.Table]:
    """Write the run's statistics as few large files, in the manifest's order.

    Args:
        output: The run.
        done: Its shards.
        input_: The job's.
        errors: Receives the failures by error class.

    Yields:
        The same as catalog rows.
    """

    def tables() -> Iterator[pa.Table]:
        # Some shards ahead: one after the other, a bucket's latency would be most of the end of a large run.
        reading: deque[tuple[Shard, Future[pa.Table]]] = deque()
        with ThreadPoolExecutor(_READS_AHEAD) as pool:
            for shard, commit in done:
                reading.append((shard, pool.submit(rows_of, output.storage, commit)))
                if len(reading) > _READS_AHEAD:
                    yield read(*reading.popleft())
            while reading:
                yield read(*reading.popleft())

    def read(shard: Shard, reading: Future[pa.Table]) -> pa.Table:
        table = reading.result()
        return table.append_column("shard", pa.array([shard.id] * table.num_rows, pa.string()))

    groups = even(tables(), statistics.ROW_GROUP)
    for number, first in enumerate(groups):
        part = statistics.TableWriter()
        for group in chain([first], islice(groups, _GROUPS_OF_A_PART - 1)):
            part.add(group.drop_columns("shard"))
            for failure in group["error_class"].drop_null().value_counts().to_pylist():
                errors[failure["values"]] += failure["counts"]
            yield catalog.from_statistics(group, input_=input_, shards=group["shard"])
        compacted.write_part(output.storage, output.run_id, number, part.close())


def rebuild_catalog(storage: Storage) -> None:
    """Make the catalog of an output that has lost it, from the statistics and listings of its finished runs."""
    for run_id in storage.names("runs"):
        try:
            record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        if not storage.exists(f"runs/{run_id}/run.json"):
            continue
        catalog.add(storage, run_id, outcomes_of(storage, run_id, record["job"]["input"]))


def outcomes_of(storage: Storage, run_id: str, input_: str) -> Iterator[pa.Table]:
    """A finished run's rows and tombstones as the catalog has them, without shards, which statistics do not name."""
    rows = (catalog.from_statistics(table, input_=input_) for table in compacted.tables(storage, run_id))
    return catalog.with_tombstones(rows, gone_rows(storage, run_id), run_id)
