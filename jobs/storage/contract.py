"""What every storage does: objects and ranges of them, listings, and create-if-absent. Knows nothing of jobs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from maskfleet.jobs.errors import NotFound


class Entry(NamedTuple):
    """An object in a listing.

    Attributes:
        path: Relative to the storage's root, with forward slashes.
        size: Bytes.
        etag: Changes when the content does: S3's ETag, or a local file's modification time in ns.
    """

    path: str
    size: int
    etag: str
    modified: float | None = None
    """Seconds since 1970."""


class Storage(ABC):
    """Objects below a root folder or prefix. Paths are relative to the root.

    Every method raises `Denied` where credentials or permissions do not suffice and `StorageError`
    where storage goes on failing.
    """

    root: str
    retries: int = 0
    """Requests repeated so far."""

    @abstractmethod
    def read(self, path: str, etag: str | None = None) -> bytes:
        """The whole object.

        Args:
            path: Which.
            etag: What it must still have; None for any.

        Raises:
            NotFound: There is none.
            Changed: It has another etag.
        """

    @abstractmethod
    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """A piece of the object, fewer bytes where it ends before; at least one byte must be there. Likewise."""

    @abstractmethod
    def opened(self, path: str, etag: str | None = None) -> AbstractContextManager[BinaryIO]:
        """The object as a local file with a descriptor, of an object that does not fit into memory. Likewise."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put an object there, whole or not at all, over what may be there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put an object there unless there is one.

        Returns:
            True: this call created it. False: there is one, and after a lost response it may be this
            call's own; a caller that must know reads it back and looks for a nonce of its own.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the object, if there."""

    def remove_folder(self, path: str) -> None:  # noqa: B027  (object stores have no folders)
        """Remove a folder if it is empty."""

    @abstractmethod
    def listed(self, path: str = "") -> Iterator[pa.Table]:
        """Every object at or below a folder, as tables of `OBJECTS`, in order of path by code point.

        Nothing there gives nothing.
        """

    def walk(self, path: str = "") -> Iterator[Entry]:
        """The same one by one, where there are few."""
        for table in self.listed(path):
            yield from map(Entry, *(column.to_pylist() for column in table.columns))

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """Names directly in a folder, objects and folders, sorted."""

    @abstractmethod
    def entry(self, path: str) -> Entry:
        """One object's entry.

        Raises:
            NotFound: There is none.
        """

    def url(self, path: str) -> str:
        """The full name of an object, for people and other programs."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.entry(path)
        except NotFound:
            return False
        return True
