"""The program of a decoding process: reads groups of images, decodes them, and writes their pixels into shared memory.

Started by `jobs.isolation.process` without credentials and without a right to open files: it gets their descriptors. It
imports neither torch nor pyarrow nor a storage client.
"""

import importlib
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskfleet.jobs.errors import Changed
from maskfleet.jobs.images.contract import Bands, Limits
from maskfleet.jobs.images.formats import FORMATS
from maskfleet.jobs.images.pace import Pace
from maskfleet.jobs.images.protocol import (
    POSITION,
    File,
    Placed,
    Refused,
    Reply,
    Request,
    Settings,
    Unread,
    send_replies,
    shortened,
)
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.jobs.isolation.child import Serve, limit_time
from maskfleet.jobs.storage import local_file
from maskfleet.unet.pixels.normalization import DTYPES

Codec = Callable[..., tuple[Any, ...]]
"""Decoding function, returning the fields of `Bands`; see `jobs.images.decode.decode` for its contract."""

_NAMES = {np.dtype(name): name for name in DTYPES}
"""Names of the types of pixels. NumPy takes 4 µs to name one."""

_ALIGNED = 4
"""Offsets of pixels are multiples of this, so that every type of numbers may begin there."""


def program(values: dict[str, Any]) -> Serve:
    """Load the codec and every reader; return the function that answers requests."""
    settings = Settings.of_json(values)
    module, _, function = settings.codec.partition(":")
    codec = getattr(importlib.import_module(module), function)
    for format_ in FORMATS:  # at the start, so that no image waits for an import
        importlib.import_module(format_.reader)
    Image.preinit()  # likewise
    decoder = _GroupDecoder(codec, mmap.mmap(settings.block, settings.size), settings)
    reader = FileReader(decoder.report)

    def serve(channel: Channel) -> None:
        while True:
            request, descriptors, sent = Request.receive(channel)
            data, reading = reader.read(request.files, descriptors, request.pages_of_files)
            encoded = _encoded(request.images, sent, data, reading)
            send_replies(channel, decoder.replies(request.slot, encoded, request.pages))

    return serve


class FileReader:
    """Reads the files of a group: one after another while storage is fast, in parallel once it is slow.

    Args:
        report: Receives the number of files still to be read, negative.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._pace = Pace()
        self._left = 0

    def read(
        self, files: Sequence[File], descriptors: Sequence[int], pages: Sequence[int] = ()
    ) -> "tuple[list[bytes | OpenFile | None], float]":
        """Read files and close them. A file with pages is not read here, but kept open: each page needs a part of it.

        Args:
            files: Files of the group.
            descriptors: Descriptors of those handed over, in order.
            pages: Page of each file, 0 for the only image of a file; empty if all are such.

        Returns:
            The bytes of each file, or None if it is not as expected, and the mean seconds per file.
        """
        self._left = len(files)
        self._report(-self._left)
        handed = iter(descriptors)
        return self._pace.map(
            self._read,
            [
                (file.etag, next(handed) if file.handed else None, page)
                for file, page in zip(files, pages or repeat(0), strict=False)
            ],
        )

    def _read(self, file: tuple[str | None, int | None, int]) -> "bytes | OpenFile | None":
        etag, descriptor, page = file
        if descriptor is None:
            return None
        try:
            if page:
                return OpenFile(os.dup(descriptor), etag)
            return local_file.read_open(descriptor, etag)
        except (OSError, ValueError, MemoryError, Changed):
            return None
        finally:
            os.close(descriptor)
            self._left -= 1
            self._report(-self._left)


class OpenFile:
    """A file that stays open while one of its pages is decoded.

    Args:
        descriptor: Descriptor of the file, closed with this object.
        etag: State that it must have, or None for any.

    Attributes:
        file: The file.

    Raises:
        Changed: It has another state.
    """

    def __init__(self, descriptor: int, etag: str | None) -> None:
        self.file: IO[bytes] = os.fdopen(descriptor, "rb")
        self._etag = etag
        self.check()

    def check(self) -> None:
        """Raise `Changed` if the file has another state than expected."""
        if self._etag is not None and local_file.state(os.fstat(self.file.fileno())) != self._etag:
            raise local_file.changed("it")


def _encoded(
    images: Sequence[int | File], sent: memoryview, read: Sequence[bytes | OpenFile | None], reading: float
) -> Iterator[tuple[bytes | OpenFile | None, float]]:
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
        self._options |= {name: value for name in ("bands", "normalize") if (value := getattr(self._limits, name))}

    def report(self, position: int) -> None:
        """Write the position of the current image where the parent reads it."""
        POSITION.pack_into(self._block, self._cell, position)

    def replies(
        self, slot: int, encoded: Iterable[tuple[bytes | OpenFile | None, float]], pages: Sequence[int] = ()
    ) -> list[Reply]:
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
            page = {"page": pages[position]} if pages and pages[position] else {}
            decoded = self._decoded(data, memory[used:], reading, began, page)
            if not isinstance(decoded, Bands):
                replies.append(decoded)
                continue
            pixels, (height, width), levels = decoded
            if used + pixels.nbytes > memory.size:
                return replies
            if not np.may_share_memory(pixels, memory):
                memory[used : used + pixels.nbytes].view(pixels.dtype)[:] = pixels.reshape(-1)
            replies.append(
                Placed(
                    offset=slot + used,
                    height=pixels.shape[0],
                    width=pixels.shape[1],
                    mask_height=height,
                    mask_width=width,
                    seconds=time.perf_counter() - began,
                    reading=reading,
                    dtype=_NAMES[pixels.dtype],
                    levels=levels,
                )
            )
            used = min(memory.size, -(-(used + pixels.nbytes) // _ALIGNED) * _ALIGNED)
        return replies

    def _decoded(
        self, data: bytes | OpenFile, buffer: NDArray[np.uint8], reading: float, began: float, page: dict[str, int]
    ) -> Bands | Refused | Unread:
        try:
            source = data.file if isinstance(data, OpenFile) else data
            bands = Bands(*self._codec(source, buffer=buffer, **page, **self._options))
            if isinstance(data, OpenFile):
                data.check()
        except Changed:
            return Unread()
        except MemoryError:
            error_class = "memory"
            message = f"decoding needs more than run.decode_memory = {self._limits.memory} bytes"
        except Exception as error:  # any error of a codec concerns this image alone
            error_class, message = getattr(error, "error_class", "corrupt"), shortened(str(error))
        else:
            if bands.pixels.nbytes <= self._limits.slot:
                return bands
            error_class = "too_large"
            height, width = bands.pixels.shape[:2]
            message = f"{width}×{height} px after scaling; raise run.max_image_pixels"
        return Refused(
            error_class=str(error_class), message=message, seconds=time.perf_counter() - began, reading=reading
        )
