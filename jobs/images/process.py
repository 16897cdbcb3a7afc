"""One decoding process as its parent sees it: it is asked, watched, and replaced when it dies or hangs."""

import errno
import os
import stat
import time
from collections.abc import Sequence

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.images.contract import Limits, LocalFile
from maskfleet.jobs.images.pace import Pace
from maskfleet.jobs.images.protocol import POSITION, RECEIVING, File, Reply, Request, Settings, Unread, receive_replies
from maskfleet.jobs.isolation.block import Block
from maskfleet.jobs.isolation.process import DidNotStart, Died, Isolated
from maskfleet.jobs.timing.stage_timers import Resource

TRIES = 3
"""Processes that one image, or one start, may cost. More than one, since a process can also be killed from outside."""

READ_SECONDS = 120.0
"""Time limit of reading one file. Slow storage is no fault of an image, but nothing waits for ever."""

_MODULE = "maskfleet.jobs.images.decoder"


class DiedOn(Died):
    """A decoding process crashed or hung.

    Attributes:
        position: Position in its group of the image being decoded.
    """

    def __init__(self, error_class: str, message: str, position: int) -> None:
        super().__init__(error_class, message)
        self.position = position


class Stalled(Exception):
    """A decoding process waited too long for a file. Another one is ready."""


class DecoderProcess:
    """One decoding process and its channel. A dead process is replaced.

    Args:
        block: Shared block.
        cell: Offset in the block of the position of the image being decoded.
        limits: Limits of each image.
        codec: Decoding function, as `module:function`.

    Attributes:
        resource: Timer of the process.

    Raises:
        MaskfleetError: The process does not start.
    """

    def __init__(self, block: Block, *, cell: int, limits: Limits, codec: str) -> None:
        self.resource = Resource("decode")
        self._block, self._cell, self._limits = block, cell, limits
        self._pace = Pace()
        self._settings = Settings(
            block=block.descriptor, size=len(block.map), cell=cell, codec=codec, limits=limits
        ).to_json()
        self._start()

    def _start(self) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._process = Isolated(
                    _MODULE, self._settings, memory=self._limits.memory, seconds=self._limits.seconds,
                    descriptors=[self._block.descriptor],
                )  # fmt: skip
                break
            except DidNotStart as error:
                if error.by_itself or attempt == TRIES:
                    raise MaskfleetError(
                        f"a decoding process failed to start ({error}); check that maskfleet is installed for this "
                        "interpreter"
                    ) from error
        self._channel = self._process.channel

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def means(self) -> list[str]:
        """Means of the kernel holding the process; see `jobs.isolation.confinement.MEANS`."""
        return self._process.means

    def stop(self) -> None:
        """Kill the process."""
        self._process.stop()

    def ask(self, images: Sequence[bytes | LocalFile], slot: int, pages: Sequence[int] = ()) -> list[Reply]:
        """Decode a group of images.

        Args:
            images: Encoded images.
            slot: Offset in the block of the memory for their pixels.
            pages: See `protocol.Request`.

        Returns:
            Answers for the images up to the last one that fitted into the slot.

        Raises:
            DiedOn: The process died or was killed for its slowness. Another one is ready.
            Stalled: It waited too long for a file. Another one is ready.
        """
        POSITION.pack_into(self._block.map, self._cell, RECEIVING)
        try:
            request, opening = self._send(images, slot, pages)
            self._wait()
            replies = receive_replies(self._channel, request, self._limits, seconds=self._limits.seconds)
        except TimeoutError:
            position = self._position()
            self._replace()
            if RECEIVING < position < 0:
                raise Stalled from None
            message = f"it decoded for more than {self._limits.seconds:g} s"
            raise DiedOn("timeout", message, min(max(0, position), len(images) - 1)) from None
        except (EOFError, OSError, ValueError) as error:
            position = min(max(0, self._position()), len(images) - 1)
            self._replace()
            raise DiedOn("crash", "it killed the decoding process", position) from error
        return replies if not opening else [_later(reply, opening) for reply in replies]

    def _send(self, images: Sequence[bytes | LocalFile], slot: int, pages: Sequence[int]) -> tuple[Request, float]:
        """Send a request; return it, and the seconds of opening one of its files if that is slow."""
        files = [image for image in images if isinstance(image, LocalFile)]
        sent = [image for image in images if not isinstance(image, LocalFile)]
        opened, opening = self._pace.map(_opened, [file.path for file in files])
        handed = [descriptor for descriptor in opened if descriptor is not None]
        try:
            request = _request(images, slot, pages, opened)
            request.send(self._channel, sent, descriptors=handed, seconds=self._limits.seconds)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # the kernel's limit of descriptors on their way
                raise
            request = _request(images, slot, pages, [None] * len(files))
            request.send(self._channel, sent, descriptors=[], seconds=self._limits.seconds)
        finally:
            for descriptor in handed:
                os.close(descriptor)
        return request, opening if self._pace.slow else 0.0

    def _wait(self) -> None:
        """Wait for the answers.

        Raises:
            TimeoutError: The process makes no progress.
        """
        position, since = self._position(), time.monotonic()
        while not self._channel.waiting(min(1.0, self._limits.seconds / 4)):
            now = self._position()
            if now > position:
                position, since = now, time.monotonic()
            reading = RECEIVING < position < 0
            if time.monotonic() - since > (READ_SECONDS if reading else self._limits.seconds):
                raise TimeoutError

    def _replace(self) -> None:
        self.stop()
        self._start()

    def _position(self) -> int:
        return int(POSITION.unpack_from(self._block.map, self._cell)[0])


def _request(
    images: Sequence[bytes | LocalFile], slot: int, pages: Sequence[int], opened: Sequence[int | None]
) -> Request:
    files = iter(opened)
    return Request(
        slot,
        [File(image.etag, next(files) is not None) if isinstance(image, LocalFile) else len(image) for image in images],
        pages,
    )


def _later(reply: Reply, seconds: float) -> Reply:
    """Return an answer with more seconds of reading, if its file was read at all."""
    return reply if isinstance(reply, Unread) or not reply.reading else reply._replace(reading=reply.reading + seconds)


def _opened(path: str) -> int | None:
    """Open a file for the process, which must not; return None if that fails."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    # A link into /proc would hand over the memory of this process. Its files have no size.
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return descriptor
    os.close(descriptor)
    return None
