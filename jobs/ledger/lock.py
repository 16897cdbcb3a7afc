"""The lock: keeps a second driver away from an output.

The files are `lock/<generation>.json`, each created if absent. The creator of the highest generation holds the output
and renews its record. A holder is superseded by the next generation if it has not renewed for `STALE` seconds or its
process is known to be dead; it notices at its next renewal. A killed driver is thus replaced at once on the same
machine, and after `STALE` seconds on another.

The generation is also the fencing token. Before a worker or driver commits, it checks that there is no higher
generation (`Fence`). A holder taken for dead that wakes up again commits nothing.
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
"""Seconds without a renewal after which a holder on another machine counts as dead."""


class Lock:
    """The exclusive right to write to an output, held from construction until `release`. Also a context manager.

    Args:
        storage: Output storage.
        renew: Seconds between renewals.
        stale: Seconds without a renewal after which another holder counts as dead.

    Attributes:
        lost: Set once another driver has taken over. Nothing more may be written then.

    Raises:
        Locked: Another run holds the output.
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
        """Fence for everything committed on behalf of this holder."""
        return Fence(self._storage, self._generation)

    def release(self) -> None:
        """Release the output."""
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
        # Two drivers may have seen the same generation. After a lost response, "exists" may mean our own record.
        if (not created and self._read(mine).get("nonce") != self._nonce) or self._newest() != mine:
            raise Locked(f"another run has just locked {self._storage.root}; wait for it, or choose another output")
        for generation in range(max(1, mine - 8), mine):
            self._storage.discard(self._path(generation))
        return mine

    def _refuse_if_held(self, generation: int) -> None:
        holder = self._read(generation)
        if not holder or holder.get("released"):
            return
        here = _place()
        if here is not None and holder.get("place") == here and not _alive(holder):
            return
        # A live process that stopped renewing hangs or is suspended. The fence keeps it out when it wakes up.
        if time.time() - float(holder.get("renewed", 0)) > self._stale:
            return
        raise Locked(
            f"{self._storage.root} is held by process {holder.get('pid')} on {holder.get('host')} "
            f"(renewed {time.time() - float(holder.get('renewed', 0)):.0f} s ago); wait for that run, stop it, "
            "or choose another output"
        )

    def _keep(self) -> None:
        while not self._done.wait(self._renew):
            try:
                if self._newest() > self._generation:
                    self.lost.set()
                    return
                self._storage.write(self._path(self._generation), self._record())
            except MaskfleetError:
                continue  # storage is unreachable for now; other drivers judge by their clocks, the fence by storage

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
    """Acquire the lock, or follow the job's `run.on_overlap` if another run holds it.

    Args:
        storage: Output storage.
        on_overlap: `fail`, `skip` or `wait`.
        stopped: Polled while waiting. Returns True to stop waiting.

    Raises:
        Locked: Another run holds the output, and `on_overlap` is `fail` or waiting was stopped.
        Skipped: Another run holds the output, and `on_overlap` is `skip`.
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
    """Acquire the lock once its holder has released it or is gone.

    Args:
        storage: Output storage.
        stopped: Polled between tries. Returns True to stop waiting.
        pause: Seconds between tries.

    Raises:
        Locked: `stopped` returned True while another run held the output.
    """
    while True:
        try:
            return Lock(storage)
        except Locked:
            if stopped is not None and stopped():
                raise
            time.sleep(pause)


def _place() -> str | None:
    """Return the scope of process ids: the boot of this machine and the container. None if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _alive(holder: dict[str, Any]) -> bool:
    started = _started(int(holder["pid"]))
    return started is not None and started == holder.get("started")


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, to recognise reused ids. None if it is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
