"""The fence: keeps a superseded process from writing, by comparing the lock's generation again.

Records created if absent need no fence to be right: commits, catalog versions, `frozen.json`. Everything else replaces
what is there: plan parts, loose masks and their markers, statistics, `run.json`, training records. A driver or worker
that was stopped, and goes on after another run took over, must not write any of it. So it is written through
`Fence.storage`, which checks before each write. A stop takes long enough for another run to take over, and the clocks
show it; therefore a passed check counts for a second, and a shard costs one listing, not one per mask.

One window remains: a process stopped inside a write, after the check and before storage has the bytes. It then makes
this one write, or as many as it had in flight. Plan parts and statistics of one run have equal bytes whoever writes
them. An older mask over a newer one is found by `verify`, and `redo` makes it again.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from maskfleet.jobs.errors import Locked, StorageError
from maskfleet.jobs.storage.contract import Storage

FRESH = 1.0
"""Seconds for which a passed check counts. Taking over from a silent holder takes far longer."""

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Clock that counts the sleep of a machine too; Linux alone has one."""

_RECORD = re.compile(r"(\d{6,})\.[^/]+")


def generation_of(name: str) -> int:
    """Return the generation of a file in the lock's folder; 0 for a foreign file."""
    found = _RECORD.fullmatch(name)
    return int(found[1]) if found else 0


def newest(storage: Storage) -> int:
    """Return the highest generation of an output's lock; 0 if it was never held."""
    return max((generation_of(name) for name in storage.names("lock")), default=0)


class Fence:
    """A lock holder's right to write, valid until another driver takes over. Safe from several threads.

    Args:
        storage: Output storage.
        generation: Generation of the lock held.

    Attributes:
        storage: The same storage, checked before each write or deletion.
    """

    def __init__(self, storage: Storage, generation: int) -> None:
        self._storage = storage
        self.generation = generation
        self.storage = cast("Storage", _Fenced(storage, self.recheck))
        self._checking = threading.Lock()
        self._checked: tuple[float, float] | None = None

    def check(self) -> None:
        """Check that no other driver has taken over.

        Raises:
            Locked: Another driver has taken over.
        """
        began = _clocks()
        if newest(self._storage) > self.generation:
            raise Locked(
                f"another run took over {self._storage.root} while this one did not respond; wait for that run to end"
            )
        self._checked = began

    def recheck(self) -> None:
        """Check again, unless a check has passed within the last second. Raises as `check`."""
        if not self._is_fresh():
            with self._checking:
                if not self._is_fresh():
                    self.check()

    def _is_fresh(self) -> bool:
        if self._checked is None:
            return False
        (boot, wall), (boot_then, wall_then) = _clocks(), self._checked  # asked for every mask
        return abs(boot - boot_then) < FRESH and abs(wall - wall_then) < FRESH


class _Fenced:
    """A storage whose changes are checked first. What is created if absent, or only read, passes as it is."""

    def __init__(self, storage: Storage, check: Callable[[], None]) -> None:
        self._storage, self._check = storage, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def write(self, path: str, data: bytes) -> None:
        self._check()
        self._storage.write(path, data)

    def export(self, path: str, data: bytes) -> None:
        self._check()
        self._storage.export(path, data)

    def export_all(self, items: Iterable[tuple[str, bytes]]) -> dict[str, StorageError]:
        return self._storage.export_all(items, before=self._check)

    def delete(self, path: str) -> None:
        self._check()
        self._storage.delete(path)

    def discard(self, path: str) -> None:
        self._check()
        self._storage.discard(path)


def _clocks() -> tuple[float, float]:
    # Two clocks: neither counts every kind of pause of a process, a machine and a virtual machine.
    return time.clock_gettime(_BOOT_CLOCK), time.time()
