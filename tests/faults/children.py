"""Forked children: a function in a process of its own, without the seconds that imports take.

The parent must have imported everything and used nothing: no S3 client, no Ray, no thread that holds a lock.
"""

import os
import pickle
import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

LIMIT = 240.0
"""Seconds after which a child counts as hanging."""


@dataclass(frozen=True)
class Ended:
    """The end of a child.

    Attributes:
        signal: Number of the signal that ended it; 0 if it returned or raised.
        result: What its function returned.
        error: The exception that its function raised, as "Class: message", or "" without one.
        trace: Traceback of that exception.
    """

    signal: int = 0
    result: Any = None
    error: str = ""
    trace: str = ""

    @property
    def ok(self) -> bool:
        return not self.signal and not self.error

    def value(self) -> Any:
        """Return the result, or raise what went wrong."""
        if not self.ok:
            raise RuntimeError(f"the child ended with signal {self.signal}; {self.error}\n{self.trace}")
        return self.result


class Child:
    """A function running in a forked child.

    Args:
        work: The function; its result must be picklable.
    """

    def __init__(self, work):
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
            self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        try:
            os.setpgid(0, 0)  # Ctrl-C in the terminal is the parent's
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._reader)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(_ended(work), pipe)
        finally:
            os._exit(0)

    def frozen(self, seconds: float = LIMIT) -> bool:
        """Wait until the child has stopped itself with SIGSTOP. Returns False if it ended instead."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = _state(self.pid)
            if state in "Tt":
                return True
            if state == "Z":
                return False
            time.sleep(0.001)
        raise TimeoutError(f"child {self.pid} neither froze nor ended within {seconds:.0f} s")

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def ended(self, seconds: float = LIMIT) -> Ended:
        """Wait for the end. A child that hangs is killed and counts as a TimeoutError."""
        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            with os.fdopen(self._reader, "rb") as pipe:
                data = pipe.read()
            _, status = os.waitpid(self.pid, 0)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Ended(error=f"TimeoutError: the child hung for {seconds:.0f} s")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if os.WIFSIGNALED(status):
            return Ended(signal=os.WTERMSIG(status))
        return pickle.loads(data) if data else Ended(signal=signal.SIGKILL)  # `os._exit` amid a storage call


def forked(work, seconds: float = LIMIT) -> Ended:
    """Return how a function ended in a forked child."""
    return Child(work).ended(seconds)


def _ended(work) -> Ended:
    try:
        return Ended(result=work())
    except BaseException as error:
        return Ended(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())


def _alarm(*_):
    raise TimeoutError


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
