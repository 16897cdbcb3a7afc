"""A local folder as storage: fsynced temporary files, and `os.link` for create-if-absent."""

import ctypes
import errno
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
from maskfleet.jobs.storage.contract import OBJECTS, DeniedObject, Entry, Fault, Options, Storage, Unlisted
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
    """A local folder. `create` is atomic on a file system with hard links.

    Args:
        root: Path of the folder. It need not exist yet.
    """

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._folder = f"{self.root.rstrip('/')}/"

    @classmethod
    def open(cls, url: str, options: Options) -> Self:
        return cls(_path(url))

    @classmethod
    def split(cls, url: str) -> tuple[str, str]:
        return "/", os.path.abspath(_path(url)).lstrip("/")

    def read(self, path: str, etag: str | None = None) -> bytes:
        file = self.local_path(path)
        with _reading(file):
            return local_file.read(file, etag)

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        file = self.local_path(path)
        with _reading(file), open(file, "rb", buffering=0) as stream:
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
        with _reading(file):
            stream = open(file, "rb")  # noqa: SIM115  (errors of the caller are no errors of the file)
        with stream:
            yield stream
            with _reading(file):
                state = local_file.state(os.fstat(stream.fileno()))
        if etag is not None and state != etag:
            raise local_file.changed(file)

    def write(self, path: str, data: bytes) -> None:
        file = self.local_path(path)
        with _writing(file):
            temporary = self._temporary(file, data)
            os.replace(temporary, file)
            _sync_folder(os.path.dirname(file))

    def create(self, path: str, data: bytes) -> bool:
        file = self.local_path(path)
        with _writing(file):
            temporary = self._temporary(file, data)
            try:
                if not self._linked(temporary, file):
                    if os.path.lexists(file):
                        return False
                    os.replace(temporary, file)
            except FileExistsError:
                return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            _sync_folder(os.path.dirname(file))
        return True

    def _linked(self, temporary: str, file: str) -> bool:
        """Give a complete file its name, unless the file system has no hard links."""
        try:
            os.link(temporary, file)
        except OSError as error:
            # The temporary file was made in the same folder, so no permission is missing.
            if error.errno not in _NO_LINKS:
                raise
            self.conditional = False
            return False
        return True

    def export(self, path: str, data: bytes) -> None:
        file = self.local_path(path)
        with _writing(file):
            if not _linked_when_complete(file, data):
                os.replace(self._temporary(file, data, sync=False), file)

    def export_all(
        self, items: Iterable[tuple[str, bytes]], *, before: Callable[[], None] = lambda: None
    ) -> dict[str, StorageError]:  # fmt: skip
        errors = {}
        for path, data in items:  # threads gain nothing: no write waits for the disk
            before()
            if (error := self._export_error(path, data)) is not None:
                errors[path] = error
        return errors

    def refused(self, path: str) -> str | None:
        name = path.encode()
        longest = max(map(len, name.split(b"/")))
        if longest > _PART_BYTES:
            return f"it has {longest} bytes between two slashes, and file systems hold {_PART_BYTES}"
        whole = len(os.fsencode(self._folder)) + len(name)
        return f"its path has {whole} bytes, and Linux allows {_PATH_BYTES}" if whole > _PATH_BYTES else None

    def lifetime(self) -> str:
        with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
        return f"{os.getpid()}"  # elsewhere than on Linux: that of this process, which is shorter

    def settle(self, path: str) -> None:
        file = self.local_path(path)
        with _writing(file), suppress(FileNotFoundError):
            _sync_file_system(file)

    def delete(self, path: str) -> None:
        file = self.local_path(path)
        with _writing(file), suppress(FileNotFoundError):
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
        folder = self.local_path(path)
        try:
            with _reading(folder):
                return sorted(name for name in os.listdir(folder) if not name.startswith(TEMPORARY))
        except NotFound:
            return []

    def entry(self, path: str) -> Entry:
        file = self.local_path(path)
        with _reading(file):
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


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES}

_Errors = Callable[[str, OSError | ValueError], StorageError]


class _translated:  # noqa: N801  (reads as a statement)
    """Translates errors of the operating system into those of `jobs.errors`."""

    def __init__(self, errors: _Errors, file: str) -> None:
        self.errors, self.file = errors, file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError):
            raise self.errors(self.file, error) from error


def _reading(file: str) -> _translated:
    return _translated(_read_error, file)


def _writing(file: str) -> _translated:
    return _translated(_write_error, file)


def _read_error(file: str, error: OSError | ValueError) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    match error:
        case FileNotFoundError() if _is_escaped(file):
            return Fault("bad_name", f"{file}: the file's name is not UTF-8; rename it")
        case FileNotFoundError() if os.path.islink(file):
            return NotFound(f"{file} is a link that leads to no file; fetch the file, or delete the link")
        case FileNotFoundError():
            return NotFound(f"there is no file {file}")
        case IsADirectoryError():
            return NotFound(f"{file} is a folder, not a file")
        case NotADirectoryError():
            return NotFound(f"there is no file {file}: a file is in the place of a folder")
        case PermissionError():
            return DeniedObject(f"{file}: permission denied; check the owner and mode of the file and its folder")
        case ValueError():
            return NotFound(f"there is no file {file!r}: no file can have this name")
    if number == errno.ELOOP:
        return NotFound(f"{file} is a link that leads to itself; correct or delete it")
    if number == errno.ENAMETOOLONG:
        return NotFound(f"there is no file {file}: no file can have a name as long")
    return StorageError(f"{file} cannot be read: {_text(number)}; check the disk or mount")


def _write_error(file: str, error: OSError | ValueError) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    match error:
        case FileNotFoundError():
            return NotFound(f"there is no file {file}")
        case IsADirectoryError():
            return StorageError(f"cannot create {file}: a folder is in its place; move it")
        case NotADirectoryError() | FileExistsError():
            return StorageError(f"cannot create {file}: a file is in the place of a folder; move it")
        case PermissionError() if number == errno.EPERM:  # FAT, FUSE, an immutable folder
            return Denied(f"{file}: the file system does not permit this; choose another folder for the output")
        case PermissionError():
            return Denied(f"{file}: permission denied; check the owner and mode of its folder")
    if number == errno.ENAMETOOLONG:
        return StorageError(f"cannot create {file}: its name is too long for the file system")
    if number in {None, errno.EINVAL, errno.EILSEQ}:
        return StorageError(f"cannot create {file!r}: the file system has no such names")
    return StorageError(f"{file} cannot be written: {_text(number)}; make room, or choose another folder")


def _text(number: int | None) -> str:
    return os.strerror(number) if number else "unknown error"


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
    """Make the names in a folder durable, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


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
