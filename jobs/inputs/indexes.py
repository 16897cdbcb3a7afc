"""What tars hold, kept beside the catalog, so that the headers of an unchanged one are not read again every night.

    catalog/indexes/<digest of the tar's URL>.parquet   its images; in the metadata which tar, and its etag

An index is no more than a copy: one that is lost, or of another etag or form, is made again from the tar.
"""

import hashlib
import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Denied, NotFound
from maskfleet.jobs.inputs.tars import Member
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage, split_url

FOLDER = "catalog/indexes"
_FORM = "1"
"""Of the members' meaning; a change of it, as of the endings that images have, makes the indexes before void."""

_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("fault", pa.string()),
    ]
)
_AT_ONCE = 8


class Indexes:
    """The indexes of an output. Safe from several threads.

    Args:
        storage: The output.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._there: set[str] | None = None
        self._new: list[tuple[str, bytes]] = []

    def get(self, url: str, etag: str) -> list[Member] | None:
        """A tar's images, or None where they are not known."""
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
        if not table.schema.equals(_SCHEMA) or table.schema.metadata != _metadata(url, etag):
            return None
        return list(map(Member, *(column.to_pylist() for column in table.columns)))

    def add(self, url: str, etag: str, members: Sequence[Member]) -> None:
        """Remember a tar's images until they are stored."""
        table = pa.Table.from_arrays(
            [pa.array([member[place] for member in members], field.type) for place, field in enumerate(_SCHEMA)],
            schema=_SCHEMA.with_metadata(_metadata(url, etag)),
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
        with self._lock:
            self._new.append((f"{FOLDER}/{_name(url)}", sink.getvalue()))

    def store(self) -> None:
        """Store what was added since this was called last."""
        with self._lock:
            new, self._new = self._new, []
        if new:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda item: self._storage.write(*item), new))


def in_use(storage: Storage, *, profile: str | None = None) -> set[str]:
    """The paths of the indexes whose tars are still there, or may be, for all that we may know; asks for each once."""

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
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {f"{FOLDER}/{name}" for name, is_used in zip(names, pool.map(used, names), strict=True) if is_used}


def _name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.parquet"


def _metadata(url: str, etag: str) -> dict[bytes, bytes]:
    return {b"url": url.encode(), b"etag": etag.encode(), b"form": _FORM.encode()}
