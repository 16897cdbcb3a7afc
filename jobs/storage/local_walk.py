"""Walks a local folder in order of path, without recursion. Links are followed; a link to a folder above is not.

One bad entry never ends a walk: an unreadable folder is reported, and a file that cannot be looked at is still listed.
"""

import errno
import os
import stat
from collections.abc import Iterator

from maskfleet.jobs.errors import Denied, StorageError
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.storage.contract import NO_FILE, UNKNOWN, Entry, Unlisted

TEMPORARY = ".maskfleet-tmp-"
"""Beginning of the names of files that are being written."""

_Identity = tuple[int, int]
"""Device and inode of a folder."""


def walked(folder: str, prefix: str, unlisted: Unlisted | None) -> Iterator[Entry]:
    """Yield every file at or below a folder, in order of path by code point.

    Args:
        folder: Path of the folder. It may be missing.
        prefix: Path of the folder below the storage's root, '' or without a slash at its end.
        unlisted: Receives the path and the reason of each folder below that cannot be read, and of each device, socket
            and pipe; None to raise instead.

    Raises:
        Denied: The folder itself may not be read.
        StorageError: The folder itself cannot be read.
    """
    first = _opened(folder, prefix, None)
    above: list[tuple[_Identity, Iterator[tuple[os.DirEntry[str], bool]], str]] = [] if first is None else [first]
    while above:
        _, items, path = above[-1]
        found = next(items, None)
        if found is None:
            above.pop()
            continue
        item, is_folder = found
        name = shown(item.name)
        below = f"{path}/{name}" if path else name
        if is_folder:
            inner = _opened(item.path, below, unlisted)
            if inner is not None and all(identity != inner[0] for identity, _, _ in above):
                above.append(inner)
        elif not item.name.startswith(TEMPORARY) and (entry := _entry(item, below, unlisted)) is not None:
            yield entry


def shown(name: str) -> str:
    """Return a name as text. Bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _opened(
    folder: str, path: str, unlisted: Unlisted | None
) -> tuple[_Identity, Iterator[tuple[os.DirEntry[str], bool]], str] | None:
    """Return a folder's identity, its entries in order and its path; None if it is missing or unlisted."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            items = [(item, _is_folder(item)) for item in found]
    except (FileNotFoundError, NotADirectoryError):  # deleted since its parent was read
        return None
    except OSError as error:
        kind, reason = _reason(error)
        if unlisted is None:
            raise kind(f"cannot read folder {folder}: {reason}") from error
        unlisted(path, reason)
        return None
    # Folders sort with a trailing slash, so that paths come in order: `a.jpg`, `a/x`, `a0.jpg`.
    items.sort(key=lambda item: shown(item[0].name) + "/" * item[1])
    return (status.st_dev, status.st_ino), iter(items), path


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself, or a folder that may not be searched
        return False


def _entry(item: os.DirEntry[str], path: str, unlisted: Unlisted | None) -> Entry | None:
    """Return the entry of a file, also of one that cannot be looked at; None for devices, sockets and deleted files."""
    try:
        status = item.stat()
    except OSError as error:
        # A dangling link, a link to itself, or a file in a folder that may not be searched: reading it tells why.
        if isinstance(error, FileNotFoundError) and not item.is_symlink():
            return None
        return Entry(path, 0, UNKNOWN, 0.0)
    if not stat.S_ISREG(status.st_mode):
        if unlisted is not None and not stat.S_ISDIR(status.st_mode):
            unlisted(path, NO_FILE)
        return None
    return Entry(path, status.st_size, local_file.state(status), status.st_mtime)


def _reason(error: OSError) -> tuple[type[StorageError], str]:
    if isinstance(error, PermissionError):
        return Denied, "permission denied; check its permissions"
    if error.errno == errno.ENAMETOOLONG:
        return StorageError, "its path is too long; move it up"
    return StorageError, f"{os.strerror(error.errno or 0)}; check the disk or mount"
