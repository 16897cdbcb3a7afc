"""The catalog: the newest outcome of every image over all runs of an output. The next run's plan is compared with it.

    catalog/<version>.json     created if absent; lists the deltas, oldest first; the highest version counts
    catalog/rows/*.parquet     rows sorted by key, in files of bounded size; never overwritten

The catalog is a small log-structured merge tree. Each run adds its rows as one delta, and eight deltas of similar size
are merged into one. A row is rewritten only when the catalog has grown eightfold, so a run's cost follows its own size.
Everything is derived from committed statistics; `jobs.run.recovery.derived.rebuild_catalog` restores it.
"""

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Damaged, Locked, NotFound
from maskfleet.jobs.images.formats import SEVERAL_PAGES
from maskfleet.jobs.inputs.containers.formats import final_faults
from maskfleet.jobs.inputs.pages.names import counts_of
from maskfleet.jobs.inputs.record import CHUNK
from maskfleet.jobs.ledger.commit import nonce
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.sorted_tables import even, merged
from maskfleet.jobs.storage.contract import Storage

GONE = "gone"
"""Status of a tombstone: the row of an image that is no longer in the input."""

REDO = "redo"
"""Status of an image to be done again although neither it nor the job has changed, since its mask or row is damaged."""

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
        pa.field("mask", pa.string()),
        pa.field("pages", pa.int32()),
    ]
)
"""Columns of the catalog.

`status` is `ok`, `failed`, `gone` or `redo`. `run_id` and `shard` name the source of the row; `shard` is null in a
rebuilt catalog. `input` is the input of the job, as written in the job file. `mask` is the name of the image's mask,
which no other image gets; it is null in rows of earlier versions, and for failed images in a rebuilt catalog. `pages`
is the number of pages of a page's file, 0 if only the first was read, and null for the only image of a file.
"""

UNNAMED = "mask_name"
"""Error class of an image with a mask that the output cannot hold under its name."""

_FINAL_DECODES = ("empty", "unidentified", "corrupt", "unsupported", SEVERAL_PAGES, "too_small")

_FAN_IN = 8
_GROUPS_OF_A_FILE = 32
_FOLDER = "catalog"


def final_failures() -> tuple[str, ...]:
    """Return the error classes that recur for the same bytes and job. New runs do not retry them."""
    return (*_FINAL_DECODES, *final_faults())


class Unreadable(Damaged):
    """A file of the catalog is missing or damaged. It is derived, so the next run makes it again."""


class File(NamedTuple):
    """A file of rows.

    Attributes:
        path: Path in the output.
        rows: Number of rows.
        first: First key.
        last: Last key.
    """

    path: str
    rows: int
    first: str
    last: str


Delta = tuple[File, ...]
"""Rows added by one run, or merged from several runs: files in key order, each key at most once."""


class Version(NamedTuple):
    """A state of the catalog.

    Attributes:
        number: Version number; 0 if there is no catalog.
        deltas: Deltas, oldest first. The newest row of a key counts.
        last_run: Id of the newest run added completely; empty if there is none.
    """

    number: int
    deltas: tuple[Delta, ...]
    last_run: str


def current(storage: Storage) -> Version:
    """Return the newest version. Raises `Unreadable` if its record is damaged."""
    while True:
        numbers = _versions(storage)
        if not numbers:
            return Version(0, (), "")
        try:
            return _version(storage, numbers[-1])
        except NotFound:
            continue  # deleted in the meantime: there is a newer one


def kept(storage: Storage) -> Iterator[Version]:
    """Yield all stored versions. Readers may still use their files."""
    for number in _versions(storage):
        with suppress(NotFound):
            yield _version(storage, number)


def _version(storage: Storage, number: int) -> Version:
    data = storage.read(_path(number))
    try:
        record = json.loads(data)
        deltas = tuple(tuple(File(*file) for file in delta) for delta in record["runs"])
        return Version(number, deltas, str(record["last_run"]))
    except (ValueError, LookupError, TypeError) as error:
        raise _unreadable(storage, _path(number)) from error


def forget(storage: Storage) -> None:
    """Delete all versions, the newest last: until then, readers find the one that cannot be read, and no older one."""
    for number in _versions(storage):
        storage.discard(_path(number))


def _unreadable(storage: Storage, path: str) -> Unreadable:
    return Unreadable(f"{storage.url(path)} is unreadable; run the job: it makes the catalog again")


def _versions(storage: Storage) -> list[int]:
    return sorted(int(name[:8]) for name in storage.names(_FOLDER) if name.endswith(".json") and name[:8].isdigit())


def _path(version: int) -> str:
    return f"{_FOLDER}/{version:08}.json"


def rows(storage: Storage, version: Version) -> Iterator[pa.Table]:
    """Yield the newest row of every key, tombstones included, in key order and in tables of bounded size.

    Raises `Unreadable` if a file is missing or damaged.
    """
    return merged([_rows_of(storage, delta) for delta in version.deltas], newest=True)


def _rows_of(storage: Storage, delta: Iterable[File]) -> Iterator[pa.Table]:
    for file in delta:
        with _read_well(storage, file):
            parquet = pq.ParquetFile(io.BytesIO(storage.read(file.path)), page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            with _read_well(storage, file):
                table = _whole(parquet.read_row_group(group))
            yield table


@contextmanager
def _read_well(storage: Storage, file: File) -> Iterator[None]:
    try:
        yield
    except (NotFound, pa.ArrowException, OSError) as error:
        raise _unreadable(storage, file.path) from error


def _whole(table: pa.Table) -> pa.Table:
    """Add the columns that files of earlier versions lack."""
    for field in SCHEMA:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SCHEMA.names)


def find(storage: Storage, version: Version, key: str) -> dict[str, Any] | None:
    """Return the newest row of an image, or None. Reads at most one file of each delta."""
    for delta in reversed(version.deltas):
        for file in delta:
            if file.first <= key <= file.last:
                with _read_well(storage, file):
                    table = pq.read_table(io.BytesIO(storage.read(file.path)), filters=[("key", "=", key)])
                if table.num_rows:
                    row: dict[str, Any] = table.to_pylist()[0]
                    return row
    return None


def ending(storage: Storage, version: Version, end: str) -> str:
    """Return the only key with an ending; see `jobs.ledger.keys.chosen`.

    Raises:
        JobError: No key has this ending, or several keys have it.
    """
    if find(storage, version, end):
        return end
    matching = (table["key"].filter(pc.ends_with(table["key"], end)) for table in rows(storage, version))
    return chosen(end, (key for keys in matching for key in keys.to_pylist()))


def add(
    storage: Storage, run_id: str, tables: Iterable[pa.Table], *, fence: Fence | None = None, complete: bool = True
) -> Version:
    """Add the rows of a run. Adding a run twice has no effect.

    Args:
        storage: Output storage.
        run_id: Run to add. Runs must be added in order of id.
        tables: Rows in `SCHEMA`, sorted by key, each key once.
        fence: Fence of the driver adding the run.
        complete: Whether these are all rows of the run. If not, more may be added later.

    Returns:
        The newest version.

    Raises:
        Locked: Another driver holds the output, or made a version at the same time.
    """
    version = current(storage)
    if version.last_run >= run_id:
        return version
    return _extended(storage, version, tables, last_run=run_id if complete else version.last_run, fence=fence)


def mark_redo(storage: Storage, tables: Iterable[pa.Table], *, fence: Fence) -> Version:
    """Have the next runs do images again.

    Args:
        storage: Output storage.
        tables: Newest rows of these images, in `SCHEMA`, sorted by key.
        fence: Fence of the lock's holder.

    Raises:
        Locked: Another driver holds the output, or made a version at the same time.
    """
    version = current(storage)
    place, field = SCHEMA.get_field_index("status"), SCHEMA.field("status")
    marked = (table.set_column(place, field, pa.array([REDO] * table.num_rows, pa.string())) for table in tables)
    return _extended(storage, version, marked, last_run=version.last_run, fence=fence)


def _extended(
    storage: Storage, version: Version, tables: Iterable[pa.Table], *, last_run: str, fence: Fence | None
) -> Version:
    """Store rows as one more delta, in a new version. Without rows, return the version as it is."""
    added = _stored(storage, tables)
    if not added:
        return version
    deltas = _compacted(storage, [*version.deltas, added])
    if fence is not None:
        fence.check()
    new = Version(version.number + 1, tuple(deltas), last_run)
    record = json.dumps({"last_run": new.last_run, "runs": new.deltas}).encode()
    if not storage.create(_path(new.number), record) and storage.read(_path(new.number)) != record:
        raise Locked(f"another run has just changed the catalog of {storage.root}; wait for it, then run again")
    # Readers of the previous version may still be at work. Nobody reads older ones.
    for number in _versions(storage)[:-2]:
        storage.discard(_path(number))
    return new


def _compacted(storage: Storage, deltas: list[Delta]) -> list[Delta]:
    """Merge the newest deltas while there are enough of one size. `jobs.outputs.gc` deletes the merged files."""
    while len(deltas) >= _FAN_IN and _tier(deltas[-1]) >= max(_tier(delta) for delta in deltas[-_FAN_IN:]):
        old = deltas[-_FAN_IN:]
        new = _stored(storage, merged([_rows_of(storage, delta) for delta in old], newest=True))
        deltas = [*deltas[:-_FAN_IN], new]
    return deltas


def _tier(delta: Delta) -> int:
    return int(math.log(max(1, sum(file.rows for file in delta)), _FAN_IN))


def _stored(storage: Storage, tables: Iterable[pa.Table]) -> Delta:
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
    """Return a Parquet file of catalog rows. Only one table is held uncompressed at a time."""
    sink = io.BytesIO()
    repetitive = [name for name in SCHEMA.names if name not in ("key", "etag", "mask")]
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=repetitive, write_statistics=["key"], write_page_checksum=True
    ) as writer:
        for group in groups:
            writer.write_table(group.select(SCHEMA.names).cast(SCHEMA), row_group_size=CHUNK)
    return sink.getvalue()


def table_of(data: bytes) -> pa.Table:
    """Return the rows in a file written by `file_of`."""
    return pq.read_table(io.BytesIO(data), schema=SCHEMA)


def from_statistics(statistics: pa.Table, *, input_: str) -> pa.Table:
    """Return the catalog rows of a statistics table.

    Args:
        statistics: Rows in `jobs.ledger.statistics.SCHEMA`. Further columns `shard` and `mask` are taken over; without
            them the shard is unknown, and the name of the mask where the rows do not have it.
        input_: Input of the job.
    """
    count = statistics.num_rows
    if "shard" not in statistics.schema.names:
        statistics = statistics.append_column("shard", pa.nulls(count, pa.string()))
    if "mask" not in statistics.schema.names:
        statistics = statistics.append_column("mask", statistics["mask_member"])
    table = statistics.append_column("input", pa.array([input_] * count, pa.string()))
    table = table.append_column("pages", counts_of(table["url"]))
    return table.select(SCHEMA.names).replace_schema_metadata(None).cast(SCHEMA)


def tombstones(known: pa.Table, run_id: str) -> pa.Table:
    """Return the tombstones of images missing from a run's listing.

    Args:
        known: Catalog rows of the missing images.
        run_id: Run whose listing missed them.
    """
    count = known.num_rows
    changed = {"status": pa.array([GONE] * count), "run_id": pa.array([run_id] * count)}
    nulls = pa.nulls(count, pa.string())
    changed |= dict.fromkeys(("stage", "error_class", "shard"), nulls)
    for name, column in changed.items():
        known = known.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return known


def with_tombstones(done: Iterable[pa.Table], missing: Iterable[pa.Table], run_id: str) -> Iterator[pa.Table]:
    """Merge a run's rows with the tombstones of the images it missed.

    Args:
        done: Catalog rows of the run, sorted by key.
        missing: Catalog rows of the missing images, sorted by key. Their keys differ from those of `done`.
        run_id: The run.
    """
    return merged([iter(done), (tombstones(table, run_id) for table in missing)])


def in_classes(stage: pa.Array, error_class: pa.Array, classes: Sequence[str]) -> pa.Array:
    """Tell which failures `maskfleet retry` selects.

    Args:
        stage: Stage of each failure.
        error_class: Error class of each failure.
        classes: Kinds of failures to select: `decode`, `oom`, `io` or `crash`.

    Returns:
        A boolean array; False for rows without a failure.
    """
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
