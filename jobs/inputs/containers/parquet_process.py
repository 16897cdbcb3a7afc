"""A process reading Parquet as its parent sees it: it is asked, served with the ranges that it reads, and watched."""

import json
import time
from collections.abc import Hashable
from typing import Any

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.inputs.containers.parquet_protocol import AREA, LONGEST_HEADER, REFUSALS, Answer, Unreadable
from maskfleet.jobs.isolation.block import shared_block
from maskfleet.jobs.isolation.process import DidNotStart, Died, Isolated
from maskfleet.jobs.storage.ranged import RangedFile

TRIES = 3
"""Processes that one request may cost. More than one, since a process can also be killed from outside."""

MEMORY = 4 * 2**30
"""Memory limit of a process in bytes, beside what the interpreter itself needs. Arrow writes all images of a row group
into one page if they are large, and reading needs the page twice: compressed, and not."""

PROGRAM = "maskfleet.jobs.inputs.containers.parquet_program"

_SECONDS = 60.0
"""Time of the process for one request, without the time of storage."""

_BYTES_PER_SECOND = 2**24
"""More time is given for larger ranges: a file may have to be read from the beginning of a large row group."""

_READ_TWICE = 2
_READ_MORE = 64 * 2**20
"""Limit of the bytes read for one request: twice the file, and some more. Hostile footers name one place often."""

_MOST_DATA = 2**29 + 2 * AREA


class ReadingProcess:
    """A process reading Parquet or another foreign format, with at most one file open.

    Args:
        module: Its program.

    Attributes:
        version: The file that is open, or None.
        usable: Whether it answers further requests. If not, stop it.

    Raises:
        MaskfleetError: The process does not start.
    """

    def __init__(self, module: str = PROGRAM) -> None:
        self.version: Hashable = None
        self.usable = True
        self._stopped = False
        self._block = shared_block(AREA)
        for attempt in range(1, TRIES + 1):
            try:
                self._process = Isolated(
                    module, {"block": self._block.descriptor}, memory=MEMORY, seconds=_SECONDS,
                    descriptors=[self._block.descriptor],
                )  # fmt: skip
                break
            except DidNotStart as error:
                if error.by_itself or attempt == TRIES:
                    self._block.close()
                    raise MaskfleetError(
                        f"a process reading foreign files failed to start ({error}); check that maskfleet is installed "
                        "for this interpreter"
                    ) from error
        self._channel = self._process.channel

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def stop(self) -> None:
        """Kill the process."""
        if not self._stopped:
            self._stopped, self.usable = True, False
            self._process.stop()
            self._block.close()

    def ask(self, file: RangedFile, name: str, *arguments: Any) -> Answer:
        """Ask for something in a file.

        Args:
            file: The file.
            name: Name of the request; see `parquet_program.Reader`.
            arguments: Its arguments, serialisable as JSON.

        Raises:
            Died: The process died, or broke a limit.
            Unreadable: The file, or a part of it, cannot be read.
            StorageError: Storage failed, or the file is missing or has changed.
        """
        self.usable = False  # until this has ended well
        served = _Served(file)
        try:
            kind, result = self._exchange(served, [name, *arguments])
            if kind not in ("done", "fault"):
                raise ValueError("an unknown kind of message")
        except TimeoutError as error:
            raise Died("timeout", "reading takes too long") from error
        except (EOFError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise Died("crash", "it killed the process reading it") from error
        if served.failure is not None:
            self.usable = True
            raise served.failure
        if kind == "fault":
            self.usable = result != "too_large_parquet"  # after that, its memory is in pieces
            raise Unreadable(result if result in REFUSALS else "damaged_parquet")
        self.usable = True
        return Answer(result, served.data)

    def _exchange(self, served: "_Served", request: list[Any]) -> list[Any]:
        """Send a request, serve the process until its last message, and return this message."""
        self._channel.send(json.dumps(request).encode(), seconds=_SECONDS)
        while True:
            began = time.monotonic()
            received = self._channel.receive(seconds=max(0.001, served.seconds), most=LONGEST_HEADER)
            served.seconds -= time.monotonic() - began
            message: list[Any] = json.loads(received)
            if message[0] == "read":
                data = served.read(*message[1:])
                self._block.map[: len(data or b"")] = data or b""
                self._reply(-1 if data is None else len(data))
            elif message[0] == "data":
                served.take(bytes(memoryview(self._block.map)[: int(message[1])]))
                self._reply(0)
            else:
                return message

    def _reply(self, number: int) -> None:
        self._channel.send(b"%d" % number, seconds=_SECONDS)


class _Served:
    """What a process has read and sent for one request, and the limits of both.

    Args:
        file: The file it reads.

    Attributes:
        seconds: Time that it has left.
        failure: Failure of storage, if any.
    """

    def __init__(self, file: RangedFile) -> None:
        self.seconds = _SECONDS
        self.failure: Exception | None = None
        self._file = file
        self._left = _READ_TWICE * file.size() + _READ_MORE
        self._pieces: list[bytes] = []
        self._held = 0

    @property
    def data(self) -> bytes:
        """All bytes it has sent."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def read(self, start: int, length: int) -> bytes | None:
        """Return a range of the file, or None if storage fails."""
        self._left -= length
        self.seconds += length / _BYTES_PER_SECOND
        if start < 0 or not 0 < length <= AREA or self._left < 0:
            raise ValueError("the process reads what no reader needs")
        try:
            return self._file.at(start, length)
        except Exception as error:  # raised again once the process has been told
            self.failure = error
            return None

    def take(self, data: bytes) -> None:
        """Keep a piece of the answer."""
        self._held += len(data)
        if not data or self._held > _MOST_DATA:
            raise ValueError("the process sends what nobody asked for")
        self._pieces.append(data)
