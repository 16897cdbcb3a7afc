"""Messages between this process and a process reading Parquet: JSON on the socket, bytes in a block of shared memory.

This process asks; the other one reads the file through it, piece by piece, and answers with bytes and a header. Nothing
from the other process is unpickled or parsed by native code here.
"""

import json
import mmap
from typing import Any, NamedTuple, cast

from maskfleet.jobs.isolation.channel import Channel

AREA = 16 * 2**20
"""Size of the shared block in bytes, and so of a piece. Untouched pages take no memory."""

REFUSALS = ("damaged_parquet", "encrypted", "no_column", "no_images", "too_large_parquet")
"""Error classes that the other process may give."""

_MOST_ROWS = 10**6
"""Largest number of rows in a file that has more rows than bytes. Such a file says the same row again and again."""

LONGEST_HEADER = 64 * 2**20
"""Size in bytes of the largest message on the socket."""


class Answer(NamedTuple):
    """The answer to a request.

    Attributes:
        header: JSON value.
        data: Bytes.
    """

    header: Any
    data: bytes


class Unreadable(Exception):
    """The file, or a part of it, cannot be read.

    Attributes:
        error_class: Key of `parquet_files.ParquetFiles.faults`.
    """

    def __init__(self, error_class: str) -> None:
        super().__init__(error_class)
        self.error_class = error_class


def too_many(rows: int, size: int) -> bool:
    """Return whether a file of `size` bytes has more rows than any real one."""
    return rows > max(_MOST_ROWS, size)


class Server:
    """The other process's side of the messages.

    Args:
        channel: Channel to the process that asks.
        block: The shared block.
    """

    def __init__(self, channel: Channel, block: mmap.mmap) -> None:
        self._channel, self._block = channel, block

    def request(self) -> list[Any]:
        """Wait for a request: its name and its arguments.

        Raises:
            EOFError: The other side is closed.
        """
        request: list[Any] = json.loads(self._channel.receive())
        return request

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Return bytes of the file; see `jobs.storage.ranged.Ranges`.

        Raises:
            OSError: The other process could not read them.
        """
        data = bytearray(length)  # filled in place: a page may be as large as half the memory
        for done in range(0, length, AREA):
            size = min(AREA, length - done)
            if self._exchange("read", start + done, size) != size:
                raise OSError("the file cannot be read")
            data[done : done + size] = memoryview(self._block)[:size]
        return cast("bytes", data)  # Arrow takes any buffer, and a copy would need the memory again

    def answer(self, answer: Answer) -> None:
        """Send an answer."""
        data = memoryview(answer.data)
        for start in range(0, len(data), AREA):
            piece = data[start : start + AREA]
            self._block[: len(piece)] = piece
            self._exchange("data", len(piece))
        self._send("done", answer.header)

    def refuse(self, refusal: Unreadable) -> None:
        """Answer that there is nothing to be read."""
        self._send("fault", refusal.error_class)

    def _exchange(self, *message: Any) -> int:
        self._send(*message)
        return int(json.loads(self._channel.receive()))

    def _send(self, *message: Any) -> None:
        self._channel.send(json.dumps(message).encode())
