"""A plan being stored by its own thread while its first shards are already processed."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import pyarrow as pa

from maskfleet.jobs.errors import Damaged
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.ledger import catalog, manifest
from maskfleet.jobs.ledger.manifest import SCHEMA, Frozen, Manifest, ManifestWriter, Shard, part_of, shards_of
from maskfleet.jobs.planning.plan import Planning, PlanPart
from maskfleet.jobs.storage.contract import Storage

_CLOSING_SECONDS = 3.0


@dataclass(frozen=True)
class _StoredPart:
    """A part whose shards may start.

    Attributes:
        first: Number of its first shard.
        images: Number of its images.
        shard_size: Images per shard.
    """

    first: int
    images: int
    shard_size: int


class LivePlan:
    """A plan being stored.

    Args:
        storage: Output storage, fenced.
        run_id: Id of the run.
        planning: The plan being made.
        first: First part, already taken from `planning`; empty if there is nothing to do.
        parts: Iterator over the remaining parts of `planning`.
        indexes: Indexes of the tar files read for the plan, stored with it.

    Attributes:
        planning: The plan being made.
        shards_stored: Number of shards stored so far.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        *,
        planning: Planning,
        first: PlanPart,
        parts: Iterator[PlanPart],
        indexes: Indexes | None = None,
    ) -> None:
        self.planning, self._indexes = planning, indexes
        self._writer = ManifestWriter(storage, run_id)
        self._storage, self._run_id = storage, run_id
        self._parts = parts
        self._ready: SimpleQueue[_StoredPart | Frozen | Exception] = SimpleQueue()
        self._ending = threading.Event()
        self.shards_stored, self._shard_size, self._gone_files = 0, 1, 0
        self._frozen: Frozen | None = None
        self._store(first)  # readers expect at least one part
        self._thread = threading.Thread(target=self._store_rest, name="plan", daemon=True)
        self._thread.start()
        if not first.table.num_rows:  # an empty plan is complete at once
            self._thread.join()

    def shards(self) -> Iterator[Shard | None]:
        """Yield every shard once its part is stored; None while the next one is not.

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
            yield from shards_of(item.first, item.images, item.shard_size)

    @property
    def frozen(self) -> Frozen:
        """Summary of the complete plan, or of the parts stored so far."""
        return self._frozen or manifest.so_far(self._storage, self._run_id)

    @property
    def is_growing(self) -> bool:
        """Whether more shards may be planned."""
        return self._frozen is None

    def close(self) -> None:
        """Stop storing after the current part. A thread that hangs in a listing is left behind: it stores no more."""
        self._ending.set()
        self._thread.join(_CLOSING_SECONDS)

    def _store(self, part: PlanPart) -> None:
        if (gone := self.planning.take_gone()) is not None:
            path = f"{manifest.folder_of(self._run_id)}/gone-{self._gone_files:05}.parquet"
            self._storage.write(path, catalog.file_of([gone]))
            self._gone_files += 1
        if self._indexes is not None:
            self._indexes.store(self._storage)
        if images := part.table.num_rows:
            self._writer.add(part_of(part.table, part.shard_size))
            self._ready.put(_StoredPart(self.shards_stored, images, part.shard_size))
            self.shards_stored, self._shard_size = self.shards_stored + part.shards, part.shard_size

    def _store_rest(self) -> None:
        try:
            for part in self._parts:
                if self._ending.is_set():
                    return
                self._store(part)
            if self._ending.is_set():
                return
            self._store(PlanPart(SCHEMA.empty_table(), 1))
            planned = self.planning
            frozen = self._writer.freeze(
                shards=self.shards_stored, images=planned.images, shard_size=self._shard_size, listed=planned.listed,
                bytes=planned.bytes, whole=planned.complete, why=dict(planned.reasons), gone=planned.gone,
                left_alone=planned.left_alone,
            )  # fmt: skip
            self._frozen = frozen
            self._ready.put(frozen)
        except Exception as error:  # raised again in the thread that asks for the next shard
            self._ready.put(error)


def gone_rows(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the catalog rows of images missing from a run's listing, in key order.

    Raises:
        Damaged: A file of them is unreadable.
    """
    folder = manifest.folder_of(run_id)
    for name in storage.names(folder):
        if name.startswith("gone-"):
            try:
                table = catalog.table_of(storage.read(f"{folder}/{name}"))
            except (pa.ArrowException, OSError) as error:
                raise Damaged(f"{storage.url(f'{folder}/{name}')} is unreadable; run the same command again") from error
            yield table


def manifest_of(part: PlanPart) -> Manifest:
    """Return one part as a manifest of its own, before anything is stored."""
    images = part.table.num_rows
    data = part_of(part.table, part.shard_size) if images else b""
    frozen = Frozen(
        parts=int(bool(images)), shards=part.shards, images=images, shard_size=part.shard_size, digest="",
        listed=images, bytes=0, whole=False,
    )  # fmt: skip
    return Manifest(lambda _: data, frozen)
