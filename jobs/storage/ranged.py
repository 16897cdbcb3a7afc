"""An object as a file: each read is a request for a range of one version of the object; or a local copy of it."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

from maskfleet.jobs.errors import StorageError


class Ranges(Protocol):
    """What a file is read from: a storage, or another process that has one."""

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Return a part of an object; see `jobs.storage.contract.Storage.read_range`."""


class RangedFile(io.RawIOBase):
    """An object of known size, open for reading. Buffers nothing: wrap it in `io.BufferedReader` for small reads.

    Args:
        storage: Storage of the object, or what else reads its ranges.
        path: Path of the object.
        size: Size in bytes.
        etag: ETag that the object must still have, or None for any.

    Raises:
        StorageError: On reading, as `Storage.read_range`.
    """

    def __init__(self, storage: Ranges, path: str, size: int, etag: str | None) -> None:
        super().__init__()
        self._storage, self._path, self._size, self._etag = storage, path, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """Return the size in bytes."""
        return self._size

    def read(self, size: int | None = -1, /) -> bytes:
        length = self._size - self._position if size is None or size < 0 else size
        data = self.at(self._position, length)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def at(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on, or fewer at the end of the object."""
        length = min(length, self._size - start)
        return self._storage.read_range(self._path, start, length, self._etag) if length > 0 else b""


@contextmanager
def copied(pieces: Iterable[bytes]) -> Iterator[BinaryIO]:
    """Give an object's pieces as a local file without a name, for objects larger than memory.

    Raises:
        StorageError: The folder of temporary files has no room.
    """
    with _unnamed() as file:
        for piece in pieces:
            _append(file, piece)
        file.seek(0)
        yield file


def _unnamed() -> BinaryIO:
    try:
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the caller)
    except OSError as error:
        raise _no_room(error) from error
    return file


def _append(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> StorageError:
    reason = os.strerror(error.errno or 0)
    return StorageError(f"no copy in the folder of temporary files ({reason}); make room there, or set TMPDIR")
