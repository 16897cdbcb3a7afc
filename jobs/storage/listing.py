"""A bucket's listing by several requests at once, in key order all the same.

A bucket gives a thousand keys per request, one request after the other: a million keys are a thousand times the
latency. But a listing may begin behind any key. So the folders that one delimited request shows are the places where
the key range is cut, and the ranges are listed side by side. Each is some pages ahead of the reader and no more.
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
"""Pages of a listing with these arguments of S3's ListObjectsV2; what they have in common is set already."""

AT_ONCE = 8
"""Ranges that are listed side by side."""

_RANGES = 64
"""Ranges in all: each reads up to a page too much at its end, which must not be most of what is read."""

_PAGES_EACH = 4
"""Pages that are read before one more range is begun."""

_PAGES_AHEAD = 64
"""Of each range. What the others read while the reader is at one must find room, or they would wait, and requests would
go one after the other again. A page is some 130 KB."""

_DEPTH = 4
"""Levels at which a folder that is alone is looked into for others to cut at."""


def ranged_pages(pages: Pages, folder: str) -> Iterator[Page]:
    """All pages of objects below a folder, in key order.

    Args:
        pages: Lists.
        folder: Prefix that all keys share, '' or ending in '/'.
    """
    cuts, first = _cuts(pages, folder)
    if first is not None:
        yield first
        return
    if len(cuts) < 2:
        yield from pages({"Prefix": folder})
        return
    # Range i is what comes behind cut i up to cut i + 1; the first begins at the start, the last ends at the end.
    bounds = [None, *cuts[1 :: -(-len(cuts) // _RANGES)], None]
    stopping = Event()
    with ThreadPoolExecutor(AT_ONCE, "list") as pool:
        try:
            ranges = list(pairwise(bounds))
            waiting: list[Queue[Page | Exception | None]] = []
            read = 0
            for number in range(len(ranges)):
                while True:
                    # Few at first: the first pages are waited for, and parsing the others would hold them back.
                    while len(waiting) < min(number + min(AT_ONCE, 1 + read // _PAGES_EACH), len(ranges)):
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
    """Folders to cut at; and the whole listing where one page holds it."""
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
    """List the keys behind `start` and before `end` into a queue.

    Both are folders, whose names end in '/': as keys they would be the empty objects that stand for folders in some
    tools, which are no images.
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
    except Exception as error:  # the reader's to raise
        put(error)
    put(None)
