"""Ctrl-C and SIGTERM: while shards are in progress the first signal waits for them; otherwise a signal stops at once.

Everything stored is crash-safe, so a stop may end a listing, a plan or the end of a run at any moment. Threads hanging
in a listing or in storage cannot be interrupted: a watchdog ends a process held up by them for seconds.
"""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from maskfleet.cluster.terminal.console import say
from maskfleet.jobs.errors import Stopped

STOPPED = 130
"""Exit code of a stopped run."""

_SECONDS = 5
"""Seconds that threads and processes have to end after a stop."""

_AFTER_SHARDS_SECONDS = 15
"""The same with workers on Ray, which ends more slowly."""

LAST_WORDS = "stopped; finished work is kept; run the same command to resume"
"""Printed when a run was stopped."""


class Stop:
    """Tells whether a signal has asked the run to stop. Call it to know.

    Args:
        last_words: Printed if the process has to be ended.
    """

    def __init__(self, last_words: str = LAST_WORDS) -> None:
        self._last_words = last_words
        self._asked = False
        self._draining = False
        self._alarm, self._set_alarm = os.pipe()
        self._watchdog = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._watchdog.start()

    def __call__(self) -> bool:
        return self._asked

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Enter while shards are in progress: the first signal then only sets the flag.

        Raises:
            Stopped: A signal came, and the shards in progress have ended.
        """
        self._draining = True
        try:
            yield
        finally:
            self._draining = False
            if self._asked:
                self._end_within(_AFTER_SHARDS_SECONDS)
        if self._asked:
            raise Stopped

    def handle(self, _number: int, _frame: object) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: No shard is in progress, or this is the second signal.
        """
        again, self._asked = self._asked, True
        # print is not safe in a signal handler.
        if self._draining and not again:
            os.write(2, b"\nstopping after the shards in progress; press Ctrl-C again to stop at once\n")
            return
        self._end_within(_SECONDS)
        # Not `Stopped`: handlers of foreign errors on the way would swallow it.
        raise KeyboardInterrupt

    def close(self) -> None:
        """End the watchdog."""
        self._end_within(0)
        self._watchdog.join()
        os.close(self._alarm)
        os.close(self._set_alarm)

    def _end_within(self, seconds: int) -> None:
        # A pipe, since locks of `threading` may be held where a signal interrupts.
        os.write(self._set_alarm, bytes([seconds]))

    def _watch(self) -> None:
        seconds: int | None = None
        while seconds != 0:
            if not select.select([self._alarm], [], [], seconds)[0]:
                os.write(2, f"{self._last_words}\n".encode())
                os._exit(STOPPED)
            seconds = os.read(self._alarm, 1)[0]


@contextmanager
def stopping(last_words: str = LAST_WORDS) -> Iterator[Stop]:
    """Handle Ctrl-C and SIGTERM within this context. See `Stop`."""
    stop = Stop(last_words)
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


def stopped(last_words: str = LAST_WORDS) -> int:
    """Say how a stopped command is resumed, and return its exit code."""
    say(last_words)
    return STOPPED
