"""Messages between a process and an isolated one: bytes and file descriptors on a Unix socket, with deadlines."""

import array
import select
import socket
import struct
import time
from collections.abc import Sequence

_LENGTH = struct.Struct("<I")
_MOST_BYTES = 2**30
_MOST_DESCRIPTORS = 64


class Channel:
    """One end of a connection. One thread at a time may use it.

    Args:
        end: Connected Unix stream socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, data: bytes, *, seconds: float | None = None, descriptors: Sequence[int] = ()) -> None:
        """Send a message.

        Args:
            data: The message.
            seconds: Time limit in seconds; None waits for ever.
            descriptors: Open files to hand over; the other side gets copies of them.

        Raises:
            TimeoutError: The other side has not taken the message in time.
            OSError: The other side is closed.
        """
        message = _LENGTH.pack(len(data)) + data if len(data) < 2**16 else _LENGTH.pack(len(data))
        self._socket.settimeout(seconds)
        if descriptors:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            message = message[self._socket.sendmsg([message], [rights]) :]
        self._socket.sendall(message)  # its timeout is that of the whole message
        if len(data) >= 2**16:
            self._socket.sendall(data)

    def waiting(self, seconds: float) -> bool:
        """Wait for a message, or for the end of the connection, and return whether there is one."""
        return bool(self._poll.poll(seconds * 1000))

    def receive(self, *, seconds: float | None = None, most: int = _MOST_BYTES) -> bytearray:
        """Wait for a message and return it.

        Args:
            seconds: Time limit in seconds; None waits for ever.
            most: Size of the longest accepted message in bytes.

        Raises:
            EOFError: The other side is closed.
            TimeoutError: The message has not arrived in time.
            ValueError: The message is too long.
        """
        end = None if seconds is None else time.monotonic() + seconds
        self._socket.settimeout(seconds)
        return self._body(self._exactly(_LENGTH.size, end), end, most)

    def receive_files(self) -> tuple[bytearray, list[int]]:
        """Wait for a message and return it, and the descriptors handed over with it, to be closed by the caller.

        Raises:
            EOFError: The other side is closed.
        """
        # The descriptors come with the first byte of their message.
        head, descriptors, _, _ = socket.recv_fds(self._socket, _LENGTH.size, _MOST_DESCRIPTORS)
        if not head:
            raise EOFError
        return self._body(head + self._exactly(_LENGTH.size - len(head), None), None, _MOST_BYTES), descriptors

    def _body(self, head: bytes | bytearray, end: float | None, most: int) -> bytearray:
        (size,) = _LENGTH.unpack(head)
        if size > most:
            raise ValueError(f"a message of {size} bytes")
        return self._exactly(size, end)

    def _exactly(self, size: int, end: float | None) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
            count = self._socket.recv_into(rest, 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data
