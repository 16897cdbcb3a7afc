"""Folders and globs as inputs.

Keys are paths relative to the folder: for a glob, the last folder before the first wildcard.
"""

import os
import re
from collections.abc import Iterator

import pyarrow as pa
from fsspec.utils import glob_translate

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.inputs.containers.formats import endings
from maskfleet.jobs.inputs.lists import LISTS
from maskfleet.jobs.inputs.record import Record, in_turn
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
    found = (selector.wanted(storage, rows, pattern, in_order=True) for rows in objects)
    return in_turn((table, containers_in(table)) for table in found)


def _either(names: tuple[str, ...]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
