"""Entries of containers, kept in the output: an unchanged file is not listed again by the next run.

    catalog/indexes/<digest of the file's URL>.parquet   its images; the metadata names the file and its ETag

An index is only a copy. If it is lost, or made for another ETag, form or set of image formats, it is made again from
the file.
"""

import hashlib
import io
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Denied, NotFound
from maskfleet.jobs.images.formats import ENDINGS
from maskfleet.jobs.inputs.containers.contract import Container
from maskfleet.jobs.inputs.containers.formats import container_of
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage, split_url

FOLDER = "catalog/indexes"
_LEFT_ALONE = b"left_alone"
_FORM = "2"
"""Version of the entries' meaning. A change makes all older indexes void."""

_IN_FLIGHT = 8


class Index(NamedTuple):
    """What the listing of a container found.

    Attributes:
        entries: Its images.
        left_alone: Number of its other files, by the rule that left them alone.
    """

    entries: Sequence[Any]
    left_alone: Mapping[str, int] = MappingProxyType({})


class Indexes:
    """The indexes of an output. Safe from several threads.

    Args:
        storage: Storage of the output.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._there: set[str] | None = None
        self._new: list[tuple[str, bytes]] = []

    def get(self, url: str, etag: str) -> Index | None:
        """Return the index of a container in this version, or None if unknown."""
        with self._lock:
            if self._there is None:
                self._there = set(self._storage.names(FOLDER))
        name = _name(url)
        if name not in self._there:
            return None
        try:
            table = pq.read_table(io.BytesIO(self._storage.read(f"{FOLDER}/{name}")))
        except (NotFound, pa.ArrowInvalid):
            return None
        container, schema = _kind(url)
        metadata = dict(table.schema.metadata or {})
        left_alone = json.loads(metadata.pop(_LEFT_ALONE, b"{}"))
        if not table.schema.equals(schema) or metadata != _metadata(url, etag):
            return None
        return Index(list(map(container.entry, *(column.to_pylist() for column in table.columns))), left_alone)

    def add(self, url: str, etag: str, index: Index) -> None:
        """Remember the index of a container until `store`."""
        _, schema = _kind(url)
        entries, metadata = (
            index.entries,
            _metadata(url, etag) | {_LEFT_ALONE: json.dumps(dict(index.left_alone)).encode()},
        )
        table = pa.Table.from_arrays(
            [pa.array([entry[place] for entry in entries], field.type) for place, field in enumerate(schema)],
            schema=schema.with_metadata(metadata),
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
        with self._lock:
            self._new.append((f"{FOLDER}/{_name(url)}", sink.getvalue()))

    def store(self, storage: Storage) -> None:
        """Write the entries added since the last call, to the storage given: fenced, if a run holds the output."""
        with self._lock:
            new, self._new = self._new, []
        if new:
            with ThreadPoolExecutor(_IN_FLIGHT) as pool:
                list(pool.map(lambda item: storage.write(*item), new))


def in_use(storage: Storage, *, profile: str | None = None) -> set[str]:
    """Return the paths of indexes of existing files, with one request per file. A file that denies access counts."""

    def used(name: str) -> bool:
        try:
            metadata = pq.read_schema(io.BytesIO(storage.read(f"{FOLDER}/{name}"))).metadata or {}
            root, path = split_url(metadata[b"url"].decode())
            return open_storage(root, profile=profile).exists(path)
        except (NotFound, Denied):
            return True
        except (pa.ArrowInvalid, KeyError):
            return False

    names = storage.names(FOLDER)
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        return {f"{FOLDER}/{name}" for name, is_used in zip(names, pool.map(used, names), strict=True) if is_used}


def _kind(url: str) -> tuple[Container[Any], pa.Schema]:
    container = container_of(url)
    assert container is not None
    assert container.index is not None
    return container, container.index


def _name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.parquet"


def _metadata(url: str, etag: str) -> dict[bytes, bytes]:
    # Only images are indexed, so a new image format needs new indexes.
    form = {"form": _FORM, "images": " ".join(ENDINGS)}
    return {name.encode(): value.encode() for name, value in ({"url": url, "etag": etag} | form).items()}
