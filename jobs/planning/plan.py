"""Planning as a stream: list → order → name → compare with the catalog → select → cut into parts.

Nothing here grows with the images: of each stage a chunk is in memory. So a plan begins to be carried out while the
input is still being listed, and a million images need no more memory than ten thousand.
"""

import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.inputs.containers.formats import files_of
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.record import CHUNK, LISTED
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog, manifest
from maskfleet.jobs.ledger.manifest import (
    PART_SHARDS,
    SCHEMA,
    Frozen,
    Manifest,
    ManifestWriter,
    Shard,
    part_of,
    shards_of,
)
from maskfleet.jobs.ledger.sorted_tables import SortedCursor
from maskfleet.jobs.masks.names import mask_names, settled
from maskfleet.jobs.planning.external_sort import in_key_order
from maskfleet.jobs.storage.contract import Storage

LARGEST = 512
"""Images of a shard, where the job leaves it open and there are enough."""

SMALLEST = 4
"""So that the first masks of a small job are soon there."""


class Planning:
    """A plan in the making: iterate once, for tables of `SCHEMA` and the size of their shards.

    Args:
        listing: Tables of a `jobs.inputs.sources.Source`.
        in_order: Whether they come in key order.
        shard_size: Images per shard, or "auto".
        known: Catalog rows in key order, the newest of each key.
        fingerprint: Of the job.
        source: What the job's input is called in the catalog; only its images can be found gone.
        selection: What of it is wanted.
        mean_bytes: Mean size of an image in bytes, by the URL of its container. May grow while the input is listed.

    Attributes:
        listed: Images found so far.
        images: Planned so far.
        bytes: Of them, of rows of Parquet files by what their file says of all.
        why: Planned so far, by reason.
        done: So far, those that need no work or were not selected.
        gone: So far, known images that the input has no more.
        whole: Whether the input was listed to its end.
    """

    def __init__(
        self,
        listing: Iterable[pa.Table],
        *,
        in_order: bool,
        shard_size: int | str,
        known: Iterable[pa.Table] = (),
        fingerprint: str = "",
        source: str = "",
        selection: Selection | None = None,
        mean_bytes: Mapping[str, float] | None = None,
    ) -> None:
        self._listing, self._in_order, self._shard_size = listing, in_order, shard_size
        self._known, self._fingerprint, self._source = known, fingerprint, source
        self._selection = selection or Selection()
        self._mean_bytes = {} if mean_bytes is None else mean_bytes
        self.listed = self.images = self.bytes = self.gone = 0
        self.why: Counter[str] = Counter()
        self.whole = False
        self._vanished: list[pa.Table] = []

    @property
    def done(self) -> int:
        return self.listed - self.images

    def __iter__(self) -> Iterator[tuple[pa.Table, int]]:
        rows = sampled(self._chosen(), self._selection.sample)
        rows = self._limited(rows)
        size = self._shard_size if isinstance(self._shard_size, int) else LARGEST
        held: list[pa.Table] = []
        first = True
        for table in rows:
            held.append(table)
            while sum(part.num_rows for part in held) >= PART_SHARDS * size:
                whole = pa.concat_tables(held)
                yield self._counted(whole.slice(0, PART_SHARDS * size)), size
                held = [whole.slice(PART_SHARDS * size)]
                first = False
        rest = pa.concat_tables(held) if held else SCHEMA.empty_table()
        if rest.num_rows:
            # Never by the number of workers: a shard's batches, and so its bytes, must not depend on it.
            if first and self._shard_size == "auto":
                size = max(SMALLEST, min(LARGEST, -(-rest.num_rows // PART_SHARDS)))
            yield self._counted(rest), size

    def _counted(self, part: pa.Table) -> pa.Table:
        self.images += part.num_rows
        self.bytes += (pc.sum(part["size"]).as_py() or 0) + self._estimated_bytes(part)
        for item in part["why"].value_counts().to_pylist():
            self.why[item["values"]] += item["counts"]
        return part.combine_chunks()

    def _estimated_bytes(self, part: pa.Table) -> int:
        """Return the estimated bytes of images whose own size is unknown before they are read."""
        if not self._mean_bytes:
            return 0
        urls = part["url"].filter(pc.is_null(part["size"]))
        files = files_of(urls).value_counts().to_pylist()
        return round(sum(self._mean_bytes.get(str(file["values"]), 0.0) * int(file["counts"]) for file in files))

    def _limited(self, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        left = self._selection.limit
        for table in rows:
            if left is None:
                yield table
                continue
            yield table.slice(0, left)
            left -= min(left, table.num_rows)
            if not left:
                self.whole = False
                return

    def _chosen(self) -> Iterator[pa.Table]:
        """The rows that need work, and that the job wants done."""
        known = SortedCursor(iter(self._known))
        for table in _named(in_key_order(self._listing, sorted_already=self._in_order)):
            self.listed += table.num_rows
            seen = known.up_to(table["key"][-1].as_py(), catalog.SCHEMA)
            self._note_gone(seen, table)
            why = _why(table, seen, self._fingerprint, self._selection)
            yield table.append_column("why", why).filter(pc.is_valid(why)).select(SCHEMA.names).cast(SCHEMA)
        while (rest := known.next()) is not None:
            self._note_gone(rest, None)
        self.whole = True

    def _note_gone(self, seen: pa.Table, listed: pa.Table | None) -> None:
        missing = pc.and_(pc.not_equal(seen["status"], catalog.GONE), pc.equal(seen["input"], self._source))
        if listed is not None:
            missing = pc.and_(missing, pc.invert(pc.is_in(seen["key"], value_set=listed["key"])))
        rows = seen.filter(missing)
        if rows.num_rows:
            self.gone += rows.num_rows
            self._vanished.append(rows)

    def vanished(self) -> pa.Table | None:
        """The catalog rows of images found gone since this was asked last."""
        rows, self._vanished = self._vanished, []
        return pa.concat_tables(rows) if rows else None


def _named(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """With each image's mask name, which depends on its neighbours in key order, done or not."""
    held = LISTED.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        if held.num_rows < CHUNK:
            continue
        if cut := settled(held["key"]):
            yield _with_names(held.slice(0, cut))
            held = held.slice(cut)
    if held.num_rows:
        yield _with_names(held)


def _with_names(table: pa.Table) -> pa.Table:
    table = table.combine_chunks()
    return table.append_column("mask", mask_names(table["key"]))


def _why(table: pa.Table, seen: pa.Table, fingerprint: str, wanted: Selection) -> pa.ChunkedArray:
    """Why each image is planned; null for those that are not."""
    # One null row behind the catalog's stands for "unknown", since nothing can be taken from an empty column.
    row = pc.fill_null(pc.index_in(table["key"], value_set=seen["key"]), seen.num_rows)
    column = {
        name: pa.concat_arrays([*seen[name].chunks, pa.nulls(1, seen.schema.field(name).type)]).take(
            row.combine_chunks() if isinstance(row, pa.ChunkedArray) else row
        )
        for name in ("etag", "fingerprint", "status", "stage", "error_class")
    }
    etag = table["etag"].combine_chunks()
    unknown = pc.fill_null(pc.equal(column["status"], catalog.GONE), True)
    same = pc.or_(
        pc.fill_null(pc.equal(column["etag"], etag), False), pc.and_(pc.is_null(column["etag"]), pc.is_null(etag))
    )
    stale = pc.invert(pc.fill_null(pc.equal(column["fingerprint"], fingerprint), False))
    failed = pc.fill_null(pc.equal(column["status"], "failed"), False)
    if wanted.classes:
        again = catalog.in_classes(column["stage"], column["error_class"], wanted.classes)
        why = pc.if_else(pc.and_(failed, again), "failed", None)
    else:
        hopeless = pc.fill_null(pc.is_in(column["error_class"], value_set=pa.array(catalog.final_failures())), False)
        again = pc.and_(failed, pc.invert(hopeless))
        why = pc.case_when(pc.make_struct(unknown, pc.invert(same), stale, again), "new", "changed", "stale", "failed")
    if wanted.only:
        why = pc.if_else(pc.is_in(why, value_set=pa.array(wanted.only)), why, None)
    if wanted.since is not None:
        recent = pc.fill_null(pc.greater_equal(table["modified"].combine_chunks(), wanted.since.timestamp()), True)
        why = pc.if_else(recent, why, None)
    return pa.chunked_array([why.cast(pa.string())])


def sampled(rows: Iterator[pa.Table], count: int | None) -> Iterator[pa.Table]:
    """So many of the rows, chosen by a hash of the key: the same ones every time, from all over the input."""
    if count is None:
        yield from rows
        return
    kept = SCHEMA.empty_table()
    ranks = pa.array([], pa.uint32())
    for table in rows:
        kept = pa.concat_tables([kept, table])
        ranks = pa.concat_arrays(
            [ranks, pa.array([zlib.crc32(key.encode()) for key in table["key"].to_pylist()], pa.uint32())]
        )
        best = pc.array_sort_indices(ranks).slice(0, count)
        kept, ranks = kept.take(best).combine_chunks(), ranks.take(best)
    yield kept.sort_by("key")


class LivePlan:
    """A plan that is stored by a thread of its own while its first shards are done.

    Args:
        storage: The output.
        run_id: Whose.
        planning: Of which `first` was taken, and `parts` are the rest.
        first: First part; empty where there is nothing to do.
        parts: The others.
        indexes: Of the tars that are read for it, to be stored with it.

    Attributes:
        planning: As given.
        shards_stored: So far.
    """

    def __init__(
        self, storage: Storage, run_id: str, planning: Planning, first: tuple[pa.Table, int],
        parts: Iterator[tuple[pa.Table, int]], indexes: Indexes | None = None,
    ) -> None:  # fmt: skip
        self.planning, self._indexes = planning, indexes
        self._writer = ManifestWriter(storage, run_id)
        self._storage, self._run_id = storage, run_id
        self._parts = parts
        self._ready: SimpleQueue[tuple[int, int, int] | Frozen | Exception] = SimpleQueue()
        self._ending = threading.Event()
        self.shards_stored, self._shard_size, self._gone_files = 0, 1, 0
        self._frozen: Frozen | None = None
        self._store(first)  # before anybody looks for it
        self._thread = threading.Thread(target=self._store_rest, name="plan", daemon=True)
        self._thread.start()
        if not first[0].num_rows:  # nothing to do is known at once
            self._thread.join()

    def shards(self) -> Iterator[Shard | None]:
        """Every shard as soon as its part is stored; None where the next one is not there yet.

        Raises:
            MaskfleetError: The input cannot be listed to its end.
        """
        while True:
            try:
                item = self._ready.get_nowait()
            except Empty:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Frozen):
                return
            yield from shards_of(*item)

    @property
    def frozen(self) -> Frozen:
        """What the marker says, or would say of what is stored so far."""
        return self._frozen or manifest.so_far(self._storage, self._run_id)

    def close(self) -> None:
        """Let the thread end, whether the plan is whole or not."""
        self._ending.set()
        self._thread.join()

    def _store(self, part: tuple[pa.Table, int]) -> None:
        table, size = part
        if (gone := self.planning.vanished()) is not None:
            path = f"{manifest.folder_of(self._run_id)}/gone-{self._gone_files:05}.parquet"
            self._storage.write(path, catalog.file_of([gone]))
            self._gone_files += 1
        if self._indexes is not None:
            self._indexes.store()
        if table.num_rows:
            self._writer.add(part_of(table, size))
            self._ready.put((self.shards_stored, table.num_rows, size))
            self.shards_stored, self._shard_size = self.shards_stored + -(-table.num_rows // size), size

    def _store_rest(self) -> None:
        try:
            for part in self._parts:
                if self._ending.is_set():
                    return
                self._store(part)
            self._store((SCHEMA.empty_table(), 1))
            planned = self.planning
            frozen = self._writer.freeze(
                shards=self.shards_stored, images=planned.images, shard_size=self._shard_size, listed=planned.listed,
                bytes=planned.bytes, whole=planned.whole, why=dict(planned.why), gone=planned.gone,
            )  # fmt: skip
            self._frozen = frozen
            self._ready.put(frozen)
        except Exception as error:  # it belongs to whoever asks for the next shard
            self._ready.put(error)


def gone_rows(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """The catalog rows of images that a run's listing missed, in key order."""
    folder = manifest.folder_of(run_id)
    for name in storage.names(folder):
        if name.startswith("gone-"):
            yield catalog.table_of(storage.read(f"{folder}/{name}"))


def in_memory(part: pa.Table, size: int) -> Manifest:
    """A plan's first part as the whole of a manifest, to look at before anything is written."""
    data = part_of(part, size) if part.num_rows else b""
    counts: dict[str, Any] = {"listed": part.num_rows, "bytes": 0, "whole": False, "digest": ""}
    shards = -(-part.num_rows // size)
    return Manifest(lambda _: data, Frozen(bool(data), shards, part.num_rows, size, **counts))


def first_of(parts: Iterator[tuple[pa.Table, int]]) -> tuple[pa.Table, int]:
    """The first part, or an empty one."""
    return next(parts, (SCHEMA.empty_table(), 1))
