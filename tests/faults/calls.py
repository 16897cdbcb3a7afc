"""Every call of storage, counted; at a chosen one the process dies, freezes or raises.

Used in a forked child: the classes of this process are changed for good.
"""

import inspect
import os
import signal
import threading
from dataclasses import dataclass

from maskfleet.jobs.storage import local
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.storage.s3 import S3Storage

_ASK_NOTHING = {"url", "local_path"}
METHODS = [
    name
    for name, value in vars(Storage).items()
    if inspect.isfunction(value) and not name.startswith("_") and name not in _ASK_NOTHING
]
"""Methods of a storage that make requests."""

SYSTEM_CALLS = ("open", "write", "fsync", "link", "replace", "rename", "unlink", "makedirs", "mkdir", "rmdir")
"""Calls of `os` by which local storage changes a folder."""


def die() -> None:
    """End this process at once, as SIGKILL does: no handler, no flush, no `finally`."""
    os._exit(9)


def cut_power() -> None:
    """End this process as a power cut does: what was not synced is lost, of files and of their names."""
    local.os.lose_unsynced()
    os._exit(9)


def freeze() -> None:
    """Stop this process, as a paused machine does, until SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Point:
    """A place among the calls of a run.

    Attributes:
        number: Number of the call, from 1.
        after: Whether the call is made first.
        act: What happens there: `die`, `freeze` or, within, `cut_power`.
        within: Whether calls of the operating system are counted, instead of calls of storage.
    """

    number: int
    after: bool = False
    act: object = die
    within: bool = False

    def __str__(self) -> str:
        calls = "system call" if self.within else "call"
        return f"{self.act.__name__} {'after' if self.after else 'before'} {calls} {self.number}"


class Counter:
    """Counts calls and acts at one of them.

    Args:
        point: The place to act at; None to count alone.

    Attributes:
        names: Name and path of each call so far.
    """

    def __init__(self, point: Point | None = None) -> None:
        self.names: list[str] = []
        self._point = point
        self._lock = threading.Lock()
        self._here = threading.local()

    @property
    def cuts_power(self) -> bool:
        """Whether the power fails at that place."""
        return self._point is not None and self._point.act is cut_power

    def call(self, name, function, arguments, more):
        """Make a call. Calls within a call are part of it."""
        if getattr(self._here, "inside", False):
            return function(*arguments, **more)
        with self._lock:
            self.names.append(name)
            here = self._point is not None and self._point.number == len(self.names)
        if here and not self._point.after:
            self._point.act()
        self._here.inside = True
        try:
            return function(*arguments, **more)
        finally:
            self._here.inside = False
            if here and self._point.after:
                self._point.act()


def counted(point: Point | None = None) -> Counter:
    """Count every storage call of this process from now on, or every system call of local storage."""
    counter = Counter(point)
    if point is not None and point.within:
        _count_within(counter)
        return counter
    for kind in (LocalStorage, S3Storage):
        for name in METHODS:
            setattr(kind, name, _counted(counter, name, getattr(kind, name)))
    return counter


def counted_within() -> Counter:
    """Count every system call by which local storage changes a folder."""
    counter = Counter()
    _count_within(counter)
    return counter


def _count_within(counter: Counter) -> None:
    system = local.os = _System(counter)
    sync = local._sync_file_system

    def synced(file):
        counter.call(f"syncfs {file}", sync, (file,), {})
        system.synced()

    local._sync_file_system = synced
    if counter.cuts_power:  # the machine boots again before the next run
        LocalStorage.lifetime = lambda _: "before the power cut"


def _counted(counter, name, method):
    def call(self, *arguments, **more):
        path = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        return counter.call(f"{name} {path}", method, (self, *arguments), more)

    return call


class _System:
    """The module `os`, with some calls counted. Remembers what is not synced yet."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._torn: dict[tuple[int, int], str] = {}
        self._nameless: set[str] = set()
        for name in SYSTEM_CALLS:
            setattr(self, name, self._counted(name))

    def __getattr__(self, name):
        return getattr(os, name)

    def lose_unsynced(self) -> None:
        """Cut files whose content was not synced, and remove names that their folder has not on disk."""
        for path in list(self._nameless):
            if os.path.exists(path):
                os.unlink(path)
        for path in list(self._torn.values()):  # other threads still write
            if os.path.exists(path):
                os.truncate(path, os.path.getsize(path) // 2)

    def synced(self) -> None:
        """Note that the whole file system is synced."""
        self._torn.clear()
        self._nameless.clear()

    def _counted(self, name):
        function = getattr(os, name)

        def call(*arguments, **more):
            path = arguments[0] if arguments and isinstance(arguments[0], str) else ""
            result = self._counter.call(f"os.{name} {path}", function, arguments, more)
            self._noted(name, arguments)
            return result

        return call

    def _noted(self, name, arguments) -> None:
        if name == "write":
            self._torn[_inode(arguments[0])] = os.readlink(f"/proc/self/fd/{arguments[0]}")
        if name == "fsync":
            folder = os.readlink(f"/proc/self/fd/{arguments[0]}")
            self._torn.pop(_inode(arguments[0]), None)
            self._nameless = {path for path in self._nameless if os.path.dirname(path) != folder}
        if name in ("link", "replace", "rename"):
            source, target = arguments[:2]
            status = os.stat(target)
            inode = (status.st_dev, status.st_ino)
            if inode in self._torn:
                self._torn[inode] = target
            if name == "link":
                self._nameless.add(target)


def _inode(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
