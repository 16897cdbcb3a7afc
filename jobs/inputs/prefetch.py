"""Iterators running in threads, a few items ahead of their consumer."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

_ITEMS_AHEAD = 8
_POLL_SECONDS = 0.2


class Prefetched(Generic[T]):
    """An iterator in a thread of its own. Iterate once, or close it.

    The thread waits while it is `_ITEMS_AHEAD` items ahead, so that memory stays bounded.

    Args:
        make: Returns the iterator. Runs in the thread.
    """

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._closed = threading.Event()
        self._queue: Queue[T | BaseException | None] = Queue(_ITEMS_AHEAD)
        threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """End the thread and drop its further items."""
        self._closed.set()

    def _work(self) -> None:
        try:
            for item in self._make():
                self._put(item)
                if self._closed.is_set():
                    return
            self._put(None)
        except BaseException as error:  # raised again in the consumer
            self._put(error)

    def _put(self, item: T | BaseException | None) -> None:
        while not self._closed.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_POLL_SECONDS)
                return
