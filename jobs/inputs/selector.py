"""Selects the inputs among listed files by their endings: images and containers. Counts the others."""

import os
import re
from collections import Counter
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.images.formats import ENDINGS
from maskfleet.jobs.inputs.containers import formats
from maskfleet.jobs.inputs.record import LISTED, Record
from maskfleet.jobs.storage.contract import Entry, Storage
from maskfleet.jobs.storage.files import Files

METADATA = "metadata.parquet"
"""Table beside the images of a Hugging Face image folder. Not an input."""

_VISIBLE = r"(?i)(?:^|/)[^./][^/]*(?:{})$"


class Selector:
    """Selection of a job's inputs among listed files.

    Args:
        files: Opens files by URL.
        output: Output of the job. Files below it are not inputs.
        column: Column of images or of URLs, in tables; None to find it.

    Attributes:
        files: As given.
        column: As given.
        ignored: Files left alone so far, counted by ending.
    """

    def __init__(self, files: Files, *, output: str, column: str | None) -> None:
        self.files, self.column = files, column
        self.ignored: Counter[str] = Counter()
        self._output = output.rstrip("/") if "://" in output else os.path.abspath(output)

    def wanted(self, storage: Storage, objects: pa.Table, pattern: re.Pattern[str] | None = None) -> pa.Table:
        """Return the inputs among the objects of a listing.

        Args:
            storage: Storage of the listing.
            objects: Table of `jobs.storage.contract.OBJECTS`.
            pattern: Pattern to match whole paths, or None.

        Returns:
            Table of `LISTED`, with paths as keys.
        """
        urls = pc.binary_join_element_wise(storage.url("x")[:-1], objects["path"], "")
        rows = pa.Table.from_arrays([objects["path"], urls, *objects.columns[1:]], schema=LISTED)
        # The output may lie inside the input: last night's masks are not tonight's images.
        rows = rows.filter(pc.invert(pc.starts_with(rows["url"], f"{self._output}/")))
        inputs = _are_inputs(rows["key"])
        self._ignore(rows["key"].filter(pc.invert(inputs)))
        rows = rows.filter(inputs)
        if pattern is not None:
            rows = rows.filter(pa.array([bool(pattern.fullmatch(key)) for key in rows["key"].to_pylist()], pa.bool_()))
        return rows

    def is_folder(self, location: str) -> bool:
        """Return whether a location is a folder of this machine."""
        folder = self.files.storage(location).local_path("")
        return folder is not None and os.path.isdir(folder)

    def _ignore(self, paths: pa.ChunkedArray) -> None:
        for path in paths.to_pylist():
            name = path.rsplit("/", 1)[-1]
            self.ignored[os.path.splitext(name)[1].lower() or name] += 1


def record_of(storage: Storage, entry: Entry) -> Record:
    """Return an object as a record, with its path as key."""
    return Record(entry.path, storage.url(entry.path), entry.size, entry.etag, entry.modified)


def is_image(path: str) -> bool:
    """Return whether a path names an image, by its ending."""
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def is_container(path: str) -> bool:
    """Return whether a path names a container, by its ending."""
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and formats.container_of(name) is not None


def containers_in(table: pa.Table) -> list[int]:
    """Return the numbers of the rows of `LISTED` that are containers."""
    places: list[int] = pc.indices_nonzero(_have_endings(table["key"], formats.endings())).to_pylist()
    return places


def _are_inputs(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    with_images = _have_endings(paths, formats.endings())
    metadata = pc.match_substring_regex(paths, f"(?:^|/){re.escape(METADATA)}$")
    return pc.or_(_have_endings(paths, ENDINGS), pc.and_not(with_images, metadata))


def _have_endings(paths: pa.ChunkedArray, endings: tuple[str, ...]) -> pa.ChunkedArray:
    return pc.match_substring_regex(paths, _pattern(endings))


@lru_cache(maxsize=8)
def _pattern(endings: tuple[str, ...]) -> str:
    return _VISIBLE.format("|".join(map(re.escape, endings)))
