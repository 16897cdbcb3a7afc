"""A local folder as storage: fsynced temporary files, and `os.link` for create-if-absent."""

import ctypes
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Self

import pyarrow as pa

from maskfleet.jobs.errors import Denied, JobError, NotFound, StorageError
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.storage.contract import OBJECTS, Entry, Fault, Storage, Unlisted
from maskfleet.jobs.storage.local_walk import TEMPORARY, walked
from maskfleet.jobs.urls import plain

_PART_BYTES = 255
_PATH_BYTES = 4095
"""Longest name in a folder, and longest path, of Linux's file systems."""

_ROWS = 1024
"""Rows per table of a listing."""

_SYNCFS = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
"""The call of the C library that Python lacks; None outside Linux."""


class LocalStorage(Storage):
    """A local folder. `create` needs a file system with hard links.

    Args:
        root: Path of the folder. It need not exist yet.
    """

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._folder = f"{self.root.rstrip('/')}/"

    @classmethod
    def open(cls, url: str, *, profile: str | None = None) -> Self:
        return cls(_path(url))

    @classmethod
    def split(cls, url: str) -> tuple[str, str]:
        return "/", os.path.abspath(_path(url)).lstrip("/")

    def read(self, path: str, etag: str | None = None) -> bytes:
        file = self.local_path(path)
        with _translated(file):
            return local_file.read(file, etag)

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        file = self.local_path(path)
        with _translated(file), open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            data = stream.read(length)
            while len(data) < length and (more := stream.read(length - len(data))):
                data += more
            state = local_file.state(os.fstat(stream.fileno()))
        if etag is not None and state != etag:
            raise local_file.changed(file)
        return data

    @contextmanager
    def opened(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        file = self.local_path(path)
        with _translated(file), open(file, "rb") as stream:
            yield stream
            state = local_file.state(os.fstat(stream.fileno()))
        if etag is not None and state != etag:
            raise local_file.changed(file)

    def write(self, path: str, data: bytes) -> None:
        file = self.local_path(path)
        with _translated(file):
            temporary = self._temporary(file, data)
            os.replace(temporary, file)
            _sync_folder(os.path.dirname(file))

    def create(self, path: str, data: bytes) -> bool:
        file = self.local_path(path)
        with _translated(file):
            temporary = self._temporary(file, data)
            try:
                os.link(temporary, file)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
            _sync_folder(os.path.dirname(file))
        return True

    def export(self, path: str, data: bytes) -> None:
        file = self.local_path(path)
        with _translated(file):
            if not _linked_when_complete(file, data):
                os.replace(self._temporary(file, data, sync=False), file)

    def export_all(self, items: Iterable[tuple[str, bytes]], *, before: Callable[[], None] = lambda: None) -> None:
        for path, data in items:  # threads gain nothing: no write waits for the disk
            before()
            self.export(path, data)

    def refused(self, path: str) -> str | None:
        name = path.encode()
        longest = max(map(len, name.split(b"/")))
        if longest > _PART_BYTES:
            return f"it has {longest} bytes between two slashes, and file systems hold {_PART_BYTES}"
        whole = len(os.fsencode(self._folder)) + len(name)
        return f"its path has {whole} bytes, and Linux allows {_PATH_BYTES}" if whole > _PATH_BYTES else None

    def settle(self, path: str) -> None:
        file = self.local_path(path)
        with _translated(file), suppress(FileNotFoundError):
            _sync_file_system(file)

    def delete(self, path: str) -> None:
        file = self.local_path(path)
        with _translated(file), suppress(FileNotFoundError):
            os.unlink(file)

    def remove_folder(self, path: str) -> None:
        with suppress(OSError):  # missing, or not empty
            os.rmdir(self.local_path(path))

    def listed(self, path: str = "", *, unlisted: Unlisted | None = None) -> Iterator[pa.Table]:
        entries = walked(self.local_path(path), path.strip("/"), unlisted)
        while chunk := list(itertools.islice(entries, _ROWS)):
            yield _table(chunk)

    def leftovers(self) -> Iterator[Entry]:
        for folder, _, names in os.walk(self.local_path("")):
            for name in names:
                if name.startswith(TEMPORARY):
                    with suppress(FileNotFoundError):
                        status = os.stat(f"{folder}/{name}")
                        path = os.path.relpath(f"{folder}/{name}", self.root)
                        yield Entry(path, status.st_size, local_file.state(status), status.st_mtime)

    def names(self, path: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.local_path(path)) if not name.startswith(TEMPORARY))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entry(self, path: str) -> Entry:
        file = self.local_path(path)
        with _translated(file):
            status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{file} is not a file")
        return Entry(path, status.st_size, local_file.state(status), status.st_mtime)

    def local_path(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"path {path!r} points outside {self.root}")
        return f"{self._folder}{path}".rstrip("/") or "/"

    def _temporary(self, file: str, data: bytes, *, sync: bool = True) -> str:
        folder = os.path.dirname(file)
        # In the destination folder: a rename is atomic only within one file system.
        temporary = f"{folder}/{TEMPORARY}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return temporary


def _path(url: str) -> str:
    try:
        return plain(url) if "://" in url else url
    except ValueError as error:
        raise JobError(f"{url} {error}") from error


def _linked_when_complete(file: str, data: bytes) -> bool:
    """Write an unnamed file and link it once complete. Return False if the system cannot, or if the name is taken.

    Takes three quarters of the time of a temporary name (`tests/benchmarks/steps.py`) and leaves nothing to clean up.
    """
    try:
        descriptor = os.open(os.path.dirname(file), os.O_WRONLY | os.O_TMPFILE, 0o666)
    except (AttributeError, OSError):  # not Linux, no such folder, or a file system without unnamed files
        return False
    try:
        _write_all(descriptor, data)
        try:
            # Python lets linkat follow the symbolic link only if given a descriptor, which an absolute path ignores.
            os.link(f"/proc/self/fd/{descriptor}", file, src_dir_fd=descriptor)
        except OSError:  # the name is taken, or no /proc, or no hard links
            return False
    finally:
        os.close(descriptor)
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _translated:  # noqa: N801  (reads as a statement)
    """Translates errors of the operating system into those of `jobs.errors`."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError) and _is_escaped(self.file):
            raise Fault("bad_name", f"{self.file}: the file's name is not UTF-8; rename it") from error
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise NotFound(f"there is no file {self.file}") from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise StorageError(f"cannot create {self.file}: a file is in the place of a folder; move it") from error
        if isinstance(error, PermissionError):
            raise Denied(f"{self.file}: permission denied; check the owner and mode of its folder") from error
        if isinstance(error, OSError):
            raise StorageError(f"{self.file}: {error.strerror or error}") from error


def _table(entries: Iterable[Entry]) -> pa.Table:
    columns = zip(*entries, strict=True)
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, OBJECTS, strict=True)], schema=OBJECTS
    )


def _is_escaped(file: str) -> bool:
    """Return whether a path is the escaped one of an existing file; see `local_walk.shown`.

    A path without escapes is not: a file that is missing one moment may exist the next, made by another process.
    """
    plain = os.fsencode(file)
    stored = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), plain)
    return stored != plain and os.path.exists(stored)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(folder: str) -> None:
    """Make everything written to a folder's file system durable: one call for a shard's masks, not one for each."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _SYNCFS is None:
            os.sync()
        elif _SYNCFS(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(descriptor)
