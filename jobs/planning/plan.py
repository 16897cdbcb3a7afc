"""Planning as a stream: list → sort → name masks → compare with the catalog → select → cut into shards.

Each stage holds one chunk, so memory does not grow with the number of images, and a run starts while its input is
still being listed.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.inputs.containers.formats import files_of
from maskfleet.jobs.job.sections import Selection
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.manifest import PART_SHARDS, SCHEMA
from maskfleet.jobs.planning.external_sort import in_key_order
from maskfleet.jobs.planning.naming import named
from maskfleet.jobs.planning.paging import Paging
from maskfleet.jobs.planning.reasons import reasons_of

LARGEST = 512
"""Images per shard of a large job with `shard_size = "auto"`."""

SMALLEST = 4
"""Fewest images per shard with `shard_size = "auto"`. Small shards give small jobs their first masks early."""


@dataclass(frozen=True)
class PlanPart:
    """Consecutive planned images: up to `PART_SHARDS` shards.

    Attributes:
        table: One row of `SCHEMA` per image, sorted by key.
        shard_size: Images per shard.
    """

    table: pa.Table
    shard_size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.table) // self.shard_size)


class Planning:
    """A plan being made. Iterate over it once to receive its parts.

    Args:
        listing: Tables listed by a `jobs.inputs.sources.Source`.
        in_order: Whether the listing is in key order.
        shard_size: Images per shard, or "auto".
        known: Catalog rows in key order, the newest of each key.
        fingerprint: Fingerprint of the job.
        source: Name of the input in the catalog. Only images of this input can be missing from the listing.
        selection: The part of the input to process.
        mean_bytes: Mean image size in bytes by URL of a container; may grow during the listing.
        refused: Returns why the output cannot hold a mask of some name, or None. By default it holds any name.
        overlooked: Returns which keys prove nothing by their absence from the listing.
        left_alone: Returns the number of files that the listing left alone so far, by the rule.
        paging: What becomes of files with pages.
        repeated: Called for each input listed a second time.

    Attributes:
        listed: Images listed so far.
        images: Images planned so far.
        bytes: Size of the planned images in bytes; estimated from `mean_bytes` where unknown.
        reasons: Images planned so far, by reason.
        gone: Known images missing from the input, counted so far.
        nameless: Images found so far that will fail, since the output cannot hold a mask under their names.
        complete: Whether the input was listed to its end.
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
        refused: Callable[[str], str | None] = lambda _: None,
        overlooked: Callable[[pa.ChunkedArray], pa.BooleanArray] | None = None,
        left_alone: Callable[[], dict[str, int]] = dict,
        paging: Paging | None = None,
        repeated: Callable[[], object] = lambda: None,
    ) -> None:
        self._listing, self._in_order, self._shard_size = listing, in_order, shard_size
        self._known, self._fingerprint, self._source = known, fingerprint, source
        self._selection = selection or Selection()
        self._mean_bytes = {} if mean_bytes is None else mean_bytes
        self._refused = refused
        self._overlooked, self._left_alone = overlooked, left_alone
        self._paging, self._repeated = paging or Paging(), repeated
        self.listed = self.images = self.bytes = self.gone = self.nameless = 0
        self.reasons: Counter[str] = Counter()
        self.complete = False
        self._gone_rows: list[pa.Table] = []

    @property
    def left_alone(self) -> dict[str, int]:
        """Files of the input that are no images of it, counted so far by the rule, the most frequent first."""
        return self._left_alone()

    @property
    def done(self) -> int:
        """Images listed so far that need no work or were not selected."""
        return self.listed - self.images

    def __iter__(self) -> Iterator[PlanPart]:
        """Yield the parts of the plan in key order."""
        rows = self._limited(sampled(self._selected(), self._selection.sample))
        size = self._shard_size if isinstance(self._shard_size, int) else LARGEST
        held: list[pa.Table] = []
        first = True
        for table in rows:
            held.append(table)
            while sum(each.num_rows for each in held) >= PART_SHARDS * size:
                joined = pa.concat_tables(held)
                yield self._counted(joined.slice(0, PART_SHARDS * size), size)
                held = [joined.slice(PART_SHARDS * size)]
                first = False
        rest = pa.concat_tables(held) if held else SCHEMA.empty_table()
        if rest.num_rows:
            # Independent of the number of workers: a shard's batches, and so its bytes, must not depend on it.
            if first and self._shard_size == "auto":
                size = max(SMALLEST, min(LARGEST, -(-rest.num_rows // PART_SHARDS)))
            yield self._counted(rest, size)

    def _counted(self, table: pa.Table, size: int) -> PlanPart:
        self.images += table.num_rows
        self.bytes += (pc.sum(table["size"]).as_py() or 0) + self._estimated_bytes(table)
        for item in table["why"].value_counts().to_pylist():
            self.reasons[item["values"]] += item["counts"]
        return PlanPart(table.combine_chunks(), size)

    def _estimated_bytes(self, table: pa.Table) -> int:
        """Return the estimated bytes of images whose own size is unknown before they are read."""
        if not self._mean_bytes:
            return 0
        urls = table["url"].filter(pc.is_null(table["size"]))
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
                self.complete = False
                return

    def _selected(self) -> Iterator[pa.Table]:
        """Yield the rows of images that need work and are selected by the job."""
        listing = self._paging.of(in_key_order(self._listing, sorted_already=self._in_order, repeated=self._repeated))
        for table, seen in named(listing, iter(self._known)):
            self.listed += table.num_rows
            self._note_gone(seen, table)
            if not table.num_rows:
                continue
            nameless = self._nameless(table)
            reasons = reasons_of(
                table, seen, fingerprint=self._fingerprint, selection=self._selection, nameless=nameless,
                pages_wanted=self._paging.mode != "refuse",
            )  # fmt: skip
            self.nameless += pc.sum(pc.and_(pc.is_valid(reasons), nameless)).as_py() or 0
            yield table.append_column("why", reasons).filter(pc.is_valid(reasons)).select(SCHEMA.names).cast(SCHEMA)
        self.complete = True

    def _nameless(self, table: pa.Table) -> pa.Array:
        """Tell which masks the output cannot hold under their names."""
        longest = int(pc.max(pc.binary_length(table["mask"])).as_py())
        # A name in one part is the hardest to hold for its length.
        if longest and not self._refused("x" * longest) and not pc.any(pc.equal(table["mask"], "")).as_py():
            return pa.array([False] * table.num_rows, pa.bool_())
        return pa.array([not name or bool(self._refused(name)) for name in table["mask"].to_pylist()], pa.bool_())

    def _note_gone(self, seen: pa.Table, listed: pa.Table) -> None:
        missing = pc.and_(pc.not_equal(seen["status"], catalog.GONE), pc.equal(seen["input"], self._source))
        missing = pc.and_(missing, pc.invert(pc.is_in(seen["key"], value_set=listed["key"])))
        rows = seen.filter(missing)
        if rows.num_rows and self._overlooked is not None:
            rows = rows.filter(pc.invert(self._overlooked(rows["key"])))
        if rows.num_rows:
            self.gone += rows.num_rows
            self._gone_rows.append(rows)

    def take_gone(self) -> pa.Table | None:
        """Return the catalog rows of images found missing since the last call, or None."""
        rows, self._gone_rows = self._gone_rows, []
        return pa.concat_tables(rows) if rows else None


def sampled(rows: Iterator[pa.Table], count: int | None) -> Iterator[pa.Table]:
    """Yield a pseudo-random sample, chosen by a hash of the key and therefore reproducible, sorted by key.

    Args:
        rows: Planned images.
        count: Number of images; None for all.
    """
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


def first_part(parts: Iterator[PlanPart]) -> PlanPart:
    """Return the next part, or an empty one at the end."""
    return next(parts, PlanPart(SCHEMA.empty_table(), 1))
