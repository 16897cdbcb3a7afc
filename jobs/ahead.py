"""Iterators that are worked through in threads, a few ahead of the one whose items are taken."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

_ITEMS = 1024
_CHUNKS = 8
_POLL_SECONDS = 0.2


class Ahead(Generic[T]):
    """An iterator in a thread of its own. Iterate once, or close it.

    Memory stays bounded: one that is `_CHUNKS` chunks of items ahead of its reader waits.

    Args:
        make: Makes the iterator, in the thread.
    """

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._closed = threading.Event()
        self._queue: Queue[list[T] | BaseException | None] = Queue(_CHUNKS)
        threading.Thread(target=self._work, name="ahead", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield from item
        finally:
            self.close()

    def close(self) -> None:
        """End the thread; its further items are lost."""
        self._closed.set()

    def _work(self) -> None:
        chunk: list[T] = []
        try:
            for item in self._make():
                chunk.append(item)
                if len(chunk) >= _ITEMS:
                    self._put(chunk)
                    chunk = []
                if self._closed.is_set():
                    return
            self._put(chunk)
            self._put(None)
        except BaseException as error:  # raised again where the items are taken
            self._put(error)

    def _put(self, item: list[T] | BaseException | None) -> None:
        while not self._closed.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_POLL_SECONDS)
                return
