"""Images too large for memory, read in rows, from top to bottom, in an isolated process of their own.

libvips reads them (pyvips, the extra `large`): of the readers that were tried it alone gives rows of TIFF
(strips or tiles, any compression), PNG and JPEG in bounded memory. Pillow has whole images only, tifffile
no PNG and without more packages no LZW. What rows become for the network is the table of `jobs.images.decode`.
"""

import importlib
import io
import json
import math
import mmap
import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from maskfleet.jobs.images.decode import MIN_SIDE, Undecodable, as_seen, from_unit, narrowed, opened
from maskfleet.jobs.images.decoders import Failure, Limits
from maskfleet.jobs.images.isolation import DidNotStart, Isolated, be_quiet, limit_memory, limit_time, shared_block

STREAM_BYTES = 2**29
"""Larger files are not read whole, whatever their pixels."""

_BLOCK = 16 * 2**20
"""Bytes of pixels that come at once."""


class Unreadable(Exception):
    """The image cannot be read to its end.

    Attributes:
        failure: Why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Stream:
    """An image whose rows are read in order. Close it, or use it as a context.

    Args:
        file: Descriptor of the open file.
        limits: For the image; the seconds are those of one block of rows.

    Attributes:
        height: In px.
        width: Likewise.

    Raises:
        Unreadable: From the header.
    """

    def __init__(self, file: int, limits: Limits) -> None:
        self._limits = limits
        self._block = shared_block(_BLOCK)
        self._pixels = np.frombuffer(self._block.map, np.uint8)
        settings = {"file": file, "block": self._block.descriptor, "size": _BLOCK, **vars(limits)}
        try:
            self._process = Isolated("maskfleet.jobs.images.streams", settings, [file, self._block.descriptor])
        except DidNotStart as error:
            self._block.close()
            raise Unreadable(Failure("decode", "crash", f"its reader does not start ({error})")) from error
        try:
            self.height, self.width = self._answer()
        except Unreadable:
            self.close()
            raise
        # One buffer, used again and again: strips of a large image are a good part of a worker's memory.
        self._rows: NDArray[np.uint8] = np.empty((0, self.width, limits.channels), np.uint8)
        self._start = self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.stop()
        self._block.close()

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows (1, stop - start, W, C) as the network sees them. Neither may be less than in the call before.

        They are valid until the next call.

        Raises:
            Unreadable: Damaged, or too slow.
        """
        shape = (self.width, self._limits.channels)
        kept = self._rows[start - self._start : self._next - self._start]
        if len(self._rows) < stop - start:
            self._rows = np.empty((stop - start, *shape), np.uint8)
        self._rows[: len(kept)] = kept  # numpy copies rows that overlap as if they did not
        self._start = start
        row = math.prod(shape)
        step = max(1, _BLOCK // row)
        while self._next < stop:
            count = min(step, stop - self._next)
            self._process.connection.send_bytes(json.dumps([self._next, count]).encode())
            self._answer()
            self._rows[self._next - start :][:count] = self._pixels[: count * row].reshape(count, *shape)
            self._next += count
        return self._rows[None, : stop - start]

    def _answer(self) -> Any:
        try:
            if not self._process.connection.poll(self._limits.seconds):
                message = f"a block of its rows took more than {self._limits.seconds:g} s; raise run.decode_seconds"
                raise Unreadable(Failure("decode", "timeout", message))
            kind, *answer = json.loads(self._process.connection.recv_bytes())
        except (EOFError, OSError, ValueError) as error:
            message = "it killed the process that reads it; look at this file by itself"
            raise Unreadable(Failure("decode", "crash", message)) from error
        if kind != "ok":
            raise Unreadable(Failure("decode", *answer))
        return answer


# What runs in the process ------------------------------------------------------------------------


def main(settings: dict[str, Any]) -> None:
    """Answer one request after another until the connection ends."""
    connection = Connection(settings["socket"])
    connection.send_bytes(b"ready")
    be_quiet()
    limit_memory(settings["memory"])
    block = np.frombuffer(mmap.mmap(settings["block"], settings["size"]), np.uint8)
    limit_time(settings["seconds"])
    reading: list[Callable[[int, int], NDArray[np.uint8]]] = []

    def header() -> list[int]:
        size, rows = _opened(settings)
        reading.append(rows)
        return size

    def rows(start: int, count: int) -> list[int]:
        pixels = reading[0](start, count)
        block[: pixels.size] = pixels.reshape(-1)
        return []

    _reply(connection, header)
    while True:
        try:
            start, count = json.loads(connection.recv_bytes())
        except EOFError:
            return
        limit_time(settings["seconds"])
        _reply(connection, partial(rows, start, count))


def _reply(connection: Connection, work: Callable[[], list[int]]) -> None:
    try:
        answer = ["ok", *work()]
    except Undecodable as error:
        answer = ["failed", error.error_class, str(error)]
    except MemoryError:
        answer = ["failed", "memory", "reading it in rows needs more than run.decode_memory"]
    except Exception as error:  # hostile bytes make libraries raise nearly anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        answer = ["failed", "corrupt", f"the image does not decode ({lines[0]}); upload it again"]
    connection.send_bytes(json.dumps(answer).encode())


def _opened(settings: dict[str, Any]) -> tuple[list[int], Callable[[int, int], NDArray[np.uint8]]]:
    """Height and width, and what reads some rows as the network sees them."""
    with io.FileIO(os.dup(settings["file"])) as file:
        file.seek(0)
        header = opened(io.BufferedReader(file), settings["max_pixels"])
        orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
    if settings["scale"] != 1:
        raise Undecodable("unsupported", "an image that is read in rows cannot be scaled; set inference.scale = 1")
    if settings["upright"] and orientation != 1:
        raise Undecodable("unsupported", "an image that is read in rows cannot be turned; store it upright")
    if header.format == "BMP":
        raise Undecodable("unsupported", "a BMP of this size cannot be read in rows; store TIFF or PNG")
    if header.mode == "I":
        raise Undecodable("unsupported", "32-bit integers (mode I) state no range; store 8 or 16 bits")
    try:
        pyvips = importlib.import_module("pyvips")
    except ImportError as error:
        message = f"{header.width}×{header.height} px are read in rows, for which pip install 'maskfleet[large]'"
        raise Undecodable("unsupported", message) from error
    os.lseek(settings["file"], 0, os.SEEK_SET)
    source = pyvips.Source.new_from_descriptor(settings["file"])
    image = pyvips.Image.new_from_source(source, "", access="sequential")
    if min(image.width, image.height) < MIN_SIDE:
        raise Undecodable("too_small", f"{image.width}×{image.height} px; the network needs {MIN_SIDE} px a side")
    region = pyvips.Region.new(image)

    def rows(start: int, count: int) -> NDArray[np.uint8]:
        data = region.fetch(0, start, image.width, count)
        samples = np.frombuffer(data, _DTYPES.get(image.format, "V1")).reshape(count, image.width, image.bands)
        planes = as_seen(_piece(samples, image.interpretation), settings["channels"])
        return np.dstack([np.asarray(plane) for plane in planes])

    return [image.height, image.width], rows


_DTYPES = {"uchar": "u1", "ushort": "u2", "float": "f4"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_COLOURS = ("b-w", "grey16", "srgb", "rgb", "rgb16", "multiband")


def _piece(samples: NDArray[Any], interpretation: str) -> Image.Image:
    """Rows as the image that Pillow would have given."""
    bands = samples.shape[2]
    mode = "CMYK" if interpretation == "cmyk" and bands == 4 else _MODES.get(bands)
    if mode is None or samples.dtype == "V1" or (interpretation not in _COLOURS and mode != "CMYK"):
        raise Undecodable("unsupported", f"{bands} bands of {samples.dtype} ({interpretation}) cannot be read in rows")
    if samples.dtype == np.uint16:
        # Of 16-bit colour the high byte, as Pillow has it.
        samples = narrowed(samples) if bands == 1 else (samples >> 8).astype(np.uint8)
    elif samples.dtype == np.float32:
        samples = from_unit(samples)
    planes = [Image.fromarray(np.ascontiguousarray(samples[..., band])) for band in range(bands)]
    return planes[0] if bands == 1 else Image.merge(mode, planes)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
