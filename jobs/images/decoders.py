"""A pool of decoding processes. A crash on hostile bytes costs one image, and no process holds credentials.

Each process (`jobs.images.decoder`) receives groups of encoded images, or opened local files, and writes their pixels
into a slot of one block of shared memory. Memory, time and pixels are limited; dead and hanging processes are replaced.
"""

import mmap
import queue
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Self

import numpy as np

from maskfleet.jobs.images.contract import Decoded, Failure, Fetched, Limits, LocalFile, PageBytes
from maskfleet.jobs.images.process import TRIES, DecoderProcess, DiedOn, Stalled
from maskfleet.jobs.images.protocol import ITEM_SIZES, Placed, Refused, Reply, Unread
from maskfleet.jobs.isolation.block import shared_block
from maskfleet.jobs.isolation.confinement import MEANS
from maskfleet.jobs.timing.stage_timers import StageTimers, Wait
from maskfleet.unet.pixels.normalization import Levels

CODEC = "maskfleet.jobs.images.decode:decode"
"""Default decoding function, as `module:function`; see `jobs.images.decode.decode` for its contract."""

GROUP = 16
"""Encoded images per message; a message per image would cost more than decoding a small image."""

GROUP_BYTES = 32 * 2**20
"""Size of encoded images beyond which a group ends early."""

_PAGE = mmap.ALLOCATIONGRANULARITY


class _Encoded(NamedTuple):
    number: int
    data: bytes | LocalFile
    page: int = 0

    @property
    def size(self) -> int:
        return self.data.size if isinstance(self.data, LocalFile) else len(self.data)


_Group = list[_Encoded | Decoded]
"""Images of a group in order: encoded, or failed already."""


class _Done(NamedTuple):
    """A group after decoding.

    Attributes:
        decoded: Results from the first image on, as far as they fitted into the slot.
        rest: The other images.
    """

    decoded: list[Decoded]
    rest: _Group


class Decoders:
    """A pool of decoding processes. Close it, or use it as a context.

    Args:
        limits: Limits of each image.
        processes: Number of processes.
        users: Largest number of threads iterating over `decode` at once.
        codec: Decoding function, as `module:function`.

    Raises:
        MaskfleetError: A process does not start.
    """

    def __init__(self, limits: Limits, *, processes: int, users: int = 1, codec: str = CODEC) -> None:
        self.limits = limits
        self.lookahead = processes + 2
        slots = self.lookahead * users
        # Untouched pages of the block take no memory, so every slot can hold the largest image.
        self._block = shared_block(_PAGE * (processes + slots * (limits.slot // _PAGE)))
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._slots.put(_PAGE * processes + slot * limits.slot)
        self._pixels = np.frombuffer(self._block.map, np.uint8)
        self._idle: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(processes, "decode")
        starting = [
            self._threads.submit(DecoderProcess, self._block, cell=number * _PAGE, limits=limits, codec=codec)
            for number in range(processes)
        ]
        self._all = [start.result() for start in starting]
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def means(self) -> list[str]:
        """Means of the kernel that hold every process; see `jobs.isolation.confinement.MEANS`."""
        return [name for name in MEANS if all(name in process.means for process in self._all)]

    @property
    def process_ids(self) -> list[int]:
        """Ids of the live decoding processes."""
        return [process.pid for process in self._all]

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def decode(self, fetched: Iterable[tuple[int, Fetched]], timers: StageTimers | None = None) -> Iterator[Decoded]:
        """Decode images in the order given.

        Args:
            fetched: A number chosen by the caller, and an encoded image or the failure to fetch it.
            timers: Timers of the shard.

        Yields:
            One result per image. Failures to fetch are passed on.
        """
        pending: deque[tuple[int, Future[_Done]]] = deque()
        images = iter(fetched)
        timers = timers or StageTimers()
        wait = Wait()
        try:
            while True:
                while len(pending) < self.lookahead and (group := _awaited_group(images, wait)):
                    pending.append(self._submit(group, timers, wait))
                    wait = Wait()
                if not pending:
                    return
                slot, future = pending.popleft()
                try:
                    done = future.result()
                    with wait.for_output():
                        yield from done.decoded
                finally:
                    self._slots.put(slot)
                if done.rest:
                    # Images that did not fit go next, into the slot that was just given back.
                    pending.appendleft(self._submit(done.rest, timers, wait))
                    wait = Wait()
        finally:
            for slot, future in pending:
                if not future.cancel():
                    future.exception()
                self._slots.put(slot)

    def _submit(self, group: _Group, timers: StageTimers, wait: Wait) -> tuple[int, Future[_Done]]:
        slot = self._slots.get()
        return slot, self._threads.submit(self._decode_group, group, slot, timers, wait)

    def _decode_group(self, group: _Group, slot: int, timers: StageTimers, wait: Wait) -> _Done:
        encoded = [item for item in group if isinstance(item, _Encoded)]
        process = self._idle.get()
        try:
            with process.resource.work(timers, wait):
                answers, rest = self._answers(process, encoded, slot)
        finally:
            self._idle.put(process)
        if reading := sum(answer.reading for answer in answers.values()):
            # The process was busy reading, and decoding waited for it.
            timers.add("decode", busy=-reading, starved=reading)
            timers.add("fetch", busy=reading)
        done = _Done([], [])
        for item in group:
            # Order is kept: all images after the first that did not fit wait with it.
            if done.rest or item.number in rest:
                done.rest.append(rest.get(item.number, item))
            else:
                done.decoded.append(item if isinstance(item, Decoded) else answers[item.number])
        return done

    def _answers(
        self, process: DecoderProcess, encoded: list[_Encoded], slot: int
    ) -> tuple[dict[int, Decoded], dict[int, _Encoded]]:
        """Return results by number, and images left to decode: they did not fit, or had to be read here."""
        answers: dict[int, Decoded] = {}
        deaths: Counter[int] = Counter()
        todo = list(encoded)
        while todo:
            try:
                pages = [item.page for item in todo] if any(item.page for item in todo) else ()
                replies = process.ask([item.data for item in todo], slot, pages)
            except DiedOn as death:
                culprit = todo[death.position]
                deaths[culprit.number] += 1
                if deaths[culprit.number] >= TRIES:
                    message = f"{death}, {TRIES} times; inspect this file"
                    failure = Failure("decode", death.error_class, message)
                    answers[culprit.number] = Decoded.failed(culprit.number, failure)
                    todo.pop(death.position)
                continue
            except Stalled:
                # Storage hangs. Read here, it gives an error of its own.
                read = [_read_here(item) if isinstance(item.data, LocalFile) else item for item in todo]
                answers |= {item.number: item for item in read if isinstance(item, Decoded)}
                todo = [item for item in read if isinstance(item, _Encoded)]
                continue
            rest = {item.number: item for item in todo[len(replies) :]}
            for item, reply in zip(todo, replies, strict=False):
                answer = self._answer(item, reply)
                if isinstance(answer, Decoded):
                    answers[item.number] = answer
                else:
                    rest[item.number] = answer
            return answers, rest
        return answers, {}

    def _answer(self, item: _Encoded, reply: Reply) -> Decoded | _Encoded:
        match reply:
            case Placed():
                size = reply.height * reply.width * self.limits.channels * ITEM_SIZES[reply.dtype]
                pixels = self._pixels[reply.offset : reply.offset + size].view(reply.dtype)
                return Decoded(
                    number=item.number,
                    pixels=pixels.reshape(reply.height, reply.width, self.limits.channels),
                    size=(reply.mask_height, reply.mask_width),
                    seconds=reply.seconds,
                    failure=None,
                    reading=reply.reading,
                    levels=None if reply.levels is None else Levels(*map(tuple, reply.levels)),
                )
            case Refused():
                failure = Failure("decode", reply.error_class, reply.message)
                return Decoded.failed(item.number, failure, seconds=reply.seconds, reading=reply.reading)
            case Unread():
                return _read_here(item)


def _read_here(item: _Encoded) -> Decoded | _Encoded:
    assert isinstance(item.data, LocalFile)
    data = item.data.read()
    return Decoded.failed(item.number, data) if isinstance(data, Failure) else item._replace(data=data)


def _encoded(number: int, item: bytes | PageBytes | LocalFile) -> _Encoded:
    if isinstance(item, bytes):
        return _Encoded(number, item)
    return _Encoded(number, item, item.page) if isinstance(item, LocalFile) else _Encoded(number, item.data, item.page)


def _awaited_group(images: Iterator[tuple[int, Fetched]], wait: Wait) -> _Group:
    with wait.for_input():
        return _next_group(images)


def _next_group(images: Iterator[tuple[int, Fetched]]) -> _Group:
    group: _Group = []
    size = 0
    for number, item in islice(images, GROUP):
        if isinstance(item, Failure):
            group.append(Decoded.failed(number, item))
        else:
            group.append(encoded := _encoded(number, item))
            size += encoded.size
        if size > GROUP_BYTES:
            break
    return group
