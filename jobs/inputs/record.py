"""`Record`: one input image, and tables of records. Knows nothing of where they come from."""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 8192
"""Rows per table, where tables are built row by row."""

LISTED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("modified", pa.float64()),
    ]
)
"""Schema of a table of records; the fields are those of `Record`."""


class Record(NamedTuple):
    """One input image.

    Attributes:
        key: Name within the job.
        url: Absolute path or URL. An image inside a container has a fragment (`containers.member_url`).
        size: Size in bytes, or None if unknown at planning time.
        etag: ETag as in `jobs.storage.contract.Entry`, or None if unknown at planning time.
        modified: Modification time in seconds since 1970, or None if unknown.
    """

    key: str
    url: str
    size: int | None
    etag: str | None
    modified: float | None = None


def records(table: pa.Table) -> Iterator[Record]:
    """Yield the rows of a table of `LISTED` as records."""
    return map(Record, *(column.to_pylist() for column in table.columns))


def table_of(rows: list[Record]) -> pa.Table:
    """Return a non-empty list of records as a table of `LISTED`."""
    columns = zip(zip(*rows, strict=True), LISTED, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in columns], schema=LISTED)


def tables(found: Iterable[Record]) -> Iterator[pa.Table]:
    """Yield records as tables of `LISTED`, `CHUNK` rows each."""
    rows = iter(found)
    while chunk := list(islice(rows, CHUNK)):
        yield table_of(chunk)


def rows_up_to(table: pa.Table, key: str) -> int:
    """Return the number of leading rows with keys up to and including `key`, in a table sorted by key."""
    return int(pc.sum(pc.less_equal(table["key"], key)).as_py() or 0)


def in_turn(files: Iterable[tuple[pa.Table, Iterable[int]]]) -> Iterator[pa.Table | Record]:
    """Yield files in the order of their images, with bounded memory.

    Args:
        files: Tables of `LISTED` in key order, each with the numbers of its rows that stand for several images.

    Yields:
        The other rows as tables, and each of these rows as a record, in its turn.
    """
    held: list[tuple[str, Record]] = []
    for table, several in files:
        start = 0
        for place in several:
            yield from _with_held(held, table.slice(start, place - start))
            (record,) = records(table.slice(place, 1))
            while held and held[0][0] <= record.key:
                yield heapq.heappop(held)[1]
            heapq.heappush(held, (f"{record.key}/", record))
            start = place + 1
        yield from _with_held(held, table.slice(start))
    while held:
        yield heapq.heappop(held)[1]


def _with_held(held: list[tuple[str, Record]], images: pa.Table) -> Iterator[pa.Table | Record]:
    """Yield images, and between them the held containers in their turn."""
    while held and images.num_rows and held[0][0] <= images["key"][-1].as_py():
        before = rows_up_to(images, held[0][0])
        yield images.slice(0, before)
        yield heapq.heappop(held)[1]
        images = images.slice(before)
    if images.num_rows:
        yield images
