"""The frozen plan: which image is in which shard, and what its mask is called. Written once per run.

The file is Parquet with one row group per shard, so that a worker reads its own records alone and
the driver holds none.
"""

import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import JobError
from jobs.sources import Record

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mask", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)
"""One row per image, sorted by key. `mask` is the mask's name; `shard` the number of its shard and row group."""

_LISTED = SCHEMA.remove(5).remove(4)


class Shard(NamedTuple):
    """A unit of work: consecutive rows of one row group of the manifest.

    Attributes:
        id: The row group's number, five digits or more; of a part of a shard that was cut in two,
            followed by `.0` or `.1` for each cut.
        start: First row within the row group.
        stop: Row after the last.
    """

    id: str
    start: int
    stop: int

    @property
    def group(self) -> int:
        """The row group's number."""
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


class Manifest:
    """A written plan.

    Args:
        data: The Parquet file.
    """

    def __init__(self, data: bytes) -> None:
        self._file = pq.ParquetFile(io.BytesIO(data))

    @property
    def images(self) -> int:
        """Number of records."""
        return int(self._file.metadata.num_rows)

    def shards(self) -> Iterator[Shard]:
        """Every shard, uncut, in order."""
        for number in range(self._file.num_row_groups):
            yield Shard(f"{number:05}", 0, self._file.metadata.row_group(number).num_rows)

    def records(self, shard: Shard) -> list[tuple[Record, str]]:
        """A shard's records, each with its mask's name, in the order that everything about the shard follows."""
        table = self._file.read_row_group(shard.group).slice(shard.start, len(shard))
        columns = [table[name].to_pylist() for name in ("key", "url", "size", "etag", "mask")]
        return [(Record(*row[:4]), row[4]) for row in zip(*columns, strict=True)]

    def sample(self, count: int) -> list[Record]:
        """At most so many records, from shards all over the plan."""
        groups = self._file.num_row_groups
        chosen = [groups * number // min(count, groups) for number in range(min(count, groups))]
        each = -(-count // max(1, len(chosen)))
        rows = (self._file.metadata.row_group(number).num_rows for number in chosen)
        shards = [Shard(f"{number:05}", 0, min(each, size)) for number, size in zip(chosen, rows, strict=True)]
        return [record for shard in shards for record, _ in self.records(shard)][:count]

    def keys(self) -> Iterator[tuple[str, list[str]]]:
        """Shard numbers as in ids, with the shard's keys."""
        for number in range(self._file.num_row_groups):
            yield f"{number:05}", self._file.read_row_group(number, columns=["key"])["key"].to_pylist()


class Plan(NamedTuple):
    """A plan before it is written: a table of `SCHEMA`, and what was seen on the way."""

    table: pa.Table
    listed: int
    """Images found, those already done included."""

    @classmethod
    def of(cls, records: Iterable[Record], *, shard_size: int | str, done: pa.Table | None = None) -> Self:
        """Plan records.

        Args:
            records: From a `Source`.
            shard_size: Images per shard, or "auto".
            done: Key and etag of images that need no work.

        Raises:
            JobError: Two images would need one mask name.
        """
        table = _listed(records)
        listed = table.num_rows
        # Names depend on all that is there, not on what is new tonight, so that they are the same every night.
        table = table.append_column("mask", mask_names(table["key"]))
        if done is not None and done.num_rows:
            table = table.join(done.select(["key", "etag"]), ["key", "etag"], join_type="left anti")
            table = table.sort_by("key")
        size = _shard_size(shard_size, table.num_rows)
        shard = pa.array([row // size for row in range(table.num_rows)], pa.int32())
        return cls(table.append_column(SCHEMA.field("shard"), shard).cast(SCHEMA), listed)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return int(self.table["shard"][-1].as_py()) + 1 if self.table.num_rows else 0

    @property
    def size(self) -> int:
        """Bytes of the images, as far as their sizes are known."""
        return int(pc.sum(self.table["size"]).as_py() or 0)

    @property
    def manifest(self) -> Manifest:
        """As it will be read."""
        return Manifest(self.parquet())

    def parquet(self) -> bytes:
        """The manifest's file."""
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
            size = int(pc.sum(pc.equal(self.table["shard"], 0)).as_py() or 1)
            for start in range(0, self.table.num_rows, size):
                writer.write_table(self.table.slice(start, size), row_group_size=size)
        return sink.getvalue()


def _listed(records: Iterable[Record]) -> pa.Table:
    # Column by column in chunks: a million tuples in a list would be most of a gigabyte.
    rows = iter(records)
    chunks = []
    while chunk := list(islice(rows, 8192)):
        columns = [
            pa.array(column, field.type) for column, field in zip(zip(*chunk, strict=True), _LISTED, strict=True)
        ]
        chunks.append(pa.RecordBatch.from_arrays(columns, schema=_LISTED))
    table = pa.Table.from_batches(chunks, _LISTED).sort_by("key")
    counts = table["key"].value_counts()
    if len(counts) != table.num_rows:
        twice = next(item["values"].as_py() for item in counts if item["counts"].as_py() > 1)
        raise JobError(
            f"two inputs have the key {twice!r}; name each once in the list, or give them folders of their own"
        )
    return table


def _shard_size(wanted: int | str, images: int) -> int:
    # Never by the number of workers: a shard's batches, and so its bytes, must not depend on it.
    return wanted if isinstance(wanted, int) else max(16, min(512, -(-images // 32)))


def mask_names(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of each input's mask.

    It is the key with its ending replaced by `.png`. Where that name would be taken twice, each of
    the inputs concerned keeps its ending and gets `.png` behind it: `a.jpg` and `a.tif` become
    `a.jpg.png` and `a.tif.png`. Parts that would lead out of a folder, and control characters, are
    percent-encoded.

    Args:
        keys: Distinct keys, as text.

    Returns:
        As many distinct names.

    Raises:
        JobError: Keys that differ only in characters that must be encoded.
    """
    safe = _safe(keys)
    full = pc.binary_join_element_wise(safe, ".png", "")
    short = pc.binary_join_element_wise(pc.replace_substring_regex(safe, r"\.[^./]*$", ""), ".png", "")
    counts = short.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    keep = pc.is_in(short, value_set=shared)
    while True:
        names = pc.if_else(keep, full, short)
        # A name with its ending kept may be another input's short name; then that one keeps its ending too.
        clash = pc.and_(pc.invert(keep), pc.is_in(short, value_set=names.filter(keep)))
        if not pc.any(clash).as_py():
            break
        keep = pc.or_(keep, clash)
    counts = names.value_counts()
    if len(counts) != len(names):
        twice = next(item["values"].as_py() for item in counts if item["counts"].as_py() > 1)
        raise JobError(f"two inputs would share the mask {twice!r}; rename one of them")
    return names


_UNSAFE = r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f\\]"


def _safe(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    unsafe = pc.match_substring_regex(keys, _UNSAFE)
    if not pc.any(unsafe).as_py():
        return keys
    encoded = [_encoded(key) if bad else key for key, bad in zip(keys.to_pylist(), unsafe.to_pylist(), strict=True)]
    return pa.chunked_array([pa.array(encoded, pa.string())])


def _encoded(key: str) -> str:
    parts = [part if part not in ("", ".", "..") else part.replace(".", "%2E") or "%" for part in key.split("/")]
    return re.sub(r"[\x00-\x1f\x7f\\]", lambda found: f"%{ord(found[0]):02X}", "/".join(parts))
