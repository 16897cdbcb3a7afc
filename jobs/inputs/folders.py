"""Folders and globs as inputs.

Keys are paths relative to the folder: for a glob, the last folder before the first wildcard.
"""

import heapq
import os
import re
from collections.abc import Iterator

import pyarrow as pa
from fsspec.utils import glob_translate

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.inputs.containers.formats import endings
from maskfleet.jobs.inputs.lists import LISTS
from maskfleet.jobs.inputs.record import Record, records, rows_up_to
from maskfleet.jobs.inputs.selector import Selector, containers_in

_MARK = re.compile(r"[*?\[]")


class Folders:
    """Folders and prefixes: every image and container below."""

    searches = True

    def claims(self, location: str, selector: Selector) -> bool:
        return True

    def in_order(self, location: str) -> bool:
        return True

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        selector.outputs.refuse(location, is_folder=True)
        return _below(location, None, selector)


class Globs:
    """Patterns with `*`, `**`, `?` or `[…]`. A name of an existing file or folder is no pattern."""

    searches = True

    def claims(self, location: str, selector: Selector) -> bool:
        return bool(_MARK.search(location)) and bool(_split(location, selector)[1])

    def in_order(self, location: str) -> bool:
        return True

    def files(self, location: str, selector: Selector) -> Iterator[pa.Table | Record]:
        selector.outputs.refuse(location, is_folder=False)
        folder, pattern = _split(location, selector)
        return _below(folder, re.compile(glob_translate(pattern)), selector)


def _split(location: str, selector: Selector) -> tuple[str, str]:
    """Split a glob into the folder to list and the pattern below it, "" if the whole location exists."""
    scheme, separator, rest = location.rpartition("://")
    parts = rest.split("/")
    for place in range(1 if separator else 0, len(parts)):  # the first part of a URL is a bucket
        here = f"{scheme}{separator}{'/'.join(parts[: place + 1])}"
        if _MARK.search(parts[place]) and not _exists(here, selector):
            folder = "/".join(parts[:place]) or ("/" if place else ".")
            return f"{scheme}{separator}{folder}", "/".join(parts[place:])
    return location, ""


def _exists(location: str, selector: Selector) -> bool:
    try:
        storage, path = selector.files.found(location)
        file = storage.local_path(path)
        if file is not None:
            return os.path.lexists(file)
        return storage.exists(path) or any(table.num_rows for table in storage.listed(path))
    except StorageError:  # listing the folder above gives the reason
        return False


def _below(location: str, pattern: re.Pattern[str] | None, selector: Selector) -> Iterator[pa.Table | Record]:
    storage = selector.files.storage(location)
    folder = storage.local_path("")
    if folder is not None:
        if os.path.isfile(folder):
            containers, lists = _either(endings()), _either(tuple(LISTS))
            raise JobError(
                f"input {location} is a file; name its folder, a glob, a {containers} file of images, or a {lists} list"
            )
        if not os.path.isdir(folder):
            raise JobError(f"input folder {location} does not exist; correct 'input'")
    objects = storage.listed(unlisted=selector.left_alone.unlisted)
    return _in_order(selector.wanted(storage, rows, pattern, in_order=True) for rows in objects)


def _either(names: tuple[str, ...]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _in_order(files: Iterator[pa.Table]) -> Iterator[pa.Table | Record]:
    """Yield files in key order of their images: `a.tar/x.png` comes after `a.tar-2.png`."""
    held: list[tuple[str, Record]] = []
    for table in files:
        start = 0
        for place in containers_in(table):
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
