"""Calls that wait for storage: one after another while storage is fast, in parallel once it is slow."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 16
_SLOW_SECONDS = 1e-3
"""Mean seconds per call above which calls are made in parallel: then they are waiting, not work."""


class Pace:
    """Calls a function for each item, at the pace of the last calls.

    Attributes:
        slow: Whether the last calls were slow.
    """

    def __init__(self) -> None:
        self.slow = False
        self._threads: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> tuple[list[Result], float]:
        """Return the result for each item, in order, and the mean seconds per item."""
        if not items:
            return [], 0.0
        began = time.perf_counter()
        if self.slow:

            def timed(item: Item) -> tuple[Result, float]:
                began = time.perf_counter()
                return function(item), time.perf_counter() - began

            self._threads = self._threads or ThreadPoolExecutor(_THREADS)
            timings = list(self._threads.map(timed, items))
            results, waited = [result for result, _ in timings], sum(seconds for _, seconds in timings)
        else:
            results = [function(item) for item in items]
            waited = time.perf_counter() - began
        self.slow = waited > _SLOW_SECONDS * len(items)
        return results, (time.perf_counter() - began) / len(items)
