"""The plan of a run as it is stored: which image is in which shard, and what its mask is called.

    runs/<run_id>/manifest/part-00000.parquet   32 shards each, a row group per shard; written while the input is listed
    runs/<run_id>/manifest/frozen.json          last: how many parts, shards and images; from then on the plan is whole

A worker reads the part that its shard is in, and of it the shard's row group; nobody holds all records. Shards of parts
that are written may be handed out before the rest is.
"""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Locked, NotFound
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.storage.contract import Storage

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mask", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
    ]
)
"""One row per image, sorted by key. `mask` is the mask's name; `why` it was planned: new, changed, stale or failed."""

PART_SHARDS = 32
"""Shards of every part but the last."""

_RECORD = ("key", "url", "size", "etag")
_PARTS_HELD = 3


class Shard(NamedTuple):
    """A unit of work: consecutive rows of one row group of the manifest.

    Attributes:
        id: The shard's number within the run, five digits or more; of a part of a shard that was cut in two,
            followed by `.0` or `.1` for each cut.
        start: First row within the row group.
        stop: Row after the last.
    """

    id: str
    start: int
    stop: int

    @property
    def group(self) -> int:
        """The shard's number, uncut."""
        return int(self.id.partition(".")[0])

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> tuple["Shard", "Shard"]:
        """The shard cut in two.

        Raises:
            ValueError: It has one record only.
        """
        if len(self) < 2:
            raise ValueError(f"shard {self.id} has {len(self)} records and cannot be cut")
        middle = (self.start + self.stop) // 2
        return Shard(f"{self.id}.0", self.start, middle), Shard(f"{self.id}.1", middle, self.stop)


@dataclass(frozen=True)
class Frozen:
    """What the marker says of a whole plan.

    Attributes:
        parts: How many.
        shards: How many.
        images: Planned.
        shard_size: Images of every shard but the last.
        digest: sha256 over the parts' sha256.
        listed: Images that the input has, those included that need no work.
        bytes: Of the planned images, as far as known.
        whole: Whether the input was listed to its end. False where planning was cut off or limited: then what is
            behind the last planned key is for the next run.
        why: Planned images by reason.
        gone: Images that the catalog knows and the input has no more.
    """

    parts: int
    shards: int
    images: int
    shard_size: int
    digest: str
    listed: int
    bytes: int
    whole: bool
    why: dict[str, int] = field(default_factory=dict)
    gone: int = 0


class Manifest:
    """A stored plan.

    Args:
        read: Gives a part by its number.
        frozen: The marker, or of a plan that is being written what there is of it so far.
    """

    def __init__(self, read: Callable[[int], bytes], frozen: Frozen | Callable[[], Frozen]) -> None:
        self._read = read
        self._frozen = frozen
        self._held: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()

    @classmethod
    def stored(cls, storage: Storage, run_id: str) -> Self:
        """The plan of a run, or as much of it as is stored.

        Raises:
            NotFound: Nothing of it is.
        """
        frozen: Frozen | Callable[[], Frozen]
        try:
            frozen = Frozen(**json.loads(storage.read(f"{folder_of(run_id)}/frozen.json")))
        except NotFound:
            if not storage.exists(f"{folder_of(run_id)}/{part_name(0)}"):
                raise
            frozen = lambda: so_far(storage, run_id)  # noqa: E731  (few ask, and it reads every part)
        return cls(lambda part: storage.read(f"{folder_of(run_id)}/{part_name(part)}"), frozen)

    @property
    def is_frozen(self) -> bool:
        """Whether the plan is whole."""
        return isinstance(self._frozen, Frozen)

    @property
    def frozen(self) -> Frozen:
        """What the marker says, or would say of what there is so far."""
        return self._frozen if isinstance(self._frozen, Frozen) else self._frozen()

    @property
    def images(self) -> int:
        """Number of records."""
        return self.frozen.images

    def shards(self) -> Iterator[Shard]:
        """Every shard, uncut, in order. Of a whole plan this reads nothing: all but the last are of one size."""
        frozen = self.frozen
        return shards_of(0, frozen.images, frozen.shard_size)

    def records(self, shard: Shard) -> list[tuple[Record, str]]:
        """A shard's records, each with its mask's name, in the order that everything about the shard follows."""
        part, group = divmod(shard.group, PART_SHARDS)
        with self._lock:  # two shards are in work, and a Parquet file is no place for two threads
            table = self._part(part).read_row_group(group).slice(shard.start, len(shard))
        columns = [table[name].to_pylist() for name in (*_RECORD, "mask")]
        return [(Record(*row[:-1]), row[-1]) for row in zip(*columns, strict=True)]

    def sample(self, count: int) -> list[Record]:
        """At most so many records, from shards all over the first part, which is there before any shard goes out."""
        if isinstance(self._frozen, Frozen) and not self._frozen.images:
            return []
        metadata = self._part(0).metadata
        groups = metadata.num_row_groups
        chosen = [groups * number // min(count, groups) for number in range(min(count, groups))]
        each = -(-count // max(1, len(chosen)))
        rows = (metadata.row_group(number).num_rows for number in chosen)
        shards = [Shard(f"{number:05}", 0, min(each, size)) for number, size in zip(chosen, rows, strict=True)]
        return [record for shard in shards for record, _ in self.records(shard)][:count]

    def find(self, key: str) -> dict[str, Any] | None:
        """The row of an image, with its `shard`, or None. Halves the parts, then reads one."""
        low, high = 0, self.frozen.parts
        if not high:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            first = self._part(middle).read_row_group(0, columns=["key"])["key"][0].as_py()
            low, high = (middle, high) if first <= key else (low, middle)
        for group in range(self._part(low).metadata.num_row_groups):
            rows = self._part(low).read_row_group(group)
            place = rows["key"].index(key).as_py()
            if place >= 0:
                row: dict[str, Any] = rows.slice(place, 1).to_pylist()[0]
                return row | {"shard": f"{low * PART_SHARDS + group:05}"}
        return None

    def _part(self, number: int) -> pq.ParquetFile:
        # A reader of its own per part: shards are handed out in order, so that a few of them serve nearly all.
        if number not in self._held:
            while len(self._held) >= _PARTS_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[number] = pq.ParquetFile(io.BytesIO(self._read(number)))
        return self._held[number]


def folder_of(run_id: str) -> str:
    """Where a run's plan lies."""
    return f"runs/{run_id}/manifest"


def part_name(number: int) -> str:
    """Of a part's file."""
    return f"part-{number:05}.parquet"


def shards_of(first: int, images: int, size: int) -> Iterator[Shard]:
    """The shards of so many images, numbered from the first."""
    for number, start in enumerate(range(0, images, size)):
        yield Shard(f"{first + number:05}", 0, min(size, images - start))


def part_of(table: pa.Table, size: int) -> bytes:
    """A part's file.

    Args:
        table: Of `SCHEMA`, at most `PART_SHARDS` times `size` rows.
        size: Images of a shard.
    """
    sink = io.BytesIO()
    # Of columns whose values are all different, dictionaries and statistics are more than half of the time.
    pq.write_table(
        table, sink, compression="zstd", row_group_size=size, store_schema=False, use_dictionary=["why"],
        write_statistics=["key"],
    )  # fmt: skip
    return sink.getvalue()


class Writer:
    """Stores a plan, part by part.

    Args:
        storage: The output.
        run_id: Whose.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._folder = folder_of(run_id)
        self._digest = hashlib.sha256()
        self.parts = 0

    def add(self, data: bytes) -> None:
        """Store the next part."""
        self._storage.write(f"{self._folder}/{part_name(self.parts)}", data)
        self._digest.update(hashlib.sha256(data).digest())
        self.parts += 1

    def freeze(self, **counts: object) -> Frozen:
        """Say that this was all; see `Frozen` for the counts.

        Raises:
            Locked: Another driver has said so of fewer parts.
        """
        frozen = Frozen(parts=self.parts, digest=self._digest.hexdigest(), **counts)  # type: ignore[arg-type]
        path, record = f"{self._folder}/frozen.json", json.dumps(asdict(frozen), indent=1).encode()
        # Created, not written: who was taken over meanwhile must not make a run longer that another finishes as it is.
        if not self._storage.create(path, record) and self._storage.read(path) != record:
            raise Locked(f"another run took {self._storage.root} over while this one planned; wait for that one")
        return frozen


def freeze_so_far(storage: Storage, run_id: str) -> None:
    """Make a plan that was cut off while it was written a whole one, of the parts that are there.

    They are the images up to some key, each in one shard, so that all that was done counts; what comes behind that key
    is for the next run, which subtracts this one. Listing again and going on would mean to trust that nothing changed
    in between.
    """
    record = json.dumps(asdict(so_far(storage, run_id)), indent=1).encode()
    storage.create(f"{folder_of(run_id)}/frozen.json", record)


def so_far(storage: Storage, run_id: str) -> Frozen:
    """What the marker would say of what is stored of a plan. Reads every part."""
    digest = hashlib.sha256()
    parts = images = known = 0
    size = 1
    while storage.exists(path := f"{folder_of(run_id)}/{part_name(parts)}"):
        data = storage.read(path)
        digest.update(hashlib.sha256(data).digest())
        file = pq.ParquetFile(io.BytesIO(data))
        size = size if parts else file.metadata.row_group(0).num_rows
        images += file.metadata.num_rows
        known += pc.sum(file.read(columns=["size"])["size"]).as_py() or 0
        parts += 1
    return Frozen(parts, -(-images // size), images, size, digest.hexdigest(), images, known, whole=False)
