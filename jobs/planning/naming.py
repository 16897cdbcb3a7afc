"""Names the masks of a sorted listing as a stream beside the catalog, so that names are distinct over all runs.

A name depends on few neighbours in key order (`jobs.masks.names.settled`), listed or not: the catalog also holds images
that are gone, and those of other inputs. Memory holds about two tables of each stream.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.inputs.record import CHUNK, LISTED, rows_up_to
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.masks.names import Known, mask_names, settled

NAMED = LISTED.append(pa.field("mask", pa.string()))
"""Schema of listed images with the names of their masks."""


def named(listing: Iterator[pa.Table], known: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield listed images with the names of their masks, each time with the catalog's rows of the same range of keys.

    Args:
        listing: Tables of `LISTED`, sorted by key.
        known: The catalog's rows, sorted by key, the newest of each key.

    Yields:
        Tables of `NAMED` and of `catalog.SCHEMA`. One of the two may be empty.
    """
    listed, seen = _Side(listing, LISTED), _Side(known, catalog.SCHEMA)
    while not (listed.ended and seen.ended):
        # No further row of either side has a key up to the smaller of their last keys.
        behind = listed if seen.ended or (not listed.ended and listed.last <= seen.last) else seen
        behind.pull()
        last = min((side.last for side in (listed, seen) if not side.ended), default=None)
        if last is None:
            break
        one, other = listed.up_to(last), seen.up_to(last)
        if max(one, other) < CHUNK:
            continue
        keys = _all_keys(listed.rows["key"].slice(0, one), seen.rows["key"].slice(0, other))
        if cut := settled(keys):
            first = keys[cut].as_py()
            yield _named(listed.take_before(first), seen.take_before(first))
    if listed.rows.num_rows or seen.rows.num_rows:
        yield _named(listed.rows, seen.rows)


class _Side:
    """The rows of a sorted stream that were read and not yet yielded."""

    def __init__(self, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        self._tables = tables
        self.rows = schema.empty_table()
        self.last = ""
        self.ended = False

    def pull(self) -> None:
        table = next(self._tables, None)
        if table is None:
            self.ended = True
        elif table.num_rows:
            self.rows = pa.concat_tables([self.rows, table]) if self.rows.num_rows else table
            self.last = table["key"][-1].as_py()

    def up_to(self, key: str) -> int:
        return rows_up_to(self.rows, key) if self.ended or self.last > key else self.rows.num_rows

    def take_before(self, key: str) -> pa.Table:
        count = int(pc.sum(pc.less(self.rows["key"], key)).as_py() or 0)
        taken, self.rows = self.rows.slice(0, count), self.rows.slice(count)
        return taken


def _all_keys(listed: pa.ChunkedArray, seen: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the distinct keys of both, sorted."""
    more = seen.filter(pc.invert(pc.is_in(seen, value_set=listed)))
    if not len(more):
        return listed
    keys = pa.chunked_array([*listed.chunks, *more.chunks], pa.string())
    return pa.chunked_array([keys.take(pc.array_sort_indices(keys)).combine_chunks()])


def _named(listed: pa.Table, seen: pa.Table) -> tuple[pa.Table, pa.Table]:
    listed = listed.combine_chunks()
    if not seen.num_rows:
        return listed.append_column("mask", mask_names(listed["key"])), seen
    rows = pc.index_in(listed["key"], value_set=seen["key"])
    others = pc.invert(pc.is_in(seen["key"], value_set=listed["key"]))
    known = Known(
        recorded=seen["mask"].take(rows),
        taken=seen["mask"].filter(others).drop_null(),
        unrecorded=seen["key"].filter(pc.is_null(seen["mask"])),
    )
    return listed.append_column("mask", mask_names(listed["key"], known)), seen
