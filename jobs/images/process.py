"""One decoding process as its parent sees it: it is asked, watched, and replaced when it dies or hangs."""

import time
from collections.abc import Sequence

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.images.contract import Limits, LocalFile
from maskfleet.jobs.images.isolation import Block, DidNotStart, Isolated
from maskfleet.jobs.images.protocol import POSITION, READING, File, Reply, Request, Settings, receive_replies
from maskfleet.jobs.timing.stage_timers import Resource

TRIES = 3
"""Processes that one image, or one start, may cost. More than one, since a process can also be killed from outside."""

_MODULE = "maskfleet.jobs.images.decoder"


class Died(Exception):
    """A decoding process crashed or hung.

    Attributes:
        error_class: `crash` or `timeout`.
        position: Position in its group of the image being decoded.
    """

    def __init__(self, error_class: str, message: str, position: int) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.position = position


class DecoderProcess:
    """One decoding process and its socket. A dead process is replaced.

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
        self._settings = Settings(
            block=block.descriptor, size=len(block.map), cell=cell, codec=codec, limits=limits
        ).to_json()
        self._start()

    def _start(self) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._process = Isolated(_MODULE, self._settings, [self._block.descriptor])
                break
            except DidNotStart as error:
                if error.by_itself or attempt == TRIES:
                    raise MaskfleetError(
                        f"a decoding process failed to start ({error}); check that maskfleet is installed for this "
                        "interpreter"
                    ) from error
        self._connection = self._process.connection

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def stop(self) -> None:
        """Kill the process."""
        self._process.stop()

    def ask(self, images: Sequence[bytes | LocalFile], slot: int) -> list[Reply]:
        """Decode a group of images.

        Args:
            images: Encoded images.
            slot: Offset in the block of the memory for their pixels.

        Returns:
            Answers for the images up to the last one that fitted into the slot.

        Raises:
            Died: The process died or was killed for its slowness. Another one is ready.
        """
        POSITION.pack_into(self._block.map, self._cell, 0)
        request = Request(
            slot, [File(image.path, image.etag) if isinstance(image, LocalFile) else len(image) for image in images]
        )
        try:
            request.send(self._connection, [image for image in images if not isinstance(image, LocalFile)])
            if self._answers_in_time():
                return receive_replies(self._connection)
            error_class, message = "timeout", f"it decoded for more than {self._limits.seconds:g} s"
        except (EOFError, OSError, ValueError):
            error_class, message = "crash", "it killed the decoding process"
        position = min(max(0, self._position()), len(images) - 1)
        self.stop()
        self._start()
        raise Died(error_class, message, position)

    def _answers_in_time(self) -> bool:
        position, since = self._position(), time.monotonic()
        while not self._connection.poll(min(1.0, self._limits.seconds / 4)):
            now = self._position()
            if now != position or now == READING:  # slow storage is no fault of an image
                position, since = now, time.monotonic()
            elif time.monotonic() - since > self._limits.seconds:
                return False
        return True

    def _position(self) -> int:
        return int(POSITION.unpack_from(self._block.map, self._cell)[0])
