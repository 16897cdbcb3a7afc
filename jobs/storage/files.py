"""Files at any URL. Each storage is opened once; ranges are read concurrently in threads."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.storage.contract import ENVIRONMENT, Fault, Options, Storage
from maskfleet.jobs.storage.ranged import RangedFile
from maskfleet.jobs.storage.schemes import open_with, split_url

_RANGES_IN_FLIGHT = 16


class Closable(Protocol):
    """Something to be closed."""

    def close(self) -> None:
        """End it."""


C = TypeVar("C", bound=Closable)


class Files:
    """The open storages of a process. Safe from several threads.

    Args:
        options: How buckets are asked.
    """

    def __init__(self, options: Options = ENVIRONMENT) -> None:
        self._options = options
        self._stores: dict[str, Storage] = {}
        self._companions: dict[type[Any], Any] = {}
        self._lock = threading.Lock()
        self._ranges = ThreadPoolExecutor(_RANGES_IN_FLIGHT, "range")

    def storage(self, root: str) -> Storage:
        """Return the storage at a root, opened once."""
        storage = self._stores.get(root)
        if storage is None:  # asked for with every image
            storage = self._stores.setdefault(root, open_with(root, self._options))
        return storage

    def found(self, url: str) -> tuple[Storage, str]:
        """Return a file's storage and its path there. An empty fragment at the end is not part of its name.

        Raises:
            Fault: The URL has an unknown scheme, or names no file.
        """
        try:
            root, path = split_url(url.removesuffix("#"))
            storage = self.storage(root)
        except JobError as error:
            raise Fault("bad_url", str(error)) from error
        if not path:
            raise Fault("bad_url", f"{url} names no file; name one below it")
        return storage, path

    def ranged(self, url: str, etag: str | None, size: int | None = None) -> RangedFile:
        """Return a file to read in ranges.

        Args:
            url: URL of the file.
            etag: ETag that the file must still have, or None for any.
            size: Size in bytes; None to ask storage.

        Raises:
            NotFound: The file does not exist, and `size` is None.
        """
        storage, path = self.found(url)
        return RangedFile(storage, path, storage.entry(path).size if size is None else size, etag)

    def range(self, url: str, start: int, size: int, etag: str | None) -> Future[bytes]:
        """Start reading a range of a file; see `Storage.read_range`."""
        storage, path = self.found(url)
        return self._ranges.submit(storage.read_range, path, start, size, etag)

    def companion(self, kind: type[C]) -> C:
        """Return the one object of a class that is closed with these files, such as a pool of processes."""
        with self._lock:
            if kind not in self._companions:
                self._companions[kind] = kind()
            found: C = self._companions[kind]
            return found

    def close(self) -> None:
        """End the threads and the companions."""
        for companion in self._companions.values():
            companion.close()
        self._ranges.shutdown(cancel_futures=True)

    @property
    def retries(self) -> int:
        """Number of requests repeated so far."""
        return sum(storage.retries for storage in self._stores.values())
