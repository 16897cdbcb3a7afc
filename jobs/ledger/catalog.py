"""The newest outcome of every image, over all runs of an output: what the next night's plan is compared with.

    catalog/<version>.json     created if absent: which runs of rows there are, oldest first; the highest counts
    catalog/rows/*.parquet     rows sorted by key, in files of a bounded size; never written over

A log-structured merge tree, as small as one can be: a night adds its own rows as one sorted run, whatever has been
before it, and eight runs of like size are merged into one. So a row is rewritten once each time the catalog has become
eight times as large, and a night's cost follows its own size. Everything here is derived from committed statistics, and
`jobs.run.derived.rebuild_catalog` makes it again.
"""

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Locked, NotFound
from maskfleet.jobs.inputs.record import CHUNK
from maskfleet.jobs.ledger.commit import nonce
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.sorted_tables import even, merged
from maskfleet.jobs.storage.contract import Storage

FINAL = (
    *("empty", "unidentified", "corrupt", "unsupported", "too_small"),
    *("damaged_tar", "unsafe_name", "duplicate_name", "link", "sparse", "no_column", "damaged_parquet", "no_bytes"),
    "bad_name",
)
"""Failures that the same bytes under the same job give again, so that a new run does not try them."""

GONE = "gone"
"""Status of an image that the input has no more: a tombstone, which the image's story ends with."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("stage", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.string()),
        pa.field("input", pa.string(), nullable=False),
    ]
)
"""`status` is ok, failed or gone; `run_id` and `shard` name what made it so; `input` is the job's, as it was listed."""

CLASSES = ("decode", "oom", "io", "crash")
"""Kinds of failure that `maskfleet retry` knows."""

_FAN_IN = 8
_GROUPS_OF_A_FILE = 32
_FOLDER = "catalog"


class File(NamedTuple):
    """Rows of one run, from the key `first` to the key `last`."""

    path: str
    rows: int
    first: str
    last: str


class Version(NamedTuple):
    """A state of the catalog.

    Attributes:
        number: Of its record; 0 where there is none.
        runs: Sorted runs of rows, oldest first; the newest that has a key decides.
        last_run: The newest run of the job that is in it.
    """

    number: int
    runs: tuple[tuple[File, ...], ...]
    last_run: str


def current(storage: Storage) -> Version:
    """The newest version."""
    while True:
        numbers = _versions(storage)
        if not numbers:
            return Version(0, (), "")
        try:
            return _version(storage, numbers[-1])
        except NotFound:
            continue  # deleted just now: there is a newer


def kept(storage: Storage) -> Iterator[Version]:
    """Every version whose files may be in use."""
    for number in _versions(storage):
        with suppress(NotFound):
            yield _version(storage, number)


def _version(storage: Storage, number: int) -> Version:
    record = json.loads(storage.read(_path(number)))
    return Version(number, tuple(tuple(File(*file) for file in run) for run in record["runs"]), record["last_run"])


def _versions(storage: Storage) -> list[int]:
    return sorted(int(name[:8]) for name in storage.names(_FOLDER) if name.endswith(".json") and name[:8].isdigit())


def _path(version: int) -> str:
    return f"{_FOLDER}/{version:08}.json"


def rows(storage: Storage, version: Version) -> Iterator[pa.Table]:
    """The newest row of every key, in key order, a chunk at a time."""
    return merged([_rows_of(storage, run) for run in version.runs], newest=True)


def _rows_of(storage: Storage, run: Iterable[File]) -> Iterator[pa.Table]:
    for file in run:
        with pq.ParquetFile(io.BytesIO(storage.read(file.path))) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)


def find(storage: Storage, version: Version, key: str) -> dict[str, Any] | None:
    """An image's row, from at most one file of each run."""
    for run in reversed(version.runs):
        for file in run:
            if file.first <= key <= file.last:
                table = pq.read_table(io.BytesIO(storage.read(file.path)), filters=[("key", "=", key)])
                if table.num_rows:
                    row: dict[str, Any] = table.to_pylist()[0]
                    return row
    return None


def ending(storage: Storage, version: Version, end: str) -> str:
    """The key that an ending means; see `jobs.ledger.keys`.

    Raises:
        JobError: No key ends so, or several do.
    """
    if find(storage, version, end):
        return end
    matching = (table["key"].filter(pc.ends_with(table["key"], end)) for table in rows(storage, version))
    return chosen(end, (key for keys in matching for key in keys.to_pylist()))


def add(
    storage: Storage, run_id: str, tables: Iterable[pa.Table], *, fence: Fence | None = None, whole: bool = True
) -> Version:
    """Add a run's outcomes. Doing it again changes nothing.

    Args:
        storage: The output.
        run_id: Of the job's run; runs come in order of id.
        tables: Of `SCHEMA`, sorted by key, each key once.
        fence: Of the driver that adds it.
        whole: Whether these are all of the run's outcomes; else more of them may be added later.

    Raises:
        Locked: Another driver holds the output, or made a version at the same time.
    """
    version = current(storage)
    if version.last_run >= run_id:
        return version
    added = _stored(storage, tables)
    if not added:
        return version
    runs = _compacted(storage, [*version.runs, added])
    if fence is not None:
        fence.check()
    new = Version(version.number + 1, tuple(runs), run_id if whole else version.last_run)
    record = json.dumps({"last_run": new.last_run, "runs": new.runs}).encode()
    if not storage.create(_path(new.number), record) and storage.read(_path(new.number)) != record:
        raise Locked(f"another run has just changed the catalog of {storage.root}; wait for it, and run again")
    # Who reads the version before may go on for a while; of older ones nobody is left.
    for number in _versions(storage)[:-2]:
        storage.delete(_path(number))
    return new


def _compacted(storage: Storage, runs: list[tuple[File, ...]]) -> list[tuple[File, ...]]:
    """Merge the newest runs of one size while there are enough of them; `jobs.outputs.gc` deletes their files."""
    while len(runs) >= _FAN_IN and _tier(runs[-1]) >= max(_tier(run) for run in runs[-_FAN_IN:]):
        old = runs[-_FAN_IN:]
        new = _stored(storage, merged([_rows_of(storage, run) for run in old], newest=True))
        runs = [*runs[:-_FAN_IN], new]
    return runs


def _tier(run: Sequence[File]) -> int:
    return int(math.log(max(1, sum(file.rows for file in run)), _FAN_IN))


def _stored(storage: Storage, tables: Iterable[pa.Table]) -> tuple[File, ...]:
    groups = even(tables)
    return tuple(_file(storage, chain([group], islice(groups, _GROUPS_OF_A_FILE - 1))) for group in groups)


def _file(storage: Storage, groups: Iterable[pa.Table]) -> File:
    rows, first, last = 0, "", ""

    def noted() -> Iterator[pa.Table]:
        nonlocal rows, first, last
        for group in groups:
            first = first if rows else group["key"][0].as_py()
            rows, last = rows + group.num_rows, group["key"][-1].as_py()
            yield group

    path = f"{_FOLDER}/rows/{nonce()}.parquet"
    storage.write(path, file_of(noted()))
    return File(path, rows, first, last)


def file_of(groups: Iterable[pa.Table]) -> bytes:
    """Rows as stored; of their tables one at a time is in memory uncompressed."""
    sink = io.BytesIO()
    alike = [name for name in SCHEMA.names if name not in ("key", "etag")]
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", use_dictionary=alike, write_statistics=["key"]) as writer:
        for group in groups:
            writer.write_table(group.select(SCHEMA.names).cast(SCHEMA), row_group_size=CHUNK)
    return sink.getvalue()


def table_of(data: bytes) -> pa.Table:
    """Rows as read back."""
    return pq.read_table(io.BytesIO(data), schema=SCHEMA)


def outcomes(statistics: pa.Table, *, input_: str, shards: pa.ChunkedArray | None = None) -> pa.Table:
    """Statistics as catalog rows."""
    count = statistics.num_rows
    shards = pa.chunked_array([pa.nulls(count, pa.string())]) if shards is None else shards
    table = statistics.select([name for name in SCHEMA.names if name not in ("shard", "input")])
    table = table.append_column("shard", shards).append_column("input", pa.array([input_] * count, pa.string()))
    return table.select(SCHEMA.names).replace_schema_metadata(None).cast(SCHEMA)


def gone(known: pa.Table, run_id: str) -> pa.Table:
    """Tombstones of catalog rows."""
    count = known.num_rows
    changed = {"status": pa.array([GONE] * count), "run_id": pa.array([run_id] * count)}
    nulls = pa.nulls(count, pa.string())
    changed |= dict.fromkeys(("stage", "error_class", "shard"), nulls)
    for name, column in changed.items():
        known = known.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return known


def of_classes(stage: pa.Array, error_class: pa.Array, classes: Sequence[str]) -> pa.Array:
    """Which failures are of these kinds; see `CLASSES`."""
    crash = pc.fill_null(pc.equal(error_class, "crash"), False)
    oom = pc.fill_null(pc.is_in(error_class, value_set=pa.array(["memory", "out_of_memory"])), False)
    of = {
        "crash": crash,
        "oom": oom,
        "io": pc.fill_null(pc.equal(stage, "fetch"), False),
        "decode": pc.and_not(pc.fill_null(pc.equal(stage, "decode"), False), pc.or_(crash, oom)),
    }
    found = pa.array([False] * len(stage), pa.bool_())
    for name in classes:
        found = pc.or_(found, of[name])
    return found


def with_gone(done: Iterable[pa.Table], vanished: Iterable[pa.Table], run_id: str) -> Iterator[pa.Table]:
    """A run's rows and its tombstones, both sorted and of different keys, as one sorted stream."""
    return merged([iter(done), (gone(table, run_id) for table in vanished)])
