"""Fetching: reads the bytes of each image, with many concurrent requests, and yields them in the order of the shard.

Local files are not fetched here: the decoding processes read them.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Literal, NamedTuple

from maskfleet.jobs.images.contract import STREAM, Failure, Fetched, LocalFile
from maskfleet.jobs.images.streams import STREAM_BYTES
from maskfleet.jobs.inputs.containers.formats import is_member
from maskfleet.jobs.inputs.fetch import Inputs, Reader, read_or_fail
from maskfleet.jobs.inputs.pages.copies import Copies, Copy
from maskfleet.jobs.inputs.pages.names import encoded, page_of
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.run.stages.shard_pass import Movement, Outcome, ShardPass
from maskfleet.jobs.storage.local_file import read
from maskfleet.jobs.storage.schemes import is_local

REQUESTS = 32
"""Largest number of requests in flight."""

_GROUP = 16
"""Largest number of consecutive images fetched by one thread. Members of tar and Parquet files are read in large pieces
anyway, and waking a thread for each would cost more than reading a small image."""

_GROUP_BYTES = 2**20
"""Largest size of such a group in bytes."""

_TOO_LARGE = Failure("decode", STREAM, "too large to read into memory")


class Fetch:
    """Reads the bytes of images.

    Args:
        inputs: Reader of records.
        movement: Records progress, to detect stalls.
    """

    def __init__(self, inputs: Inputs, movement: Movement) -> None:
        self._inputs = inputs
        self._movement = movement
        self._threads = ThreadPoolExecutor(REQUESTS, "fetch")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def run(self, shard: ShardPass) -> Iterator[tuple[int, Fetched]]:
        """Yield the index of each image of a shard with its encoded bytes, a local file to read, or its failure.

        Raises:
            Denied: Credentials are missing or wrong.
            StorageError: Storage keeps failing, for other images too.
        """
        records = [outcome.record for outcome in shard.outcomes]
        source = _Source(self._inputs.reader(records), Copies(record.url for record in records), records)
        groups = fetch_groups(records)
        pending: deque[tuple[slice, Future[list[Fetched]]]] = deque()
        while True:
            while len(pending) < REQUESTS and (group := next(groups, None)) is not None:
                pending.append((group, self._submit(source, shard.outcomes[group])))
            if not pending:
                return
            group, future = pending.popleft()
            fetched = future.result()
            ahead = bool(pending) and pending[-1][1].done()
            seconds = sum(outcome.seconds.get("fetch", 0.0) for outcome in shard.outcomes[group])
            shard.timers.add("fetch", busy=seconds)
            handed_on = time.perf_counter()
            yield from enumerate(fetched, start=group.start)
            if ahead:  # all requests in flight are answered, so decoding is the bottleneck
                shard.timers.add("fetch", blocked=time.perf_counter() - handed_on)

    def _submit(self, source: "_Source", group: Sequence[Outcome]) -> Future[list[Fetched]]:
        if _kind(group[0].record) != "file":
            return self._threads.submit(lambda: [self._fetched(source, outcome) for outcome in group])
        files: Future[list[Fetched]] = Future()
        files.set_result([self._file(source, outcome) for outcome in group])
        return files

    def _file(self, source: "_Source", outcome: Outcome) -> LocalFile | Failure:
        record, page = outcome.record, page_of(outcome.record.url).number
        size = record.size or 0
        if size > STREAM_BYTES:
            return _TOO_LARGE
        path = self._inputs.local_path(record)
        read = partial(self._read_file, source, outcome, path) if page else partial(self._read, source, outcome)
        return LocalFile(path, record.etag, size, read, page)

    def _read_file(self, source: "_Source", outcome: Outcome, path: str) -> bytes | Failure:
        """Read the file of a page whole, after its decoding process could not read a part of it."""
        with suppress(OSError):
            if os.path.getsize(path) > STREAM_BYTES:
                return _TOO_LARGE
        return self._read(source, outcome)

    def _fetched(self, source: "_Source", outcome: Outcome) -> Fetched:
        record = outcome.record
        if (record.size or 0) > STREAM_BYTES:
            return _TOO_LARGE
        if source.copies.holds(record.url):
            return self._page(source, outcome)
        data = self._read(source, outcome)
        return encoded(record.url, data) if isinstance(data, bytes) else data

    def _page(self, source: "_Source", outcome: Outcome) -> LocalFile | Failure:
        """Return one of several pages of a file, as a part of a local copy."""
        record = outcome.record
        started = time.perf_counter()
        try:
            copied = partial(source.copies.copy, record.url, partial(self._inputs.opened, record))
            copy = read_or_fail(self._inputs, record, source.records, copied, copied)
            if isinstance(copy, Failure):
                return copy
            return LocalFile(
                copy.path, None, record.size or 0, partial(self._read_of, copy), page_of(record.url).number
            )
        finally:
            self._movement.note()
            outcome.seconds["fetch"] = time.perf_counter() - started

    def _read_of(self, copy: Copy) -> bytes | Failure:
        return _TOO_LARGE if copy.size > STREAM_BYTES else read(copy.path)

    def _read(self, source: "_Source", outcome: Outcome) -> bytes | Failure:
        record, reader = outcome.record, source.reader
        started = time.perf_counter()
        try:
            return read_or_fail(
                self._inputs, record, source.records, partial(reader.read, record), partial(reader.read_alone, record)
            )
        finally:
            self._movement.note()
            outcome.seconds["fetch"] = time.perf_counter() - started


class _Source(NamedTuple):
    """Where the images of a shard are read."""

    reader: Reader
    copies: Copies
    records: Sequence[Record]


def fetch_groups(records: Sequence[Record]) -> Iterator[slice]:
    """Yield groups of small consecutive records of one kind: local files, or members of containers.

    Each object is a group of its own, so as many requests as possible are in flight.
    """
    start = size = 0
    before: _Kind | None = None
    for number, record in enumerate(records):
        kind = _kind(record)
        more = _GROUP_BYTES + 1 if kind == "object" or record.size is None else record.size
        if number > start and (kind != before or size + more > _GROUP_BYTES or number - start == _GROUP):
            yield slice(start, number)
            start, size = number, 0
        size += more
        before = kind
    if records:
        yield slice(start, len(records))


_Kind = Literal["part", "object", "file"]


def _kind(record: Record) -> _Kind:
    if is_member(page_of(record.url).file):
        return "part"
    return "file" if is_local(record.url) else "object"
