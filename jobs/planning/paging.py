"""Pages in a plan: a file with several images becomes a record for each of them.

Pages are counted here, between the sorted listing and the naming of masks, so that everything after it knows images
only: a page has a key, a row, a mask and a history of its own. The catalog knows the number of pages of every file that
was done before, by its etag, so a night counts new and changed files alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.images.formats import STACKS
from maskfleet.jobs.inputs.pages.names import IN_KEY, key_of, url_of
from maskfleet.jobs.inputs.record import CHUNK, LISTED, Record, in_turn, records, table_of
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.sorted_tables import SortedCursor

Mode = Literal["refuse", "first", "each"]

Count = Callable[[Sequence[Record]], Iterable[int | None]]
"""Counts the pages of files; None for one that cannot be counted."""

_AFTER_PAGES = "/page=:"
"""What follows the keys of all pages of a file."""


@dataclass(frozen=True)
class Paging:
    """What a job does with the pages of its files.

    Attributes:
        mode: As in the job.
        known: Catalog rows in key order, the newest of each key. Read only where files have to be counted.
        count: See `Count`.
        uncounted: Receives the key of each file that cannot be counted: what it holds is unknown tonight.
    """

    mode: Mode = "refuse"
    known: Iterable[pa.Table] = ()
    count: Count = lambda _: ()
    uncounted: Callable[[str], None] = lambda _: None

    def of(self, listing: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield a sorted listing with pages in the place of files."""
        if self.mode == "first":
            return map(_first_pages, listing)
        return self._each(listing) if self.mode == "each" else listing

    def _each(self, listing: Iterator[pa.Table]) -> Iterator[pa.Table]:
        counts: dict[str, int] = {}
        known = _KnownCounts(iter(self.known))
        for item in in_turn((table, self._stacks(table, known, counts)) for table in listing):
            if isinstance(item, Record):
                count = counts.pop(item.key)
                for start in range(1, count + 1, CHUNK):
                    yield table_of(_pages(item, count, range(start, min(start + CHUNK, count + 1))))
            else:
                yield item

    def _stacks(self, table: pa.Table, known: "_KnownCounts", counts: dict[str, int]) -> list[int]:
        """Return the numbers of the rows that are stacks; note the number of their pages by key."""
        may_be = pc.indices_nonzero(_have_pages(table["key"]))
        if not len(may_be):
            return []
        files = list(records(table.take(may_be)))
        found = known.of(files, table["key"][-1].as_py())
        new = [file for file in files if file.key not in found]
        for file, count in zip(new, self.count(new) if new else (), strict=True):
            if count is None:
                self.uncounted(file.key)
            found[file.key] = count or 1
        counts.update((key, count) for key, count in found.items() if count > 1)
        return [place for place, file in zip(may_be.to_pylist(), files, strict=True) if found[file.key] > 1]


class _KnownCounts:
    """Numbers of pages known to the catalog, asked for in key order.

    Args:
        rows: Catalog rows in key order.
    """

    def __init__(self, rows: Iterator[pa.Table]) -> None:
        self._cursor = SortedCursor(rows)
        self._left = catalog.SCHEMA.empty_table()

    def of(self, files: Sequence[Record], last: str) -> dict[str, int]:
        """Return the number of pages of those files that are known in their version, by key.

        A file done as a whole has one. A first page done alone says nothing of the others.

        Args:
            files: Files of a table, in key order.
            last: Last key of the table.
        """
        rows = pa.concat_tables([self._left, self._cursor.up_to(f"{last}{_AFTER_PAGES}", catalog.SCHEMA)])
        self._left = rows.filter(pc.greater(rows["key"], last))
        whole = pc.and_(pc.is_null(rows["pages"]), pc.equal(rows["status"], "ok"))
        page = pc.and_(pc.greater(rows["pages"], 1), pc.not_equal(rows["status"], catalog.GONE))
        rows = rows.filter(pc.fill_null(pc.or_kleene(whole, page), False))
        keys = pc.if_else(pc.is_null(rows["pages"]), rows["key"], pc.replace_substring_regex(rows["key"], IN_KEY, ""))
        counts = pc.fill_null(rows["pages"], 1)
        known = dict(zip(keys.to_pylist(), zip(rows["etag"].to_pylist(), counts.to_pylist(), strict=True), strict=True))
        return {file.key: known[file.key][1] for file in files if known.get(file.key, ("", 0))[0] == file.etag}


def _pages(file: Record, count: int, numbers: Iterable[int]) -> list[Record]:
    """Return some of the `count` pages of a file. Each has an equal share of its size."""
    size = None if file.size is None else file.size // count
    return [
        Record(key_of(file.key, number, count), url_of(file.url, number, count), size, file.etag, file.modified)
        for number in numbers
    ]


def _have_pages(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    endings = "|".join(map(re.escape, STACKS))
    return pc.match_substring_regex(keys, rf"(?i)[^/](?:{endings})$")


def _first_pages(table: pa.Table) -> pa.Table:
    may_be = _have_pages(table["key"]).combine_chunks()
    urls = [
        url_of(url, 1) if has else url for url, has in zip(table["url"].to_pylist(), may_be.to_pylist(), strict=True)
    ]
    field = LISTED.field("url")
    return table.set_column(LISTED.get_field_index("url"), field, pa.array(urls, field.type))
