"""The storage contract: objects, byte ranges, listings and create-if-absent below one root. Knows nothing of jobs.

A new scheme is one module with a subclass of `Storage` and one line in `schemes.SCHEMES`. The subclass implements the
abstract methods. It overrides the others if objects are files of this machine, or if it can do better.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import pyarrow as pa

from maskfleet.jobs.errors import Denied, NotFound, StorageError

OBJECTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("modified", pa.float64(), nullable=False),
    ]
)
"""Schema of a listing; the fields are those of `Entry`."""

Unlisted = Callable[[str, str], None]
"""Receives the path of a folder that cannot be listed, and the reason in plain words; or the path of an entry that is
neither a file nor a folder, and `NO_FILE`."""

NO_FILE = "socket, device or pipe"

UNKNOWN = "unknown"
"""ETag of an object that a listing names but cannot look at."""

_ABSENT = ".maskfleet-absent"
_WRITES_IN_FLIGHT = 32


class Entry(NamedTuple):
    """An object in a listing.

    Attributes:
        path: Path relative to the storage's root, with forward slashes.
        size: Size in bytes.
        etag: Version of the content: S3's ETag, or a local file's modification time in ns and size.
        modified: Modification time in seconds since 1970.
    """

    path: str
    size: int
    etag: str
    modified: float | None = None


class Fault(StorageError):
    """An object, or an image in it, that no retry can make readable.

    Attributes:
        error_class: One word for the statistics, such as `bad_name`.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.error_class, str(self))


class DeniedObject(Fault, Denied):
    """One object that credentials or permissions do not suffice to read. Others may be readable."""

    def __init__(self, message: str) -> None:
        super().__init__("denied", message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)


@dataclass(frozen=True)
class Options:
    """How buckets are asked. Storage without buckets ignores it.

    Attributes:
        profile: AWS profile, or None for the default.
        endpoint: URL of the server, or None for the environment's.
        anonymous: Whether requests are not signed, as for public buckets.
        requester_pays: Whether the caller agrees to pay for the requests.
    """

    profile: str | None = None
    endpoint: str | None = None
    anonymous: bool = False
    requester_pays: bool = False


ENVIRONMENT = Options()
"""The environment's own."""


class Storage(ABC):
    """Objects below a root folder or prefix. Paths are relative to the root. Safe from several threads.

    Every method raises `Denied` if credentials or permissions do not suffice, and `StorageError` if storage keeps
    failing. It raises no other errors.

    Attributes:
        is_local: Whether objects are files of this machine.
        root: URL or absolute path of the root.
        retries: Number of requests repeated so far.
        conditional: Whether `create` is atomic. False once storage has refused the condition: then `create` looks for
            the object first, and writes it if it is absent.
    """

    is_local: ClassVar[bool] = False

    root: str
    retries: int = 0
    conditional: bool = True

    @classmethod
    @abstractmethod
    def open(cls, url: str, options: Options) -> Self:
        """Return the storage at a URL. Makes no request.

        Args:
            url: Folder or prefix.
            options: How buckets are asked.

        Raises:
            JobError: The URL is incomplete.
        """

    @classmethod
    def split(cls, url: str) -> tuple[str, str]:
        """Split an object's URL into the root that `open` takes and the path below it."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        return f"{scheme}://{bucket}", key

    @abstractmethod
    def read(self, path: str, etag: str | None = None) -> bytes:
        """Return the whole object.

        Args:
            path: Path of the object.
            etag: ETag that the object must still have, or None for any.

        Raises:
            NotFound: The object does not exist, or no object can have this name.
            Changed: The object has another ETag.
            Fault: The object exists but cannot be read; `DeniedObject` if permissions do not suffice for it.
        """

    def answers(self, path: str) -> bool:
        """Return whether storage answers a request for an absent object in the folder of another one.

        If it does, the failure of the other one is its own.
        """
        folder, slash, _ = path.rpartition("/")
        try:
            self.read(f"{folder}{slash}{_ABSENT}")
        except (NotFound, Fault):
            return True
        except StorageError:
            return False
        return True

    @abstractmethod
    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Return `length` bytes from `start` on, or fewer at the end of the object. Raises as `read`.

        At least one byte must exist at `start`.
        """

    @abstractmethod
    def opened(self, path: str, etag: str | None = None) -> AbstractContextManager[BinaryIO]:
        """Open the object as a local file with a descriptor, for objects larger than memory. Raises as `read`."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write an object atomically, replacing an existing one. It is durable when this returns."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists.

        Returns:
            True if this call created the object. False if it exists. After a lost response the object may be this
            call's own: a caller that must know reads it back and compares a nonce.
        """

    def export(self, path: str, data: bytes) -> None:
        """Write a derived object, one that can be made again. Need not wait until it is durable."""
        self.write(path, data)

    def export_all(
        self, items: Iterable[tuple[str, bytes]], *, before: Callable[[], None] = lambda: None
    ) -> dict[str, StorageError]:  # fmt: skip
        """Export paths and their data, several at a time. Returns the error of each path that failed.

        Args:
            items: Paths and their data.
            before: Called before each write, from several threads. What it raises ends the export.
        """

        def one(item: tuple[str, bytes]) -> tuple[str, StorageError | None]:
            before()
            return item[0], self._export_error(*item)

        with ThreadPoolExecutor(_WRITES_IN_FLIGHT) as pool:
            return {path: error for path, error in pool.map(one, items) if error is not None}

    def _export_error(self, path: str, data: bytes) -> StorageError | None:
        try:
            self.export(path, data)
        except StorageError as error:
            return error
        return None

    def lifetime(self) -> str:
        """Return a name for the time within which exports are safe before `settle`; "" if they are durable at once.

        A power cut ends it. Then the name is another.
        """
        return ""

    def settle(self, path: str) -> None:  # noqa: B027  (a bucket's objects are durable once written)
        """Wait until everything exported below a folder is durable."""

    def check_reachable(self) -> None:  # noqa: B027  (a folder has no server)
        """Ask once whether the server is there, in seconds: requests are retried for minutes.

        Raises:
            JobError: The server's address is wrong.
            StorageError: Nothing answers there.
        """

    def refused(self, path: str) -> str | None:
        """Return why no object can ever have this path, or None. Makes no request."""
        return None

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete the object, if it exists."""

    def discard(self, path: str) -> None:
        """Delete an object that nobody needs. It stays if the right to delete is missing: a run can do without it."""
        with suppress(Denied):
            self.delete(path)

    def remove_folder(self, path: str) -> None:  # noqa: B027  (buckets have no folders)
        """Remove a folder if it is empty."""

    @abstractmethod
    def listed(self, path: str = "", *, unlisted: Unlisted | None = None) -> Iterator[pa.Table]:
        """List every object at or below a folder, as tables of `OBJECTS`, in order of path by code point.

        Yields nothing if the folder is empty or missing. An object that is named but cannot be looked at, such as a
        dangling link, is listed with size 0 and the ETag `UNKNOWN`: reading it raises the reason.

        Args:
            path: The folder.
            unlisted: Receives each folder below that cannot be listed; listing goes on. What such a folder holds is
                unknown, so that objects in it are not known to be gone. None to raise instead.
        """

    def walk(self, path: str = "") -> Iterator[Entry]:
        """List the same objects one by one, for small folders."""
        for table in self.listed(path):
            yield from map(Entry, *(column.to_pylist() for column in table.columns))

    def leftovers(self) -> Iterator[Entry]:
        """List temporary files of writes that were killed. Listings and names leave them out."""
        return iter(())

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """Return the names directly in a folder, of objects and folders, sorted."""

    @abstractmethod
    def entry(self, path: str) -> Entry:
        """Return the entry of one object.

        Raises:
            NotFound: The object does not exist.
        """

    def local_path(self, path: str) -> str | None:
        """Return the object's path in the file system, or None if `is_local` is False.

        Raises:
            StorageError: The path leads out of the root.
        """
        return None

    def url(self, path: str) -> str:
        """Return the object's full URL or path, for people and other programs."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Return whether the object exists."""
        try:
            self.entry(path)
        except NotFound:
            return False
        return True
