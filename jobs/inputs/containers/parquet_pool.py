"""The processes reading Parquet, shared by all files, and a file as it is read through them."""

import json
import threading
import time
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from maskfleet.jobs.inputs.containers.parquet_process import PROGRAM, TRIES, ReadingProcess
from maskfleet.jobs.inputs.containers.parquet_protocol import Answer, Unreadable, too_many
from maskfleet.jobs.isolation.process import Died
from maskfleet.jobs.storage.files import Files
from maskfleet.jobs.storage.ranged import RangedFile

_MOST = 8
_ROWS_AT_ONCE = 8192
_PATIENCE = 0.2
"""Seconds to wait for a process before another one is started: starting one takes longer than reading a small file."""


class ParquetPool:
    """Processes reading Parquet; in a subclass, another foreign format. Safe from several threads.

    The first one starts with the first file.

    A file in use keeps its process, and with it the place in the file, as long as there are processes enough.

    Attributes:
        module: Program of the processes.
        started: Number of processes started so far.
    """

    module: ClassVar[str] = PROGRAM

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[tuple[ReadingProcess, weakref.ref[OpenTable] | None]] = []
        self._all: set[ReadingProcess] = set()
        self._starting = 0
        self.started = 0
        weakref.finalize(self, _stop, self._all)

    @property
    def process_ids(self) -> list[int]:
        """Ids of the live processes."""
        return [process.pid for process in self._all]

    def close(self) -> None:
        """End the processes."""
        _stop(self._all)

    @contextmanager
    def lent(self, table: "OpenTable") -> Iterator[ReadingProcess]:
        """Yield a process for one request."""
        process = self._taken(table)
        try:
            yield process
        finally:
            if not process.usable:
                process.stop()
            with self._changed:
                if process.usable:
                    self._idle.append((process, weakref.ref(table)))
                else:
                    self._all.discard(process)
                self._changed.notify_all()

    def release(self, table: "OpenTable") -> None:
        """Let others have the process of a file that is not read any more."""
        with self._changed:
            self._idle = [(process, None if ref and ref() is table else ref) for process, ref in self._idle]
            self._changed.notify_all()

    def _taken(self, table: "OpenTable") -> ReadingProcess:
        with self._changed:
            found = self._awaited(table)
            if found is not None:
                self._idle = [item for item in self._idle if item[0] is not found]
                return found
            self._starting += 1
        process: ReadingProcess | None = None
        try:
            process = ReadingProcess(self.module)
            return process
        finally:
            with self._changed:
                self._starting -= 1
                if process is not None:
                    self._all.add(process)
                    self.started += 1
                self._changed.notify_all()

    def _awaited(self, table: "OpenTable") -> ReadingProcess | None:
        """Wait for a process; return None to start another one. One starts at a time."""
        since: float | None = None
        while True:
            if (found := self._best(table)) is not None:
                return found
            if self._starting:
                self._changed.wait()
                continue
            now = time.monotonic()
            since = now if since is None else since
            if not self._all or (len(self._all) < _MOST and now - since >= _PATIENCE):
                return None
            if len(self._all) >= _MOST and self._idle:
                return self._idle[0][0]
            self._changed.wait(_PATIENCE)

    def _best(self, table: "OpenTable") -> ReadingProcess | None:
        """Return the idle process of a file, else one that nobody uses, best with the same file open."""
        free: list[ReadingProcess] = []
        for process, ref in self._idle:
            owner = ref and ref()
            if owner is table:
                return process
            if owner is None:
                free.append(process)
        return next((process for process in free if process.version == table.version), free[0] if free else None)


def _stop(processes: set[ReadingProcess]) -> None:
    for process in list(processes):
        process.stop()
    processes.clear()


class OpenTable:
    """A Parquet file read by other processes. Every request stands alone, so that a dead process is replaced.

    Args:
        pool: The processes.
        file: The file.
        version: What is equal for files with the same bytes.

    Attributes:
        version: As given.
    """

    def __init__(self, pool: ParquetPool, file: RangedFile, version: Hashable) -> None:
        self.version = version
        self._pool, self._file = pool, file

    def ask(self, name: str, *arguments: Any) -> Answer:
        """Ask for something in the file; see `parquet_program.Reader`.

        Raises:
            Unreadable: The file, or a part of it, cannot be read.
            StorageError: Storage failed, or the file is missing or has changed.
        """
        for _ in range(TRIES):
            try:
                with self._pool.lent(self) as process:
                    if process.version != self.version:
                        process.version = None
                        process.ask(self._file, "open", self._file.size())
                        process.version = self.version
                    return process.ask(self._file, name, *arguments)
            except Died as death:
                if death.error_class == "timeout":
                    raise Unreadable("slow_parquet") from death
        raise Unreadable("damaged_parquet")

    def list_of(self, name: str, *arguments: Any) -> list[Any]:
        """Ask for a list, in the bytes of the answer. Raises as `ask`."""
        try:
            found = json.loads(self.ask(name, *arguments).data)
        except (ValueError, RecursionError) as error:
            raise Unreadable("damaged_parquet") from error
        if not isinstance(found, list):
            raise Unreadable("damaged_parquet")
        return found

    def values(self, columns: list[str]) -> Iterator[list[Any]]:
        """Yield the values of some columns, row by row.

        Raises:
            Unreadable: The file is damaged, or a column is encrypted or does not exist.
        """
        return self._scanned("values", columns, width=len(columns))

    def inventory(self, names: list[str]) -> Iterator[list[Any]]:
        """Yield key, size and ETag of each object in a CSV file of an S3 Inventory.

        Args:
            names: Names of its columns.

        Raises:
            Unreadable: The file is damaged.
        """
        return self._scanned("inventory", names, width=3)

    def _scanned(self, name: str, columns: list[str], *, width: int) -> Iterator[list[Any]]:
        start = 0
        while rows := self.list_of(name, columns, start, _ROWS_AT_ONCE):
            # The process may be in the hands of the file, so its answers are no better than that.
            if not all(isinstance(row, list) and len(row) == width for row in rows):
                raise Unreadable("damaged_parquet")
            yield from rows
            start += len(rows)
            if too_many(start, self._file.size()):
                raise Unreadable("too_large_parquet")

    def release(self) -> None:
        """Let others have the process: this file is not read any more, or not soon."""
        self._pool.release(self)


def table_of_file(file: RangedFile, files: Files) -> OpenTable:
    """Return a file to be read from its start, with no other knowledge of it."""
    return OpenTable(files.companion(ParquetPool), file, version=object())
