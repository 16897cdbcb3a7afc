"""Lists a bucket with concurrent requests, in key order.

S3 returns a thousand keys per request, each continuing the last: a million keys cost a thousand times the latency. But
a listing can start after any key. So one delimited request finds folders, the key range is cut at them, and the ranges
are listed concurrently. Each range stays a bounded number of pages ahead of the reader.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import Full, Queue
from threading import Event
from typing import Any

import pyarrow.compute as pc

from maskfleet.jobs.storage.list_objects_xml import Page

Pages = Callable[[dict[str, Any]], Iterator[Page]]
"""Yields the pages of a listing, given arguments of S3's ListObjectsV2. Bucket and client are bound already."""

CONCURRENCY = 8
"""Ranges listed concurrently."""

_RANGES = 64
"""Ranges in total. Each reads up to one page too many at its end, which must stay a small share."""

_PAGES_PER_RANGE = 4
"""Pages read before one more range is started."""

_PAGES_AHEAD = 64
"""Pages buffered per range, about 130 KB each. With a full buffer a range would wait for the reader, and requests would
become sequential again."""

_DEPTH = 4
"""Levels of single folders that are descended to find more than one folder."""


def ranged_pages(pages: Pages, folder: str) -> Iterator[Page]:
    """Yield all pages of objects below a folder, in key order.

    Args:
        pages: Lists the bucket.
        folder: Common prefix of all keys, '' or ending in '/'.

    Raises:
        StorageError: A request failed.
    """
    cuts, first = _cuts(pages, folder)
    if first is not None:
        yield first
        return
    if len(cuts) < 2:
        yield from pages({"Prefix": folder})
        return
    # Range i reaches from bound i to bound i + 1. None is the start or the end of the listing.
    bounds = [None, *cuts[1 :: -(-len(cuts) // _RANGES)], None]
    stopping = Event()
    with ThreadPoolExecutor(CONCURRENCY, "list") as pool:
        try:
            ranges = list(pairwise(bounds))
            waiting: list[Queue[Page | Exception | None]] = []
            read = 0
            for number in range(len(ranges)):
                while True:
                    # Few ranges at first: parsing further pages would delay the first ones.
                    while len(waiting) < min(number + min(CONCURRENCY, 1 + read // _PAGES_PER_RANGE), len(ranges)):
                        waiting.append(Queue(_PAGES_AHEAD))
                        pool.submit(_list, pages, folder, *ranges[len(waiting) - 1], waiting[-1], stopping)
                    page = waiting[number].get()
                    if isinstance(page, Exception):
                        raise page
                    if page is None:
                        break
                    read += 1
                    yield page
        finally:
            stopping.set()


def _cuts(pages: Pages, folder: str) -> tuple[list[str], Page | None]:
    """Return folders to cut at, and the whole listing if it fits one page."""
    for _ in range(_DEPTH):
        page = next(pages({"Prefix": folder, "Delimiter": "/"}))
        if not page.folders and page.more is None:
            return [], page
        if len(page.folders) != 1 or page.objects.num_rows or page.more is not None:
            return page.folders, None
        folder = page.folders[0]
    return [], None


def _list(
    pages: Pages, folder: str, start: str | None, end: str | None, out: "Queue[Page | Exception | None]",
    stopping: Event,
) -> None:  # fmt: skip
    """List the keys after `start` and before `end` into a queue, ended by None.

    Both bounds are folders, ending in '/'. An object of such a key is an empty one that a tool created for the folder,
    never an image.
    """

    def put(item: Page | Exception | None) -> None:
        while not stopping.is_set():
            try:
                out.put(item, timeout=0.2)
            except Full:
                continue
            return

    try:
        for page in pages({"Prefix": folder, **({"StartAfter": start} if start else {})}):
            keys = page.objects["path"]
            beyond = end is not None and len(keys) > 0 and keys[-1].as_py() >= end
            objects = page.objects.filter(pc.less(keys, end)) if beyond else page.objects
            put(page._replace(objects=objects))
            if stopping.is_set() or beyond:
                break
    except Exception as error:  # raised again by the reader
        put(error)
    put(None)
