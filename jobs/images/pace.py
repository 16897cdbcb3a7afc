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

        def timed(item: Item) -> tuple[Result, float]:
            began = time.perf_counter()
            return function(item), time.perf_counter() - began

        began = time.perf_counter()
        if self.slow:
            self._threads = self._threads or ThreadPoolExecutor(_THREADS)
            results = list(self._threads.map(timed, items))
        else:
            results = [timed(item) for item in items]
        self.slow = sum(seconds for _, seconds in results) > _SLOW_SECONDS * len(items)
        return [result for result, _ in results], (time.perf_counter() - began) / len(items)
