"""The manifest: the stored plan of a run, with the shard and the mask name of every image.

    runs/<run_id>/manifest/part-00000.parquet   32 shards per part, one row group per shard; written during the listing
    runs/<run_id>/manifest/frozen.json          written last: number of parts, shards and images; the plan is complete

A worker reads the row group of its shard, so no process holds all records. Shards of stored parts may start before the
plan is complete.
"""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Damaged, Locked, NotFound
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
"""Columns of the plan: one row per image, sorted by key.

`mask` is the name of the mask; "" if every name belongs to another image. `why` is the reason for planning the image:
`new`, `changed`, `stale`, `failed` or `redo`.
"""

PART_SHARDS = 32
"""Shards per part; the last part may have fewer."""

_RECORD = ("key", "url", "size", "etag")
_PARTS_HELD = 3


class Shard(NamedTuple):
    """The unit of work: consecutive rows of one row group of the manifest.

    Attributes:
        id: Number of the shard within the run, with at least five digits. Each split appends `.0` or `.1`.
        start: First row within the row group.
        stop: Row after the last one.
    """

    id: str
    start: int
    stop: int

    @property
    def group(self) -> int:
        """Number of the shard, ignoring splits."""
        return int(self.id.partition(".")[0])

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> tuple["Shard", "Shard"]:
        """Split the shard in two.

        Raises:
            ValueError: The shard has only one record.
        """
        if len(self) < 2:
            raise ValueError(f"shard {self.id} has only one record and cannot be split")
        middle = (self.start + self.stop) // 2
        return Shard(f"{self.id}.0", self.start, middle), Shard(f"{self.id}.1", middle, self.stop)


@dataclass(frozen=True)
class Frozen:
    """The summary of a complete plan, stored in `frozen.json` under these names.

    Attributes:
        parts: Number of parts.
        shards: Number of shards.
        images: Number of planned images.
        shard_size: Images per shard; the last shard may have fewer.
        digest: SHA-256 over the SHA-256 digests of the parts, hexadecimal.
        listed: Number of images in the input, including those without work to do.
        bytes: Total size of the planned images in bytes, as far as known.
        whole: Whether the input was listed to its end. If planning was interrupted or limited, the next run plans the
            images after the last planned key.
        why: Number of planned images by reason.
        gone: Number of images in the catalog no longer in the input.
        left_alone: Number of files in the input that are no images of it, by the rule (`jobs.inputs.selector`). Unknown
            and empty if planning was interrupted.
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
    left_alone: dict[str, int] = field(default_factory=dict)


class Manifest:
    """A stored plan.

    Args:
        read: Returns the bytes of a part, given its number.
        frozen: Summary of the plan; for an incomplete plan, a function returning the summary so far.
    """

    def __init__(self, read: Callable[[int], bytes], frozen: Frozen | Callable[[], Frozen]) -> None:
        self._read = read
        self._frozen = frozen
        self._held: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()

    @classmethod
    def stored(cls, storage: Storage, run_id: str) -> Self:
        """Return the plan of a run, or the stored beginning of it.

        Raises:
            NotFound: Nothing is stored.
            Damaged: `frozen.json` cannot be read.
        """
        frozen: Frozen | Callable[[], Frozen]
        path = f"{folder_of(run_id)}/frozen.json"
        try:
            frozen = Frozen(**json.loads(storage.read(path)))
        except (ValueError, TypeError) as error:
            raise Damaged(f"{storage.url(path)} is damaged; {_remedy(storage, run_id)}") from error
        except NotFound:
            if not storage.exists(f"{folder_of(run_id)}/{part_name(0)}"):
                raise
            frozen = lambda: so_far(storage, run_id)  # noqa: E731  (rarely needed, and it reads every part)
        return cls(lambda part: _stored_part(storage, run_id, part), frozen)

    @property
    def is_frozen(self) -> bool:
        """Whether the plan is complete."""
        return isinstance(self._frozen, Frozen)

    @property
    def frozen(self) -> Frozen:
        """Summary of the plan, or of the part stored so far."""
        return self._frozen if isinstance(self._frozen, Frozen) else self._frozen()

    @property
    def images(self) -> int:
        """Number of planned images."""
        return self.frozen.images

    def shards(self) -> Iterator[Shard]:
        """Yield every shard in order, ignoring splits. Makes no request for a complete plan."""
        frozen = self.frozen
        return shards_of(0, frozen.images, frozen.shard_size)

    def records(self, shard: Shard) -> list[tuple[Record, str]]:
        """Return the records of a shard, each with the name of its mask. Rows, masks and batches keep this order."""
        table = self._rows(shard, (*_RECORD, "mask"))
        columns = [column.to_pylist() for column in table.columns]
        return [(Record(*row[:-1]), row[-1]) for row in zip(*columns, strict=True)]

    def masks(self, shard: Shard) -> pa.ChunkedArray:
        """Return the names of a shard's masks, in the order of its records."""
        return self._rows(shard, ("mask",))["mask"]

    def _rows(self, shard: Shard, columns: Sequence[str]) -> pa.Table:
        part, group = divmod(shard.group, PART_SHARDS)
        with self._lock, _sound(part):  # two shards run at once, and a Parquet reader is not thread-safe
            table = self._part(part).read_row_group(group, columns=list(columns)).slice(shard.start, len(shard))
            if table.num_rows != len(shard):
                raise IndexError
        return table.select(columns)

    def sample(self, count: int) -> list[Record]:
        """Return up to `count` records from shards spread over the first part, which is stored first."""
        if isinstance(self._frozen, Frozen) and not self._frozen.images:
            return []
        with _sound(0):
            metadata = self._part(0).metadata
        groups = metadata.num_row_groups
        chosen = [groups * number // min(count, groups) for number in range(min(count, groups))]
        each = -(-count // max(1, len(chosen)))
        rows = (metadata.row_group(number).num_rows for number in chosen)
        shards = [Shard(f"{number:05}", 0, min(each, size)) for number, size in zip(chosen, rows, strict=True)]
        return [record for shard in shards for record, _ in self.records(shard)][:count]

    def keys_of(self, shard_id: str) -> list[str]:
        """Return the keys of a shard, or of a part of a split shard."""
        number, *halves = shard_id.split(".")
        shard = next(shard for shard in self.shards() if shard.id == number)
        for half in halves:
            shard = shard.halves()[int(half)]
        return [record.key for record, _ in self.records(shard)]

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the row of an image with its `shard`, or None. Finds the part by binary search over the first keys."""
        low, high = 0, self.frozen.parts
        if not high:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            with _sound(middle):
                first = self._part(middle).read_row_group(0, columns=["key"])["key"][0].as_py()
            low, high = (middle, high) if first <= key else (low, middle)
        with _sound(low):
            for group in range(self._part(low).metadata.num_row_groups):
                rows = self._part(low).read_row_group(group)
                place = rows["key"].index(key).as_py()
                if place >= 0:
                    row: dict[str, Any] = rows.slice(place, 1).to_pylist()[0]
                    return row | {"shard": f"{low * PART_SHARDS + group:05}"}
        return None

    def check(self) -> None:
        """Read every part.

        Raises:
            Damaged: A part is missing or unreadable.
        """
        for number in range(self.frozen.parts):
            with _sound(number):
                self._part(number)

    def _part(self, number: int) -> pq.ParquetFile:
        # Shards start in order, so a few open parts serve nearly all reads.
        if number not in self._held:
            while len(self._held) >= _PARTS_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[number] = pq.ParquetFile(io.BytesIO(self._read(number)))
        return self._held[number]


def _stored_part(storage: Storage, run_id: str, number: int) -> bytes:
    path = f"{folder_of(run_id)}/{part_name(number)}"
    try:
        data = storage.read(path)
        pq.read_metadata(io.BytesIO(data))
    except (NotFound, pa.ArrowException, OSError) as error:
        state = "missing" if isinstance(error, NotFound) else "damaged"
        raise Damaged(f"{storage.url(path)} is {state}; {_remedy(storage, run_id)}") from error
    return data


def _remedy(storage: Storage, run_id: str) -> str:
    return f"restore it, or make the run's images again: maskfleet redo {storage.root} --run {run_id}"


@contextmanager
def _sound(part: int) -> Iterator[None]:
    """Turn the errors of reading rows of a part into `Damaged`."""
    try:
        yield
    except (pa.ArrowException, OSError, IndexError) as error:
        raise Damaged(f"{part_name(part)} of the plan is damaged; restore it") from error


def folder_of(run_id: str) -> str:
    """Folder of a run's plan."""
    return f"runs/{run_id}/manifest"


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05}.parquet"


def shards_of(first: int, images: int, size: int) -> Iterator[Shard]:
    """Yield the shards of consecutive images.

    Args:
        first: Number of the first shard.
        images: Number of images.
        size: Images per shard.
    """
    for number, start in enumerate(range(0, images, size)):
        yield Shard(f"{first + number:05}", 0, min(size, images - start))


def part_of(table: pa.Table, size: int) -> bytes:
    """Return the Parquet file of a part.

    Args:
        table: Rows in `SCHEMA`, at most `PART_SHARDS` × `size`.
        size: Images per shard.
    """
    sink = io.BytesIO()
    # Dictionaries and statistics of columns with distinct values take more than half of the writing time.
    pq.write_table(
        table, sink, compression="zstd", row_group_size=size, store_schema=False, use_dictionary=["why"],
        write_statistics=["key"],
    )  # fmt: skip
    return sink.getvalue()


class ManifestWriter:
    """Stores a plan part by part.

    Args:
        storage: Output storage, fenced.
        run_id: The run.

    Attributes:
        parts: Number of parts stored so far.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._folder = folder_of(run_id)
        self._digest = hashlib.sha256()
        self.parts = 0

    def add(self, data: bytes) -> None:
        """Store the next part; see `part_of`."""
        self._storage.write(f"{self._folder}/{part_name(self.parts)}", data)
        self._digest.update(hashlib.sha256(data).digest())
        self.parts += 1

    def freeze(self, **counts: object) -> Frozen:
        """Mark the plan as complete.

        Args:
            **counts: The other fields of `Frozen`.

        Raises:
            Locked: Another driver has taken over and frozen a shorter plan.
        """
        frozen = Frozen(parts=self.parts, digest=self._digest.hexdigest(), **counts)  # type: ignore[arg-type]
        path, record = f"{self._folder}/frozen.json", json.dumps(asdict(frozen), indent=1).encode()
        # Created, not written: a superseded driver must not extend a plan already being finished by its successor.
        if not self._storage.create(path, record) and self._storage.read(path) != record:
            raise Locked(
                f"another run took over {self._storage.root} while this one was planning; wait for that run to end"
            )
        return frozen


def is_planned(storage: Storage, run_id: str) -> bool:
    """Return whether a run has a plan: its first part, or the end of an empty one.

    Tombstones may be stored before the first part, so other files in the folder prove nothing.
    """
    names = storage.names(folder_of(run_id))
    return part_name(0) in names or "frozen.json" in names


def freeze_so_far(storage: Storage, run_id: str) -> None:
    """Complete an interrupted plan with the parts stored so far.

    They cover all images up to some key, each in one shard, so no work is lost. The next run plans the images after
    that key. The interrupted listing is not continued, since the input may have changed in between.
    """
    record = json.dumps(asdict(so_far(storage, run_id)), indent=1).encode()
    storage.create(f"{folder_of(run_id)}/frozen.json", record)


def so_far(storage: Storage, run_id: str) -> Frozen:
    """Return the summary of the parts stored so far. Reads every part."""
    digest = hashlib.sha256()
    parts = images = known = 0
    size = 1
    while storage.exists(f"{folder_of(run_id)}/{part_name(parts)}"):
        data = _stored_part(storage, run_id, parts)
        digest.update(hashlib.sha256(data).digest())
        with _sound(parts):
            file = pq.ParquetFile(io.BytesIO(data))
            size = size if parts else file.metadata.row_group(0).num_rows
            images += file.metadata.num_rows
            known += pc.sum(file.read(columns=["size"])["size"]).as_py() or 0
        parts += 1
    return Frozen(parts, -(-images // size), images, size, digest.hexdigest(), images, known, whole=False)
