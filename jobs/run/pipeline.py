"""From records to masks and numbers: fetch → decode → segment → encode, overlapping, bounded and timed.

Knows nothing of shards and commits. What it makes of a record depends on the records that come with
it in one call, in their order, and on nothing else: batches are formed in record order, never by
arrival.
"""

import gc
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import Changed, Denied, NotFound
from maskfleet.jobs.images.decode import STREAM
from maskfleet.jobs.images.decoders import CODEC, Decoded, Decoders, Failure, Fetched, Limits, LocalFile
from maskfleet.jobs.images.streams import STREAM_BYTES, Stream, Unreadable
from maskfleet.jobs.inputs.containers.formats import is_member
from maskfleet.jobs.inputs.fetch import Inputs, Reader
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.masks.formats import EncodedMask, Encoder
from maskfleet.jobs.stage_timers import DEVICE, Resource, ResourcePool, StageTimers, Wait
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.schemes import is_local

if TYPE_CHECKING:  # `verify` and `status` come by here and must not wait for torch
    from maskfleet.unet.inference.decision import Statistics
    from maskfleet.unet.inference.segmenter import Fit

SHARDS_IN_FLIGHT = 2
"""Shards that one pipeline serves at once, so that the device works through one's end and the next one's start."""

_FETCHES = 32
_FETCHED_TOGETHER = 16
"""Images that are handed on at once. Those of tars and Parquet files are read in large pieces anyway, and a thread
woken for each costs more than a small image."""

_SMALL_BYTES = 2**20
"""Of such images together."""

_BATCHES_ENCODED_AHEAD = 4
_OPEN_BYTES = 256 * 2**20

_ALLOCATIONS = 20_000
"""Containers between two searches for garbage in cycles. By default they come every thirty images, find none, and look
through the rows of the shard: 7 % of this process's CPU, where images are small and the network is nothing."""


class Device(Protocol):
    """What the pipeline needs of a `unet.inference.segmenter.Segmenter`."""

    n_channels: int
    classes: int
    lanes: int
    fits: dict[tuple[int, int], "list[Fit]"]

    def batch_size(self, height: int, width: int) -> int: ...

    def lanes_of(self, height: int, width: int) -> int: ...

    def room(self, batch: int, height: int, width: int) -> NDArray[np.uint8]: ...

    def segment(
        self, images: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> "tuple[NDArray[np.uint8], Statistics]": ...

    def segment_rows(
        self, read: Callable[[int, int], NDArray[np.uint8]], height: int, width: int,
        write: Callable[[NDArray[np.uint8]], None],
    ) -> "Statistics": ...  # fmt: skip


@dataclass
class Outcome:
    """What became of a record.

    Attributes:
        mask: Encoded mask; None for a failed image, or if the job stores no masks.
        size: Stored height and width; None if it was not decoded.
        failure: Why there is no result, or None.
        columns: The statistics' columns that the segmenter filled.
        seconds: By stage.
    """

    mask: EncodedMask | None = None
    size: tuple[int, int] | None = None
    failure: Failure | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class _Batch(NamedTuple):
    """Images of one shape on their way to the device."""

    indices: list[int]
    pixels: NDArray[np.uint8]
    size: tuple[int, int]


class Pipeline:
    """A segmenter with the processes and threads that keep it fed. Close it, or use it as a context.

    Args:
        segmenter: Resident on its device.
        encoder: Writes masks; None for statistics alone.
        limits: For decoding.
        inputs: Reads records.
        decoders: Decoding processes.
        encoders: Encoding threads.
        codec: Module and function that decode.
        forward: What is known of the bare forward pass, for whoever reports.
    """

    def __init__(
        self,
        segmenter: Device,
        *,
        encoder: Encoder | None,
        limits: Limits,
        inputs: Inputs,
        decoders: int = 1,
        encoders: int = 1,
        codec: str = CODEC,
        forward: dict[str, Any] | None = None,
    ) -> None:
        self.forward = forward
        self.concurrency = {
            "fetch": _FETCHES,
            "decode": decoders,
            "segment": segmenter.lanes,
            "encode": encoders,
            "write": SHARDS_IN_FLIGHT,
            DEVICE: 1,
        }
        self.segmenter = segmenter
        self.inputs = inputs
        self._encoder = encoder
        self._fetchers = ThreadPoolExecutor(_FETCHES, "fetch")
        self._encoders = ThreadPoolExecutor(encoders, "encode")
        self.decoders = Decoders(limits, processes=decoders, users=SHARDS_IN_FLIGHT, codec=codec)
        self._device = ResourcePool("segment", segmenter.lanes)
        self._encoding = threading.local()
        self._moved = time.monotonic()
        first, *rarer = gc.get_threshold()
        if 0 < first < _ALLOCATIONS:  # 0 is never
            gc.set_threshold(_ALLOCATIONS, *rarer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End processes and threads."""
        self.decoders.close()
        self.inputs.close()
        self._fetchers.shutdown(cancel_futures=True)
        self._encoders.shutdown(cancel_futures=True)

    def still_for(self) -> float:
        """Seconds since an image last moved on, from one stage to the next or by rows."""
        return time.monotonic() - self._moved

    def _move(self) -> None:
        self._moved = time.monotonic()

    def short_of_memory(self) -> dict[str, list[str]]:
        """By shape, how images of it went through the device, where not all at once as wished."""
        tried = self.segmenter.fits.copy()  # the other shard's thread may be adding to it
        return {f"{width}×{height}": [str(fit) for fit in fits] for (height, width), fits in tried.items() if fits[1:]}

    def run(self, records: Sequence[Record], meters: StageTimers | None = None) -> list[Outcome]:
        """What becomes of each record, in order. At most `SHARDS_IN_FLIGHT` threads may be in here.

        Args:
            records: To do.
            meters: Count where the time goes.

        Raises:
            Denied: An input may not be read.
            StorageError: Storage goes on failing.
        """
        outcomes = [Outcome() for _ in records]
        meters = meters or StageTimers()
        wait = Wait()
        began = wait.since
        decoded = self.decoders.decode(self._fetched(records, outcomes, meters), meters)
        encoding: deque[Future[None]] = deque()
        for batch in self._batches(_awaited(decoded, wait), records, outcomes, meters, wait):
            classes = self._segmented(batch, outcomes, meters, wait)
            with wait.for_output():
                while len(encoding) >= _BATCHES_ENCODED_AHEAD:
                    encoding.popleft().result()
            encoding.append(self._encoders.submit(self._encode, batch.indices, classes, outcomes, meters, began))
        for future in encoding:
            future.result()
        return outcomes

    def _fetched(
        self, records: Sequence[Record], outcomes: list[Outcome], meters: StageTimers
    ) -> Iterator[tuple[int, Fetched]]:
        pending: deque[Future[list[Fetched]]] = deque()
        reader = self.inputs.reader(records)
        groups = _fetch_groups(records)
        fetched = 0
        while True:
            while len(pending) < _FETCHES and (part := next(groups, None)) is not None:
                pending.append(self._fetch_group(reader, records[part], outcomes[part]))
            if not pending:
                break
            group = pending.popleft().result()
            full = bool(pending) and pending[-1].done()
            those = outcomes[fetched : fetched + len(group)]
            meters.add("fetch", busy=sum(outcome.seconds.get("fetch", 0.0) for outcome in those))
            handed = time.perf_counter()
            yield from enumerate(group, start=fetched)
            fetched += len(group)
            if full:
                meters.add("fetch", blocked=time.perf_counter() - handed)

    def _fetch_group(
        self, reader: Reader, records: Sequence[Record], outcomes: Sequence[Outcome]
    ) -> Future[list[Fetched]]:
        if _kind(records[0]) != "file":
            return self._fetchers.submit(lambda: list(map(partial(self._fetch, reader), records, outcomes)))
        left: Future[list[Fetched]] = Future()  # to the processes that decode them
        left.set_result(list(map(partial(self._left, reader), records, outcomes)))
        return left

    def _left(self, reader: Reader, record: Record, outcome: Outcome) -> LocalFile | Failure:
        fetch = partial(self._fetch, reader, record, outcome)
        size = record.size or 0
        return _STREAMED if size > STREAM_BYTES else LocalFile(self.inputs.local_path(record), record.etag, size, fetch)

    def _fetch(self, reader: Reader, record: Record, outcome: Outcome) -> bytes | Failure:
        if (record.size or 0) > STREAM_BYTES:
            return _STREAMED
        started = time.perf_counter()
        try:
            return reader.read(record)
        except (NotFound, Changed, Denied, Fault) as error:
            return _fetch_failure(record, error)
        finally:
            self._move()
            outcome.seconds["fetch"] = time.perf_counter() - started

    def _stream(self, record: Record, outcome: Outcome, meters: StageTimers, wait: Wait) -> None:
        """The whole way of one image, in rows. The device is its alone for that time."""
        started = time.perf_counter()
        outcome.failure = None

        def read(top: int, bottom: int) -> NDArray[np.uint8]:
            self._move()
            return stream.read(top, bottom)

        try:
            with self.inputs.opened(record) as file, Stream(file.fileno(), self.decoders.limits) as stream:
                outcome.size = stream.height, stream.width
                writer = self._encoder.row_encoder(*outcome.size) if self._encoder is not None else None
                with self._device.work(meters, wait, alone=True):
                    statistics = self.segmenter.segment_rows(
                        read, *outcome.size, writer.write if writer is not None else _nowhere
                    )
            (columns,) = _columns(statistics)
            if statistics.finite[0]:
                outcome.columns = columns
                outcome.mask = writer.finish() if writer is not None else None
            else:
                outcome.failure = _NON_FINITE
        except Unreadable as error:
            outcome.failure = error.failure
        except (NotFound, Changed, Denied, Fault) as error:
            outcome.failure = _fetch_failure(record, error)
        except ValueError as error:
            outcome.failure = Failure("segment", "not_tileable", str(error))
        except MemoryError as error:
            outcome.failure = Failure("segment", "out_of_memory", str(error))
        if outcome.failure is not None:
            outcome.mask, outcome.columns = None, {}
        outcome.seconds["segment"] = time.perf_counter() - started

    def _batches(
        self,
        decoded: Iterable[Decoded],
        records: Sequence[Record],
        outcomes: list[Outcome],
        meters: StageTimers,
        wait: Wait,
    ) -> Iterator[_Batch]:
        """Images of one shape together, each batch as soon as it is full, the rest by the age of their first image.

        What is too large to be decoded whole is done by itself, here and now.
        """
        open_: dict[tuple[int, ...], _Batch] = {}
        held = 0
        for image in decoded:
            self._move()
            outcome = outcomes[image.number]
            outcome.seconds["decode"] = image.seconds
            if image.reading:
                outcome.seconds["fetch"] = image.reading
            outcome.failure = image.failure
            if image.failure is not None and image.failure.error_class == STREAM:
                self._stream(records[image.number], outcome, meters, wait)
            if image.pixels is None:
                continue
            outcome.size = image.size
            shape = image.pixels.shape
            key = (*shape, *image.size)
            if key not in open_:
                number = self.segmenter.batch_size(*shape[:2])
                open_[key] = _Batch([], self.segmenter.room(number, *shape[:2]), image.size)
                held += open_[key].pixels.nbytes
            batch = open_[key]
            batch.pixels[len(batch.indices)] = image.pixels
            batch.indices.append(image.number)
            full = len(batch.indices) == len(batch.pixels)
            # Many shapes at once would hold many unfinished batches; the oldest goes as it is. This too
            # follows from the records alone.
            while full or (held > _OPEN_BYTES and len(open_) > 1):
                ready = open_.pop(key if full else next(iter(open_)))
                held -= ready.pixels.nbytes
                full = False
                yield _trimmed(ready)
        for batch in open_.values():
            yield _trimmed(batch)

    def _segmented(self, batch: _Batch, outcomes: list[Outcome], meters: StageTimers, wait: Wait) -> NDArray[np.uint8]:
        alone = self.segmenter.lanes_of(*batch.pixels.shape[1:3]) == 1
        with self._device.work(meters, wait, alone=alone):
            started = time.perf_counter()
            try:
                classes, statistics = self.segmenter.segment(batch.pixels, batch.size)
            except ValueError as error:  # needs tiles that its network does not allow
                for index in batch.indices:
                    outcomes[index].failure = Failure("segment", "not_tileable", str(error))
                return np.empty((len(batch.indices), 0, 0), np.uint8)
            except MemoryError as error:
                for index in batch.indices:
                    outcomes[index].failure = Failure("segment", "out_of_memory", str(error))
                return np.empty((len(batch.indices), 0, 0), np.uint8)
            self._move()
            share = (time.perf_counter() - started) / len(batch.indices)
        for index, finite, columns in zip(batch.indices, statistics.finite, _columns(statistics), strict=True):
            outcomes[index].seconds["segment"] = share
            if finite:
                outcomes[index].columns = columns
            else:
                outcomes[index].failure = _NON_FINITE
        return classes

    def _encode(
        self,
        indices: Sequence[int],
        classes: NDArray[np.uint8],
        outcomes: list[Outcome],
        meters: StageTimers,
        began: float,
    ) -> None:
        if not hasattr(self._encoding, "resource"):
            self._encoding.resource = Resource("encode")
        # Masks wait for nothing but the class maps; what they take is held by the shard until it is written.
        with self._encoding.resource.work(meters, Wait(starved=math.inf, since=began)):
            for index, class_map in zip(indices, classes, strict=True):
                started = time.perf_counter()
                if self._encoder is not None and outcomes[index].failure is None:
                    outcomes[index].mask = self._encoder.encode(class_map)
                outcomes[index].seconds["encode"] = time.perf_counter() - started
        self._move()


_STREAMED = Failure("decode", STREAM, "larger than what is read whole")
_NON_FINITE = Failure(
    "segment", "non_finite", "the network gave values that are not finite, in fp32 too; use other weights"
)


def _fetch_groups(records: Sequence[Record]) -> Iterator[slice]:
    """Small neighbours of one kind: local files, or parts of files. Objects go singly: waiting is best done at once."""
    start = size = 0
    before: _Kind | None = None
    for number, record in enumerate(records):
        kind = _kind(record)
        more = _SMALL_BYTES + 1 if kind == "object" or record.size is None else record.size
        if number > start and (kind != before or size + more > _SMALL_BYTES or number - start == _FETCHED_TOGETHER):
            yield slice(start, number)
            start, size = number, 0
        size += more
        before = kind
    if records:
        yield slice(start, len(records))


_Kind = Literal["part", "object", "file"]


def _kind(record: Record) -> _Kind:
    if is_member(record.url):
        return "part"
    return "file" if is_local(record.url) else "object"


def _fetch_failure(record: Record, error: NotFound | Changed | Denied | Fault) -> Failure:
    match error:
        case Fault():
            return Failure("fetch", error.error_class, str(error))
        case NotFound():
            return Failure("fetch", "missing", f"{error}; it was deleted after the plan, or the list is out of date")
        case Changed():
            return Failure("fetch", "changed", str(error))
        case Denied():
            # One file's permissions are that image's failure; a bucket's are the job's.
            if not is_local(record.url):
                raise error
            return Failure("fetch", "denied", str(error))


def _awaited(decoded: Iterator[Decoded], wait: Wait) -> Iterator[Decoded]:
    while True:
        with wait.for_input():
            image = next(decoded, None)
        if image is None:
            return
        yield image


def _nowhere(_: NDArray[np.uint8]) -> None:
    """Where masks are not wanted."""


def _trimmed(batch: _Batch) -> _Batch:
    return batch._replace(pixels=batch.pixels[: len(batch.indices)])


def _columns(statistics: "Statistics") -> Iterator[dict[str, Any]]:
    """What the table says of each image."""
    pixels = statistics.class_pixels
    columns: dict[str, NDArray[Any]] = {
        "class_pixels": pixels,
        "class_fraction": pixels / statistics.pixels[:, None],
        "class_bbox": statistics.class_bbox,
        "mean_confidence": statistics.mean_confidence,
        "mean_entropy": statistics.mean_entropy,
        "input_mean": statistics.input_mean,
        "input_std": statistics.input_std,
    }
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        row = dict(zip(columns, values, strict=True))
        boxes = zip(row["class_bbox"], row["class_pixels"], strict=True)
        yield row | {"class_bbox": [box if count else None for box, count in boxes]}
