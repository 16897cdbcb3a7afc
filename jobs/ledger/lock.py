"""The lock: keeps a second driver away from an output.

    lock/<generation>.json      created if absent; its creator holds the output and renews the record
    lock/<generation>.<nonce>   the creator's claim; two claims of one generation void each other

The highest generation counts. A holder is superseded by the next generation if its record has not changed for `STALE`
seconds, by the clock of the process waiting for it, or if its process is known to be dead; it notices at its next
renewal. A killed driver is thus replaced at once on the same machine, and after `STALE` seconds on another. Clocks of
two machines are never compared to take an output over.

Storage that ignores the condition lets two drivers create one generation. Each therefore writes a claim of its own name
and lists the claims afterwards: the later of two listings shows both, so at most one of them holds the output.

The generation is also the fencing token. Before a worker or driver writes, it checks that there is no higher generation
(`Fence`). A holder taken for dead that wakes up again writes nothing.
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
from maskfleet.jobs.ledger.fence import Fence, generation_of, newest
from maskfleet.jobs.storage.contract import Storage

RENEW = 10.0
"""Seconds between renewals."""

STALE = 60.0
"""Seconds without a renewal after which a holder on another machine counts as dead."""

_KEPT = 8
"""Earlier generations whose files are deleted. Without the right to delete, no more are tried."""

_PAUSE = 1.0
"""Seconds between two looks at another run's record."""


_UNTIL_IT_ENDS = "waiting for that run to end"

_UNTIL_IT_IS_STALE = f"it may be dead: waiting for up to {STALE:.0f} s for a sign of life"


class Watch:
    """What this process has seen of another run's record, over several looks.

    Attributes:
        alive: Whether the holder is known to be alive: its record has changed, or is fresh by both clocks.
    """

    def __init__(self) -> None:
        self._seen: bytes | None = None
        self._since = 0.0
        self.alive = False

    def silent_for(self, record: bytes, *, fresh: bool) -> float:
        """Return the seconds since the record was first seen as it is.

        Args:
            record: Content of the record.
            fresh: Whether it is fresh by its holder's clock and by this one.
        """
        now = time.monotonic()
        if record != self._seen:
            self.alive = fresh or self._seen is not None
            self._seen, self._since = record, now
        return now - self._since


class Lock:
    """The exclusive right to write to an output, held from construction until `release`. Also a context manager.

    Args:
        storage: Output storage.
        renew: Seconds between renewals.
        stale: Seconds without a renewal after which another holder counts as dead.
        watch: What earlier tries have seen of another holder.

    Attributes:
        lost: Set once another driver has taken over. Nothing more may be written then.
        fence: Fence for everything written on behalf of this holder.

    Raises:
        Locked: Another run holds the output.
    """

    def __init__(
        self, storage: Storage, *, renew: float = RENEW, stale: float = STALE, watch: Watch | None = None
    ) -> None:
        self._storage = storage
        self._renew, self._stale = renew, stale
        self._nonce = nonce()
        self.lost = threading.Event()
        self._done = threading.Event()
        self._generation = self._acquire(watch or Watch())
        self.fence = Fence(storage, self._generation)
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the output."""
        if not self._done.is_set():
            self._done.set()
            self._thread.join()
            if not self.lost.is_set():
                with suppress(StorageError):
                    self._storage.write(_path(self._generation), self._record(released=True))

    def _acquire(self, watch: Watch) -> int:
        before = newest(self._storage)
        if before:
            self._refuse_if_held(before, watch)
        mine = before + 1
        created = self._storage.create(_path(mine), self._record())
        # After a lost response, "exists" may mean our own record.
        if not (created or self._is_mine(mine)) or not self._is_claimed(mine):
            raise Locked(f"another run has just locked {self._storage.root}; wait for it, or choose another output")
        for name in self._storage.names("lock"):
            if mine - _KEPT <= generation_of(name) < mine:
                self._storage.discard(f"lock/{name}")
        return mine

    def _is_claimed(self, mine: int) -> bool:
        """Claim a generation created by this process. Return False if another process has claimed it too."""
        self._storage.write(f"lock/{_claim(mine, self._nonce)}", self._record())
        names = self._storage.names("lock")
        rivals = [name for name in _claims(names, mine) if name != _claim(mine, self._nonce)]
        if not rivals and max(map(generation_of, names)) == mine and self._is_mine(mine):
            return True
        self._storage.discard(f"lock/{_claim(mine, self._nonce)}")
        with suppress(NotFound):  # it may hold the output, and our record has replaced its own
            for name in rivals:
                self._storage.write(_path(mine), self._storage.read(f"lock/{name}"))
        return False

    def _is_mine(self, generation: int) -> bool:
        return _parsed(self._read(_path(generation))).get("nonce") == self._nonce

    def _refuse_if_held(self, generation: int, watch: Watch) -> None:
        record = self._read(_path(generation))
        if _parsed(record).get("released"):
            return
        records = [record, *(self._read(f"lock/{name}") for name in _claims(self._storage.names("lock"), generation))]
        holders = [holder for holder in map(_parsed, records) if holder and not _is_dead(holder)]
        if not holders:
            return
        age = time.time() - float(holders[0].get("renewed", 0))
        # A live process that stopped renewing hangs or is suspended. The fence keeps it out when it wakes up.
        if watch.silent_for(b"".join(records), fresh=0 <= age < self._stale) > self._stale:
            return
        raise Locked(
            f"{self._storage.root} is held by process {holders[0].get('pid')} on {holders[0].get('host')} "
            f"(renewed {max(0, age):.0f} s ago); wait for that run, stop it, or choose another output"
        )

    def _keep(self) -> None:
        while not self._done.wait(self._renew):
            try:
                if newest(self._storage) > self._generation:
                    self.lost.set()
                    return
                self._storage.write(_path(self._generation), self._record())
            except (MaskfleetError, OSError):
                continue  # storage is unreachable for now; other drivers watch the record, the fence asks storage

    def _read(self, path: str) -> bytes:
        try:
            return self._storage.read(path)
        except NotFound:
            return b""

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
    storage: Storage,
    on_overlap: Literal["skip", "fail", "wait"],
    stopped: Callable[[], bool] | None = None,
    *,
    waiting: Callable[[str], object] = lambda _: None,
    pause: float = _PAUSE,
) -> Lock:
    """Acquire the lock, or follow the job's `run.on_overlap` if another run holds it.

    A holder that may be dead is watched for up to `STALE` seconds and then superseded.

    Args:
        storage: Output storage.
        on_overlap: `fail`, `skip` or `wait`.
        stopped: Polled while waiting. Returns True to stop waiting.
        waiting: Called with a sentence when a wait begins: who holds the lock, since when, and how long the wait lasts.
        pause: Seconds between tries.

    Raises:
        Locked: Another run holds the output, and `on_overlap` is `fail` or waiting was stopped.
        Skipped: Another run holds the output, and `on_overlap` is `skip`.
    """
    watch = Watch()
    said: set[str] = set()
    while True:
        try:
            return Lock(storage, watch=watch)
        except Locked as error:
            if watch.alive and on_overlap == "skip":
                raise Skipped(f"skipped: {error}") from error
            if (watch.alive and on_overlap == "fail") or (stopped is not None and stopped()):
                raise
            why = _UNTIL_IT_ENDS if watch.alive else _UNTIL_IT_IS_STALE
            if why not in said:
                said.add(why)
                waiting(f"{str(error).partition(';')[0]}; {why}")
        time.sleep(pause)


def _path(generation: int) -> str:
    return f"lock/{generation:06}.json"


def _claim(generation: int, nonce: str) -> str:
    return f"{generation:06}.{nonce}"


def _claims(names: list[str], generation: int) -> list[str]:
    """Return the names of a generation's claims."""
    return [name for name in names if generation_of(name) == generation and not name.endswith(".json")]


def _parsed(record: bytes) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(record or b"{}")
    except ValueError:  # if nobody renews it, it becomes stale
        return {"host": "an unknown machine"}
    return parsed


def _place() -> str | None:
    """Return the scope of process ids: the boot of this machine and the container. None if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether a holder is known to be dead: its process id is of this place, and nobody or another has it."""
    here = _place()
    if here is None or holder.get("place") != here:
        return False
    started = _started(int(holder["pid"]))
    return started is None or started != holder.get("started")


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, to recognise reused ids. None if it is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
