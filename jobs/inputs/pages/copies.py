"""Local copies of files in buckets and containers, for the time in which their pages are read: a file is fetched once.

A page is then read by its decoding process, which needs only a part of the file.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import BinaryIO

from maskfleet.jobs.inputs.pages.names import page_of, stacks_among

Open = Callable[[], AbstractContextManager[BinaryIO]]
"""Opens the file of a page as a local file."""


class Copy:
    """A local copy, deleted with this object.

    Args:
        opened: The copy, to be entered.

    Attributes:
        path: Path of the copy. It has no name of its own, so that a killed process leaves none behind.
    """

    def __init__(self, opened: AbstractContextManager[BinaryIO]) -> None:
        stack = ExitStack()
        self.path = f"/proc/self/fd/{stack.enter_context(opened).fileno()}"
        weakref.finalize(self, stack.close)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return os.stat(self.path).st_size


class Copies:
    """The copies of a shard. Safe from several threads.

    Args:
        urls: URLs of the shard's images.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        self._left = stacks_among(urls)
        self._locks = {file: threading.Lock() for file in self._left}
        self._held: dict[str, Copy] = {}

    def holds(self, url: str) -> bool:
        """Return whether a URL names one of several pages of a file in this shard."""
        return bool(self._locks) and page_of(url).file in self._locks

    def copy(self, url: str, opened: Open) -> Copy:
        """Return the copy of a page's file. Each page asks once; the last one takes the copy away.

        Args:
            url: URL of the page.
            opened: See `Open`.

        Raises:
            StorageError: As `opened`.
        """
        file = page_of(url).file
        with self._locks[file]:
            copy = self._held.get(file) or Copy(opened())
            self._left[file] -= 1
            if self._left[file]:
                self._held[file] = copy
            else:
                self._held.pop(file, None)
        return copy
