"""Ctrl-C and SIGTERM: the first signal stops after the shards in progress, the second one at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maskfleet.cluster.terminal.console import say

STOPPED = 130
"""Exit code of a stopped run."""


@contextmanager
def draining() -> Iterator[Callable[[], bool]]:
    """Yield a function returning whether a signal has asked the run to stop.

    A second signal raises KeyboardInterrupt.
    """
    asked = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        # print is not safe in a signal handler.
        os.write(2, b"\nstopping after the shards in progress; press Ctrl-C again to stop at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped() -> int:
    """Tell the user how to resume a stopped run, and return its exit code."""
    say("stopped; finished work is kept; run the same command to resume")
    return STOPPED
