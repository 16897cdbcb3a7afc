"""The program of a decoding process: reads groups of images, decodes them, and writes their pixels into shared memory.

Started by `jobs.images.isolation` without credentials. It imports neither torch nor pyarrow nor a storage client.
"""

import importlib
import json
import mmap
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import Changed
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.formats import FORMATS
from maskfleet.jobs.images.isolation import be_quiet, limit_memory, limit_time
from maskfleet.jobs.images.protocol import (
    POSITION,
    READING,
    File,
    Placed,
    Refused,
    Reply,
    Request,
    Settings,
    Unread,
    send_replies,
)
from maskfleet.jobs.storage import local_file

Codec = Callable[..., tuple[NDArray[np.uint8], tuple[int, int]]]
"""Decoding function; see `jobs.images.decode.decode` for its contract."""

_THREADS = 16
_SLOW_SECONDS = 1e-3
"""Mean seconds per file above which a group's files are read in parallel: then reading is waiting, not work."""


def serve(settings: Settings, connection: Connection) -> None:
    """Answer requests until the other side closes the connection."""
    module, _, function = settings.codec.partition(":")
    codec = getattr(importlib.import_module(module), function)
    for format_ in FORMATS:  # at the start, so that no image waits for an import
        importlib.import_module(format_.reader)
    block = mmap.mmap(settings.block, settings.size)
    limit_memory(settings.limits.memory)
    connection.send_bytes(b"ready")
    be_quiet()
    reader = FileReader()
    decoder = _GroupDecoder(codec, block, settings)
    while True:
        try:
            request, sent = Request.receive(connection)
        except EOFError:
            return
        decoder.report(READING)
        data, reading = reader.read(request.files)
        send_replies(connection, decoder.replies(request.slot, _encoded(request.images, sent, data, reading)))


class FileReader:
    """Reads the files of a group: one after another while storage is fast, in parallel once it is slow."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._slow = False

    def read(self, files: Sequence[File]) -> tuple[list[bytes | None], float]:
        """Return the bytes of each file, or None if it is not as expected, and the mean seconds per file."""
        if not files:
            return [], 0.0
        began = time.perf_counter()
        if self._slow:
            self._threads = self._threads or ThreadPoolExecutor(_THREADS)
            read = list(self._threads.map(_read, files))
        else:
            read = [_read(file) for file in files]
        self._slow = sum(seconds for _, seconds in read) > _SLOW_SECONDS * len(files)
        return [data for data, _ in read], (time.perf_counter() - began) / len(files)


def _read(file: File) -> tuple[bytes | None, float]:
    began = time.perf_counter()
    try:
        data = local_file.read(file.path, file.etag)
    except (OSError, ValueError, MemoryError, Changed):
        data = None
    return data, time.perf_counter() - began


def _encoded(
    images: Sequence[int | File], sent: memoryview, read: Sequence[bytes | None], reading: float
) -> Iterator[tuple[bytes | None, float]]:
    """Yield the bytes of each image of a group, and the seconds of reading them in this process."""
    from_files = iter(read)
    start = 0
    for image in images:
        if isinstance(image, int):
            yield bytes(sent[start : start + image]), 0.0
            start += image
        else:
            yield next(from_files), reading


class _GroupDecoder:
    """Decodes one group after another into slots of the shared block."""

    def __init__(self, codec: Codec, block: mmap.mmap, settings: Settings) -> None:
        self._codec, self._block, self._cell = codec, block, settings.cell
        self._limits: Limits = settings.limits
        self._options: dict[str, Any] = {
            name: getattr(self._limits, name) for name in ("channels", "scale", "max_pixels", "upright", "min_side")
        }

    def report(self, position: int) -> None:
        """Write the position of the current image where the parent reads it."""
        POSITION.pack_into(self._block, self._cell, position)

    def replies(self, slot: int, encoded: Iterable[tuple[bytes | None, float]]) -> list[Reply]:
        """Decode images until the slot is full."""
        replies: list[Reply] = []
        memory = np.frombuffer(self._block, np.uint8)[slot : slot + self._limits.slot]
        used = 0
        for position, (data, reading) in enumerate(encoded):
            if data is None:
                replies.append(Unread())
                continue
            self.report(position)
            limit_time(self._limits.seconds)
            began = time.perf_counter()
            decoded = self._decoded(data, memory[used:], reading, began)
            if isinstance(decoded, Refused):
                replies.append(decoded)
                continue
            pixels, (height, width) = decoded
            if used + pixels.size > memory.size:
                return replies
            if not np.may_share_memory(pixels, memory):
                memory[used : used + pixels.size] = pixels.reshape(-1)
            replies.append(
                Placed(
                    offset=slot + used,
                    height=pixels.shape[0],
                    width=pixels.shape[1],
                    mask_height=height,
                    mask_width=width,
                    seconds=time.perf_counter() - began,
                    reading=reading,
                )
            )
            used += pixels.size
        return replies

    def _decoded(
        self, data: bytes, buffer: NDArray[np.uint8], reading: float, began: float
    ) -> tuple[NDArray[np.uint8], tuple[int, int]] | Refused:
        try:
            pixels, size = self._codec(data, buffer=buffer, **self._options)
        except MemoryError:
            error_class = "memory"
            message = f"decoding needs more than run.decode_memory = {self._limits.memory} bytes"
        except Exception as error:  # any error of a codec concerns this image alone
            error_class, message = getattr(error, "error_class", "corrupt"), str(error)
        else:
            if pixels.size <= self._limits.slot:
                return pixels, size
            error_class = "too_large"
            message = f"{pixels.shape[1]}×{pixels.shape[0]} px after scaling; raise run.max_image_pixels"
        return Refused(
            error_class=str(error_class), message=message, seconds=time.perf_counter() - began, reading=reading
        )


def main() -> None:
    """Serve the connection named in the first argument."""
    values = json.loads(sys.argv[1])
    serve(Settings.of_json(values), Connection(values["socket"]))


if __name__ == "__main__":
    main()
