"""Images too large for memory, read in rows from top to bottom by an isolated process (`jobs.images.row_reader`)."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.images.contract import Failure, Limits
from maskfleet.jobs.isolation.block import shared_block
from maskfleet.jobs.isolation.process import DidNotStart, Died, Isolated
from maskfleet.unet.pixels.normalization import DTYPES, Levels
from maskfleet.unet.pixels.numbers import levels_of

STREAM_BYTES = 2**29
"""Size of the largest file that is read whole, whatever its pixels."""

_BLOCK = 16 * 2**20
"""Bytes of pixels per message."""

_CRASHED = "the image crashed the reader process; inspect this file"

_MODULE = "maskfleet.jobs.images.row_reader"


class Unreadable(Exception):
    """The image cannot be read to its end.

    Attributes:
        failure: Reason.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Stream:
    """An image read by rows, in order. Close it, or use it as a context.

    Args:
        file: Descriptor of the open file.
        limits: Limits of the image; `seconds` applies to each block of rows.
        page: Number of the page, counted from 1; 0 for the only image of the file.

    Attributes:
        height: Height in px.
        width: Width in px.
        levels: Levels of the image, see `jobs.images.contract.Decoded`. Where they depend on the image, all of it is
            read before.

    Raises:
        Unreadable: The header is damaged, or the image cannot be read in rows.
    """

    def __init__(self, file: int, limits: Limits, *, page: int = 0) -> None:
        self._limits = limits
        self._block = shared_block(_BLOCK)
        self._pixels = np.frombuffer(self._block.map, np.uint8)
        settings = {"file": file, "block": self._block.descriptor, "size": _BLOCK, "limits": limits.to_json()} | {
            "page": page
        }
        try:
            self._process = Isolated(
                _MODULE, settings, memory=limits.memory, seconds=limits.seconds,
                descriptors=[file, self._block.descriptor],
            )  # fmt: skip
        except DidNotStart as error:
            self._block.close()
            message = f"the reader process failed to start ({error}); run the job again"
            raise Unreadable(Failure("decode", "crash", message)) from error
        try:
            self.height, self.width, kind, white = self._asked(["height", "width", "kind", "white"])
            if kind > len(DTYPES):
                raise Unreadable(Failure("decode", "crash", _CRASHED))
            self._dtype = np.dtype(DTYPES[kind - 1])
            self.levels = self._levels(white)
        except Unreadable:
            self.close()
            raise
        # One buffer, reused: strips of a large image are a good part of a worker's memory.
        self._rows: NDArray[Any] = np.empty((0, self.width, limits.channels), self._dtype)
        self._start = self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.stop()
        self._block.close()

    def _levels(self, white: int) -> Levels | None:
        channels, normalize = self._limits.channels, self._limits.normalize
        if normalize is not None:
            return levels_of(normalize, channels, lambda: (block for _, block in self._blocks(0, self.height)))
        return None if self._dtype == np.uint8 else Levels.of_white(white, channels)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield rows, (rows, W, C), each valid until the next one, with the number of their first row."""
        row = self.width * self._limits.channels
        step = max(1, _BLOCK // (row * self._dtype.itemsize))
        for top in range(start, stop, step):
            count = min(step, stop - top)
            self._asked([], start=top, count=count)
            numbers = self._pixels[: count * row * self._dtype.itemsize].view(self._dtype)
            yield top, numbers.reshape(count, self.width, self._limits.channels)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows as the network sees them.

        Args:
            start: First row; not less than in the previous call.
            stop: Row after the last one; not less than in the previous call.

        Returns:
            (1, stop - start, W, C), valid until the next call, of a type of `unet.pixels.normalization.DTYPES`.

        Raises:
            Unreadable: The image is damaged, or reading is too slow.
        """
        shape = (self.width, self._limits.channels)
        kept = self._rows[start - self._start : self._next - self._start]
        if len(self._rows) < stop - start:
            self._rows = np.empty((stop - start, *shape), self._dtype)
        self._rows[: len(kept)] = kept  # numpy copies overlapping rows correctly
        self._start = start
        for top, block in self._blocks(self._next, stop):
            self._rows[top - start :][: len(block)] = block
            self._next = top + len(block)
        return self._rows[None, : stop - start]

    def _asked(self, names: Sequence[str], **request: int) -> list[int]:
        """Ask the process, and return the numbers of these names in its answer."""
        try:
            answer = self._process.ask(request)
        except Died as death:
            message = f"a block of its rows took more than {self._limits.seconds:g} s; raise run.decode_seconds"
            if death.error_class == "crash":
                message = _CRASHED
            raise Unreadable(Failure("decode", death.error_class, message)) from death
        match answer:
            case {"error_class": str(error_class), "message": str(message)}:
                raise Unreadable(Failure("decode", error_class, message))
            case dict() if all(type(answer.get(name)) is int and answer[name] > 0 for name in names):
                return [answer[name] for name in names]
            case _:
                raise Unreadable(Failure("decode", "crash", _CRASHED))
