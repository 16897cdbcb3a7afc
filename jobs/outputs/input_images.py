"""The images of a run, read again from its input for display. Their bytes are decoded in confined processes."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import Changed, NotFound, StorageError
from maskfleet.jobs.images.contract import STREAM, STREAM_PIXELS, Failure, Fetched, Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.images.streams import STREAM_BYTES, Stream, Unreadable
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.pages.names import encoded, page_of
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.ledger.runs import StoredRun
from maskfleet.jobs.outputs.overlay import CODEC, shrunk

_READS_AHEAD = 8
_ROWS = 256


class Shown(NamedTuple):
    """An input image for display.

    Attributes:
        row: Row of the image in the statistics.
        pixels: Pixels (h, w, C), averaged for the size asked for, see `overlay.shrunk`; None if there are none.
        reason: Why there are no pixels, in one sentence; "" otherwise.
        error: The error behind it if storage failed.
    """

    row: Mapping[str, Any]
    pixels: NDArray[Any] | None
    reason: str = ""
    error: StorageError | None = None


class InputImages:
    """Reads the input images of rows again. Close it, or use it as a context.

    Args:
        run: Run of the rows, whose job says how the input is asked.
        profile: AWS profile, if the job names none.
        upright: Whether images are turned as their EXIF orientation says; None as `run` says.
        processes: Number of decoding processes.
    """

    def __init__(
        self, run: StoredRun, *, profile: str | None = None, upright: bool | None = None, processes: int = 1
    ) -> None:
        self._inputs = Inputs(run.input_options(profile))
        self._processes = processes
        most = int(run.job.get("run", {}).get("max_image_pixels", STREAM_PIXELS))
        self._limits = Limits(channels=3, upright=run.upright if upright is None else upright, max_pixels=most)
        self._decoders: Decoders | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes and the threads."""
        if self._decoders is not None:
            self._decoders.close()
        self._inputs.close()

    def read(self, row: Mapping[str, Any], *, size: int | None = None) -> Shown:
        """Read the image of one row; see `images`."""
        (shown,) = self.images([row], size=size)
        return shown

    def images(self, rows: Sequence[Mapping[str, Any]], *, size: int | None = None) -> Iterator[Shown]:
        """Read the images of some rows, in their order. Nothing is raised for one image that cannot be shown.

        Args:
            rows: Rows of the statistics.
            size: Longest side in px of the pictures to draw; None for images in full.
        """
        missing: dict[int, Shown] = {}

        def fetched() -> Iterator[tuple[int, Fetched]]:
            for number, found in self._fetched(rows):
                if isinstance(found, Shown):
                    missing[number] = found
                    yield number, Failure("fetch", "missing", found.reason)
                else:
                    yield number, found

        for image in self._opened().decode(fetched()):
            row = rows[image.number]
            if image.number in missing:
                yield missing[image.number]
            elif image.pixels is not None:
                yield Shown(row, shrunk(_bands(image.pixels), image.pixels.shape[:2], size))
            else:
                yield self._otherwise(row, image.failure, size)

    def _fetched(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Fetched | Shown]]:
        """Yield the bytes of each image, fetched a few ahead."""
        waiting: deque[tuple[int, Future[Fetched | Shown]]] = deque()
        numbered = enumerate(rows)
        with ThreadPoolExecutor(_READS_AHEAD, "picture") as pool:
            waiting.extend((number, pool.submit(self._bytes, row)) for number, row in islice(numbered, _READS_AHEAD))
            while waiting:
                number, future = waiting.popleft()
                waiting.extend((later, pool.submit(self._bytes, row)) for later, row in islice(numbered, 1))
                yield number, future.result()

    def _bytes(self, row: Mapping[str, Any]) -> Fetched | Shown:
        if (row["size"] or 0) > STREAM_BYTES:
            return Failure("decode", STREAM, "too large to read at once")
        try:
            return encoded(row["url"], self._inputs.read(_record(row)))
        except NotFound as error:
            return Shown(row, None, f"{row['url']} no longer exists", error)
        except Changed as error:
            return Shown(row, None, f"{row['url']} has changed since its mask was made", error)
        except StorageError as error:
            return Shown(row, None, str(error), error)

    def _otherwise(self, row: Mapping[str, Any], failure: Failure | None, size: int | None) -> Shown:
        """Show an image that is too large for memory, or say why there are no pixels."""
        reason = failure.message if failure else "no pixels"
        if failure is not None and failure.error_class == STREAM:
            return self._streamed(row, size)
        return Shown(row, None, reason)

    def _streamed(self, row: Mapping[str, Any], size: int | None) -> Shown:
        """Read an image in rows, averaging them as they come."""
        try:
            with (
                self._inputs.opened(_record(row)) as file,
                Stream(file.fileno(), self._limits, page=page_of(row["url"]).number) as stream,
            ):
                tops = range(0, stream.height, _ROWS)
                bands = (stream.read(top, min(top + _ROWS, stream.height))[0] for top in tops)
                return Shown(row, shrunk(bands, (stream.height, stream.width), size))
        except Unreadable as error:
            return Shown(row, None, error.failure.message)
        except StorageError as error:
            return Shown(row, None, str(error), error)

    def _opened(self) -> Decoders:
        if self._decoders is None:
            self._decoders = Decoders(self._limits, processes=self._processes, codec=CODEC)
        return self._decoders


def _record(row: Mapping[str, Any]) -> Record:
    return Record(row["key"], row["url"], row["size"], row["etag"])


def _bands(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    # Copies where nothing is averaged: the decoder reuses its memory.
    yield from (pixels[top : top + _ROWS] for top in range(0, len(pixels), _ROWS))
