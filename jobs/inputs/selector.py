"""Selects the inputs among listed files: images and containers. Counts the others, each by the rule that left it alone.

own output, other output   masks and records of runs (`outputs`)
hidden                     a part of the path begins with a dot
not matched                the pattern of a glob does not match
excluded                   a pattern of the job's `exclude` matches
table without images       a Parquet file beside the images that holds none
socket, device or pipe     an entry of a folder that is no file
unlisted: …                a folder that cannot be listed, with the reason
.zip, .tar.gz, no ending   the ending is not that of an image or container
"""

import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from maskfleet.jobs.images.formats import ENDINGS
from maskfleet.jobs.inputs.containers import formats
from maskfleet.jobs.inputs.outputs import Outputs
from maskfleet.jobs.inputs.record import LISTED, Record
from maskfleet.jobs.storage.contract import NO_FILE, Entry, Storage
from maskfleet.jobs.storage.files import Files

METADATA = "metadata.parquet"
"""Table beside the images of a Hugging Face image folder. Not an input."""

HIDDEN = "hidden"
NOT_MATCHED = "not matched"
EXCLUDED = "excluded"
TABLE = "table without images"
NO_ENDING = "no ending"
OTHERS = "others"

_HIDDEN = r"(?:^|/)\.(?:[^/.]|\.[^/])"
"""A part that begins with a dot, but is neither `.` nor `..`."""

_ENDING = re.compile(r"(?<=.)(?:\.tar)?\.[a-z0-9_+~-]{1,12}$")
_REASONS = 64
"""Reasons counted one by one, so that a folder of endings such as `.000001` stays a short list."""


class LeftAlone:
    """Files of an input that are no images of it, and places of unknown content. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._unknown: list[str] = []

    def add(self, reason: str, count: int = 1) -> None:
        """Count files left alone for a reason."""
        if count:
            with self._lock:
                known = reason in self._counts or len(self._counts) < _REASONS
                self._counts[reason if known else OTHERS] += count

    def unlisted(self, path: str, reason: str) -> None:
        """Count a folder that cannot be listed, or an entry of a folder that is no file."""
        if reason == NO_FILE:
            self.add(NO_FILE)
            return
        self.add(f"unlisted: {reason.partition(';')[0]}")
        self.unknown(path)

    def unknown(self, path: str) -> None:
        """Note a folder or container that cannot be listed tonight: what it holds is unknown."""
        with self._lock:
            self._unknown.append(f"{path}/")

    @property
    def counts(self) -> dict[str, int]:
        """Number of files by reason, the most frequent first."""
        with self._lock:
            return dict(self._counts.most_common())

    def hides(self, key: str) -> bool:
        """Return whether a key lies in a place of unknown content."""
        with self._lock:
            return any(key.startswith(place) for place in self._unknown)


class Exclusions:
    """Patterns of images and folders to leave alone. They match whole paths, or whole folders of a path.

    Args:
        patterns: Globs. One without a slash is compared with each part of a path, others with the path from its start.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        forms = [_anywhere(pattern.strip("/"), anchored="/" in pattern.rstrip("/")) for pattern in patterns]
        self._form = re.compile("|".join(forms)) if forms else None

    def __bool__(self) -> bool:
        return self._form is not None

    def match(self, key: str) -> bool:
        """Return whether a key is excluded."""
        return self._form is not None and self._form.match(key) is not None


class Selector:
    """Selection of a job's inputs among listed files.

    Args:
        files: Opens files by URL.
        output: Output of the job.
        column: Column of images or of URLs, in tables; None to find it.
        exclude: Patterns of images to leave alone.

    Attributes:
        files: As given.
        column: As given.
        outputs: The job's own output, and others.
        exclusions: The patterns.
        left_alone: Files left alone so far.
    """

    def __init__(self, files: Files, *, output: str, column: str | None, exclude: Sequence[str] = ()) -> None:
        self.files, self.column = files, column
        self.outputs = Outputs(output)
        self.exclusions = Exclusions(exclude)
        self.left_alone = LeftAlone()

    def wanted(
        self, storage: Storage, objects: pa.Table, pattern: re.Pattern[str] | None = None, *, in_order: bool
    ) -> pa.Table:
        """Return the inputs among the objects of a listing.

        Args:
            storage: Storage of the listing.
            objects: Table of `jobs.storage.contract.OBJECTS`.
            pattern: Pattern to match whole paths, or None.
            in_order: Whether the listing is in order of path.

        Returns:
            Table of `LISTED`, with paths as keys.
        """
        objects = self._without(objects, self.outputs.reasons(storage, _paths(objects), in_order=in_order))
        hidden = pc.match_substring_regex(_paths(objects), _HIDDEN)
        objects = self._without(objects, pc.if_else(hidden, HIDDEN, None))
        if pattern is not None:
            matched = [None if pattern.fullmatch(path) else NOT_MATCHED for path in _paths(objects).to_pylist()]
            objects = self._without(objects, pa.array(matched, pa.string()))
        if self.exclusions:
            excluded = [EXCLUDED if self.exclusions.match(path) else None for path in _paths(objects).to_pylist()]
            objects = self._without(objects, pa.array(excluded, pa.string()))
        objects = self._inputs(objects)
        urls = pc.binary_join_element_wise(storage.url("x")[:-1], _paths(objects), "")
        if pc.any(pc.match_substring(urls, "#")).as_py():
            urls = pa.array([formats.whole(url) for url in urls.to_pylist()], pa.string())
        return pa.Table.from_arrays([objects["path"], urls, *objects.columns[1:]], schema=LISTED)

    def is_folder(self, location: str) -> bool:
        """Return whether a location is a folder of this machine."""
        folder = self.files.storage(location).local_path("")
        return folder is not None and os.path.isdir(folder)

    def _without(self, objects: pa.Table, reasons: pa.StringArray) -> pa.Table:
        """Return the objects without a reason to leave them alone. Count the others."""
        if reasons.null_count == len(reasons):
            return objects
        for item in reasons.drop_null().value_counts().to_pylist():
            self.left_alone.add(item["values"], item["counts"])
        return objects.filter(pc.is_null(reasons))

    def _inputs(self, objects: pa.Table) -> pa.Table:
        paths = _paths(objects)
        metadata = pc.match_substring_regex(paths, f"(?:^|/){re.escape(METADATA)}$")
        self.left_alone.add(TABLE, pc.sum(metadata).as_py() or 0)
        images_or_containers = _have_endings(paths, (*ENDINGS, *formats.endings()))
        others = pc.invert(pc.or_(images_or_containers, metadata))
        for path in paths.filter(others).to_pylist():
            self.left_alone.add(ending_of(path))
        return objects.filter(pc.and_not(images_or_containers, metadata))


def record_of(storage: Storage, entry: Entry) -> Record:
    """Return an object as a record, with its path as key."""
    return Record(entry.path, formats.whole(storage.url(entry.path)), entry.size, entry.etag, entry.modified)


def is_image(path: str) -> bool:
    """Return whether a path names an image, by its ending, and no part of it is hidden."""
    return path.lower().endswith(ENDINGS) and re.search(_HIDDEN, path) is None


def is_container(path: str) -> bool:
    """Return whether a path names a container, by its ending."""
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and formats.container_of(name) is not None


def containers_in(table: pa.Table) -> list[int]:
    """Return the numbers of the rows of `LISTED` that are containers."""
    places: list[int] = pc.indices_nonzero(_have_endings(table["key"], formats.endings())).to_pylist()
    return places


def ending_of(path: str) -> str:
    """Return the ending of a path in lower case, also of two parts for a compressed tar, or `NO_ENDING`."""
    name = path.rsplit("/", 1)[-1].lower()
    found = _ENDING.search(name)
    return NO_ENDING if found is None else found[0]


def reason_of(path: str) -> str:
    """Return the rule that leaves a file alone which is no image."""
    return HIDDEN if re.search(_HIDDEN, path) else ending_of(path)


def _paths(objects: pa.Table) -> pa.StringArray:
    return objects["path"].combine_chunks()


def _have_endings(paths: pa.StringArray | pa.ChunkedArray, endings: tuple[str, ...]) -> pa.Array | pa.ChunkedArray:
    return pc.match_substring_regex(paths, _pattern(endings))


@lru_cache(maxsize=8)
def _pattern(endings: tuple[str, ...]) -> str:
    return rf"(?i)[^/](?:{'|'.join(map(re.escape, endings))})$"


def _anywhere(pattern: str, *, anchored: bool) -> str:
    body = glob_translate(pattern if anchored else f"**/{pattern}").removesuffix(r"\Z")
    return rf"{body}(?s:/.*)?\Z"
