"""Decoding processes: hostile bytes are opened where a crash costs one image and no credentials are.

Each process (`jobs.images.isolation`) gets groups of encoded images over a socket, or the names of local files, and
writes their pixels into a slot of one block of shared memory. It has limits on memory, time and pixels, and is
replaced when it dies or hangs.
"""

import importlib
import json
import math
import mmap
import queue
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import Changed, MaskfleetError
from maskfleet.jobs.images.decode import STREAM_PIXELS
from maskfleet.jobs.images.isolation import (
    Block,
    DidNotStart,
    Isolated,
    be_quiet,
    limit_memory,
    limit_time,
    shared_block,
)
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.timing.stage_timers import Resource, StageTimers, Wait

CODEC = "maskfleet.jobs.images.decode:decode"
"""Module and function that decode; see `jobs.images.decode.decode` for its contract."""

GROUP = 16
"""Encoded images sent at once; a message per image would cost more than small images' decoding."""

GROUP_BYTES = 32 * 2**20
"""A group ends early when its encoded images exceed this."""

TRIES = 3
"""Processes that one image may cost. More than one, since a process can also be killed from outside."""

_PAGE = mmap.ALLOCATIONGRANULARITY
_CELL = struct.Struct("<q")
_READING = -1
"""In place of an image's position in its group: that the process reads files."""

_LONG_SECONDS = 1e-3
"""Files that take longer to read are waited for rather than worked on, and so are read several at once."""


class Failure(NamedTuple):
    """Why an image has no mask.

    Attributes:
        stage: `fetch`, `decode`, `segment`, `encode` or `worker`.
        error_class: A word for programs.
        message: A sentence for people, with the remedy.
    """

    stage: str
    error_class: str
    message: str


class Decoded(NamedTuple):
    """An image from a decoding process.

    Attributes:
        number: As it was passed in.
        pixels: (H, W, C), uint8, in shared memory; valid until the next one is asked for. None on failure.
        size: Stored height and width; (0, 0) on failure.
        seconds: Time that decoding took.
        failure: Why not, or None.
        reading: Seconds that the decoding process took to read the file, where it did; a group's are shared.
    """

    number: int
    pixels: NDArray[np.uint8] | None
    size: tuple[int, int]
    seconds: float
    failure: Failure | None
    reading: float = 0.0


class LocalFile(NamedTuple):
    """An encoded image that its decoding process reads by itself: another process has no part in its bytes.

    Attributes:
        path: Of the file.
        etag: See `jobs.storage.local_file.read`.
        size: Bytes that it should have.
        read: Reads it in this process, or says why not: for a file that the decoding process did not get.
    """

    path: str
    etag: str | None
    size: int
    read: "Callable[[], bytes | Failure]"


Fetched = bytes | LocalFile | Failure
"""What is to be decoded: a file's bytes, the file, or why there is neither."""


class _Encoded(NamedTuple):
    number: int
    data: bytes | LocalFile

    @property
    def size(self) -> int:
        return self.data.size if isinstance(self.data, LocalFile) else len(self.data)


@dataclass(frozen=True)
class Limits:
    """What one image may cost, and what it becomes.

    Attributes:
        channels: See `jobs.images.decode.decode`; likewise scale and upright.
        max_pixels: Of an image as stored.
        seconds: Of decoding.
        memory: Bytes a process may have beside the shared block.
    """

    channels: int
    scale: float = 1.0
    upright: bool = False
    max_pixels: int = STREAM_PIXELS
    seconds: float = 20.0
    memory: int = 2 * 2**30

    @property
    def slot(self) -> int:
        """Bytes that hold the pixels of any image that is decoded whole."""
        pixels = math.ceil(min(self.max_pixels, STREAM_PIXELS) * max(1.0, self.scale**2))
        return -(-pixels * self.channels // _PAGE) * _PAGE


class Decoders:
    """A pool of decoding processes. Close it, or use it as a context.

    Args:
        limits: For each image.
        processes: How many.
        users: How many threads may iterate over `decode` at once.
        codec: Module and function that decode.

    Raises:
        MaskfleetError: A process does not start.
    """

    def __init__(self, limits: Limits, *, processes: int, users: int = 1, codec: str = CODEC) -> None:
        self.limits = limits
        self.lookahead = processes + 2
        slots = self.lookahead * users
        # Untouched pages of the block take no memory, so that each slot can hold the largest image.
        self._block = shared_block(_PAGE * (processes + slots * (limits.slot // _PAGE)))
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._slots.put(_PAGE * processes + slot * limits.slot)
        self._pixels = np.frombuffer(self._block.map, np.uint8)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(processes, "decode")
        starting = [
            self._threads.submit(_Process, self._block, cell * _PAGE, limits, codec) for cell in range(processes)
        ]
        self._all = [start.result() for start in starting]
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the decoding processes that live now."""
        return [process.pid for process in self._all]

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def decode(self, fetched: Iterable[tuple[int, Fetched]], meters: StageTimers | None = None) -> Iterator[Decoded]:
        """Decode images, in the order given.

        Args:
            fetched: An index of the caller's, and what is to be decoded; a failure is passed on.
            meters: Count where the time goes.

        Yields:
            One `Decoded` each.
        """
        pending: deque[tuple[int, Future[_Answer]]] = deque()
        images = iter(fetched)
        meters = meters or StageTimers()
        wait = Wait()
        try:
            while True:
                while len(pending) < self.lookahead and (group := _awaited_group(images, wait)):
                    pending.append(self._submit(group, meters, wait))
                    wait = Wait()
                if not pending:
                    return
                slot, future = pending.popleft()
                try:
                    decoded, rest = future.result()
                    with wait.for_output():
                        yield from decoded
                finally:
                    self._slots.put(slot)
                if rest:
                    # What did not fit goes next, in the room that was just given back.
                    pending.appendleft(self._submit(rest, meters, wait))
                    wait = Wait()
        finally:
            for slot, future in pending:
                if not future.cancel():
                    future.exception()
                self._slots.put(slot)

    def _submit(
        self, group: "list[_Encoded | Decoded]", meters: StageTimers, wait: Wait
    ) -> "tuple[int, Future[_Answer]]":
        slot = self._slots.get()
        return slot, self._threads.submit(self._decode_group, group, slot, meters, wait)

    def _decode_group(self, group: "list[_Encoded | Decoded]", slot: int, meters: StageTimers, wait: Wait) -> "_Answer":
        encoded = [item for item in group if isinstance(item, _Encoded)]
        process = self._idle.get()
        try:
            with process.resource.work(meters, wait):
                answers, rest = self._answers(process, encoded, slot)
        finally:
            self._idle.put(process)
        if reading := sum(answer.reading for answer in answers.values()):
            # The lane was busy, but with what decoding waits for.
            meters.add("decode", busy=-reading, starved=reading)
            meters.add("fetch", busy=reading)
        done: list[Decoded] = []
        left: list[_Encoded | Decoded] = []
        for item in group:
            # Order is kept: behind the first image that did not fit, all wait.
            if left or item.number in rest:
                left.append(rest.get(item.number, item))
            else:
                done.append(item if isinstance(item, Decoded) else answers[item.number])
        return done, left

    def _answers(
        self, process: "_Process", encoded: list[_Encoded], slot: int
    ) -> "tuple[dict[int, Decoded], dict[int, _Encoded]]":
        """Answers by index; and likewise what did not fit into the slot, or was read here and is to be decoded yet."""
        answers: dict[int, Decoded] = {}
        deaths: Counter[int] = Counter()
        todo = list(encoded)
        while todo:
            try:
                replies = process.ask(todo, slot)
            except _Died as death:
                culprit = todo[death.position]
                deaths[culprit.number] += 1
                if deaths[culprit.number] >= TRIES:
                    failure = Failure(
                        "decode", death.error_class, f"{death}, {TRIES} times; look at this file by itself"
                    )
                    answers[culprit.number] = Decoded(culprit.number, None, (0, 0), 0.0, failure)
                    todo.pop(death.position)
                continue
            rest = {item.number: item for item in todo[len(replies) :]}
            for item, reply in zip(todo, replies, strict=False):
                if reply[0] == "unread" and isinstance(item.data, LocalFile):
                    data = item.data.read()
                    if isinstance(data, Failure):
                        answers[item.number] = Decoded(item.number, None, (0, 0), 0.0, data)
                    else:
                        rest[item.number] = item._replace(data=data)
                else:
                    answers[item.number] = self._decoded(item.number, reply)
            return answers, rest
        return answers, {}

    def _decoded(self, index: int, reply: list[Any]) -> Decoded:
        if reply[0] != "ok":
            _, error_class, message, seconds, reading = reply
            return Decoded(index, None, (0, 0), seconds, Failure("decode", str(error_class), str(message)), reading)
        _, offset, height, width, stored_height, stored_width, seconds, reading = reply
        size = height * width * self.limits.channels
        pixels = self._pixels[offset : offset + size].reshape(height, width, self.limits.channels)
        return Decoded(index, pixels, (stored_height, stored_width), seconds, None, reading)


_Answer = tuple[list[Decoded], "list[_Encoded | Decoded]"]


def _awaited_group(images: Iterator[tuple[int, Fetched]], wait: Wait) -> list[_Encoded | Decoded]:
    with wait.for_input():
        return _group(images)


def _group(images: Iterator[tuple[int, Fetched]]) -> list[_Encoded | Decoded]:
    group: list[_Encoded | Decoded] = []
    size = 0
    for index, item in islice(images, GROUP):
        if isinstance(item, Failure):
            group.append(Decoded(index, None, (0, 0), 0.0, item))
        else:
            group.append(encoded := _Encoded(index, item))
            size += encoded.size
        if size > GROUP_BYTES:
            break
    return group


class _Died(Exception):
    """A decoding process died or hung at the image of this position in its group."""

    def __init__(self, error_class: str, message: str, position: int) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.position = position


class _Process:
    """One decoding process and its socket; started again when it has died."""

    def __init__(self, block: Block, cell: int, limits: Limits, codec: str) -> None:
        self._block, self._cell, self._limits, self._codec = block, cell, limits, codec
        self.resource = Resource("decode")
        self._start()

    def _start(self) -> None:
        settings = {
            "block": self._block.descriptor,
            "size": len(self._block.map),
            "cell": self._cell,
            "codec": self._codec,
            **vars(self._limits),
        }
        for attempt in range(1, TRIES + 1):
            try:
                self._process = Isolated("maskfleet.jobs.images.decoders", settings, [self._block.descriptor])
                break
            except DidNotStart as error:
                if error.by_itself or attempt == TRIES:
                    raise MaskfleetError(
                        f"a decoding process does not start ({error}); check that maskfleet is installed for this "
                        "interpreter"
                    ) from error
        self._connection = self._process.connection

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.stop()

    def ask(self, group: list[_Encoded], slot: int) -> list[list[Any]]:
        """Replies for the images from the first to the last that fitted.

        Raises:
            _Died: The process is dead or was killed for taking too long, and another stands ready.
        """
        _CELL.pack_into(self._block.map, self._cell, 0)
        # A size for every image that is sent, a path and an etag for every one that is read there.
        images = [item.data[:2] if isinstance(item.data, LocalFile) else len(item.data) for item in group]
        try:
            self._connection.send_bytes(json.dumps({"slot": slot, "images": images}).encode())
            if sent := [item.data for item in group if not isinstance(item.data, LocalFile)]:
                self._connection.send_bytes(b"".join(sent))
            error_class, message = self._wait()
            if error_class is None:
                replies: list[list[Any]] = json.loads(self._connection.recv_bytes())
                return replies
        except (EOFError, OSError, ValueError):
            error_class, message = "crash", "it killed the decoding process"
        position = min(max(0, self._position()), len(group) - 1)
        self.stop()
        self._start()
        raise _Died(error_class, message, position)

    def _wait(self) -> tuple[str | None, str]:
        position, since = self._position(), time.monotonic()
        while not self._connection.poll(min(1.0, self._limits.seconds / 4)):
            now = self._position()
            if now != position or now == _READING:  # slow storage is no image's fault
                position, since = now, time.monotonic()
            elif time.monotonic() - since > self._limits.seconds:
                return "timeout", f"it decoded for more than {self._limits.seconds:g} s"
        return None, ""

    def _position(self) -> int:
        return int(_CELL.unpack_from(self._block.map, self._cell)[0])


# What runs in the process ------------------------------------------------------------------------


def _serve(settings: dict[str, Any]) -> None:
    module, _, function = settings["codec"].partition(":")
    codec = getattr(importlib.import_module(module), function)
    block = mmap.mmap(settings["block"], settings["size"])
    connection = Connection(settings["socket"])
    limit_memory(settings["memory"])
    connection.send_bytes(b"ready")
    be_quiet()
    reader = _Reader()
    while True:
        try:
            group = json.loads(connection.recv_bytes())
            any_sent = any(isinstance(image, int) for image in group["images"])
            sent = memoryview(connection.recv_bytes() if any_sent else b"")
        except EOFError:
            return
        _CELL.pack_into(block, settings["cell"], _READING)
        read, reading = reader.read([image for image in group["images"] if not isinstance(image, int)])
        encoded = _encoded(group["images"], sent, read, reading)
        connection.send_bytes(json.dumps(_replies(codec, block, settings, group["slot"], encoded)).encode())


class _Reader:
    """Reads the files of a group: one after the other while that is quick, else at once."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._slow = False

    def read(self, files: Sequence[list[str]]) -> tuple[list[bytes | None], float]:
        """Their bytes, None for each that cannot be had as planned, and the seconds that passed for one of them."""
        if not files:
            return [], 0.0
        began = time.perf_counter()
        if self._slow:
            self._threads = self._threads or ThreadPoolExecutor(GROUP)
            read = list(self._threads.map(_read, files))
        else:
            read = [_read(file) for file in files]
        self._slow = sum(seconds for _, seconds in read) > _LONG_SECONDS * len(files)
        return [data for data, _ in read], (time.perf_counter() - began) / len(files)


def _read(file: list[str]) -> tuple[bytes | None, float]:
    began = time.perf_counter()
    try:
        data = local_file.read(*file)
    except (OSError, ValueError, MemoryError, Changed):
        data = None
    return data, time.perf_counter() - began


def _encoded(
    images: Sequence[Any], sent: memoryview, read: Sequence[bytes | None], reading: float
) -> Iterator[tuple[bytes | None, float]]:
    """Bytes in the group's order, and the seconds that reading them here took."""
    from_files = iter(read)
    start = 0
    for image in images:
        if isinstance(image, int):
            yield bytes(sent[start : start + image]), 0.0
            start += image
        else:
            yield next(from_files), reading


def _replies(
    codec: Callable[..., Any],
    block: mmap.mmap,
    settings: dict[str, Any],
    slot: int,
    encoded: Iterable[tuple[bytes | None, float]],
) -> list[list[Any]]:
    replies: list[list[Any]] = []
    limits = {name: settings[name] for name in ("channels", "scale", "max_pixels", "upright")}
    size = Limits(**limits).slot
    room = np.frombuffer(block, np.uint8)[slot : slot + size]
    used = 0
    for position, (data, reading) in enumerate(encoded):
        if data is None:
            replies.append(["unread"])
            continue
        _CELL.pack_into(block, settings["cell"], position)
        limit_time(settings["seconds"])
        began = time.perf_counter()
        try:
            pixels, stored = codec(data, room=room[used:], **limits)
        except MemoryError:
            message = f"decoding needs more than run.decode_memory = {settings['memory']} bytes"
            replies.append(["failed", "memory", message, time.perf_counter() - began, reading])
        except Exception as error:
            error_class = getattr(error, "error_class", "corrupt")
            replies.append(["failed", error_class, str(error), time.perf_counter() - began, reading])
        else:
            if pixels.size > size:
                message = f"{pixels.shape[1]}×{pixels.shape[0]} px after scaling; raise run.max_image_pixels"
                replies.append(["failed", "too_large", message, time.perf_counter() - began, reading])
                continue
            if used + pixels.size > size:
                return replies
            if not np.may_share_memory(pixels, room):
                room[used : used + pixels.size] = pixels.reshape(-1)
            replies.append(["ok", slot + used, *pixels.shape[:2], *stored, time.perf_counter() - began, reading])
            used += pixels.size
    return replies


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
