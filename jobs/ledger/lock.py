"""The lock that keeps a second driver away from an output.

`lock/<generation>.json`, each created if absent: who creates the highest generation holds the
output. A holder renews its record; one that has not for `STALE` seconds, or whose process is known
to be dead, is succeeded by the next generation, and finds that out at its next renewal. So a driver
that was killed is replaced at once on the same machine, and after `STALE` seconds on another.

The generation is also the fencing token: whoever commits in the name of a holder, a worker or the driver itself, looks
first whether there is a higher one (`Fence`). So a holder that was taken for dead and wakes up again writes no record.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from maskfleet.jobs.errors import Locked, MaskfleetError, NotFound, Skipped, StorageError
from maskfleet.jobs.ledger.commit import nonce
from maskfleet.jobs.ledger.fence import Fence, newest
from maskfleet.jobs.storage.contract import Storage

RENEW = 10.0
"""Seconds between renewals."""

STALE = 60.0
"""Seconds without one after which a holder on another machine counts as dead."""


class Lock:
    """Holds an output from construction to `release`; a context does both.

    Attributes:
        lost: Set when another driver took over; then nothing more may be written.

    Raises:
        Locked: Another run holds it.
    """

    def __init__(self, storage: Storage, *, renew: float = RENEW, stale: float = STALE) -> None:
        self._storage = storage
        self._renew, self._stale = renew, stale
        self._nonce = nonce()
        self.lost = threading.Event()
        self._done = threading.Event()
        self._generation = self._acquire()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def fence(self) -> Fence:
        """For all that commits in this holder's name."""
        return Fence(self._storage, self._generation)

    def release(self) -> None:
        """Let others in."""
        if not self._done.is_set():
            self._done.set()
            self._thread.join()
            if not self.lost.is_set():
                with suppress(StorageError):
                    self._storage.write(self._path(self._generation), self._record(released=True))

    def _acquire(self) -> int:
        before = self._newest()
        if before:
            self._refuse_if_held(before)
        mine = before + 1
        created = self._storage.create(self._path(mine), self._record())
        # Two may have seen the same newest; and after a lost response "exists" may be our own record.
        if (not created and self._read(mine).get("nonce") != self._nonce) or self._newest() != mine:
            raise Locked(f"another run has just taken {self._storage.root}; wait for it, or give another output")
        for generation in range(max(1, mine - 8), mine):
            self._storage.delete(self._path(generation))
        return mine

    def _refuse_if_held(self, generation: int) -> None:
        holder = self._read(generation)
        if not holder or holder.get("released"):
            return
        here = _place()
        if here is not None and holder.get("place") == here and not _alive(holder):
            return
        # A process that is there and yet not heard of hangs or is stopped; the fence keeps it out when it wakes up.
        if time.time() - float(holder.get("renewed", 0)) > self._stale:
            return
        raise Locked(
            f"{self._storage.root} is held by process {holder.get('pid')} on {holder.get('host')} "
            f"(renewed {time.time() - float(holder.get('renewed', 0)):.0f} s ago); wait for that run, stop it, "
            "or give another output"
        )

    def _keep(self) -> None:
        while not self._done.wait(self._renew):
            try:
                if self._newest() > self._generation:
                    self.lost.set()
                    return
                self._storage.write(self._path(self._generation), self._record())
            except MaskfleetError:
                continue  # storage is away for now; the others judge by their clocks, and the fence by the storage

    def _newest(self) -> int:
        return newest(self._storage)

    def _path(self, generation: int) -> str:
        return f"lock/{generation:06}.json"

    def _read(self, generation: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._storage.read(self._path(generation)))
        except NotFound:
            return {}
        return record

    def _record(self, *, released: bool = False) -> bytes:
        return json.dumps(
            {
                "nonce": self._nonce,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "place": _place(),
                "renewed": time.time(),
                "released": released,
            }
        ).encode()


def locked(
    storage: Storage, on_overlap: Literal["skip", "fail", "wait"], stopped: Callable[[], bool] | None = None
) -> Lock:
    """The lock, or what the job says where another run holds it.

    Raises:
        Locked: Another run holds it, and is not waited for.
        Skipped: It is to be left at that.
    """
    if on_overlap == "wait":
        return waited(storage, stopped)
    try:
        return Lock(storage)
    except Locked as error:
        if on_overlap == "skip":
            raise Skipped(f"skipped: {error}") from error
        raise


def waited(storage: Storage, stopped: Callable[[], bool] | None = None, *, pause: float = 1.0) -> Lock:
    """The lock, once whoever holds it has let it go or is gone.

    Args:
        storage: The output.
        stopped: Asked between tries; True ends the wait.
        pause: Seconds between tries.

    Raises:
        Locked: `stopped` said so.
    """
    while True:
        try:
            return Lock(storage)
        except Locked:
            if stopped is not None and stopped():
                raise
            time.sleep(pause)


def _place() -> str | None:
    """Where process ids mean the same: this boot of this machine, and this container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _alive(holder: dict[str, Any]) -> bool:
    started = _started(int(holder["pid"]))
    return started is not None and started == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks since boot, so that a reused id is not taken for it."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
