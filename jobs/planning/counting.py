"""Counting the pages of image files, in processes where a crash costs one file. Reads headers only."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

from maskfleet.jobs.errors import Changed, NotFound, StorageError
from maskfleet.jobs.inputs.containers.formats import is_member
from maskfleet.jobs.inputs.containers.parquet_pool import OpenTable, ParquetPool
from maskfleet.jobs.inputs.containers.parquet_protocol import Unreadable
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.storage.contract import Fault
from maskfleet.jobs.storage.ranged import RangedFile

MOST = 1_000_000
"""Pages of the largest stack. A file that states more is damaged."""

_IN_FLIGHT = 32
_HEAD = 2**16
"""Bytes of a file in a bucket that are read before its process asks for more."""


class CountingPool(ParquetPool):
    """Processes counting pages."""

    module: ClassVar[str] = "maskfleet.jobs.planning.counting_program"


class Counting:
    """Counts the pages of files.

    Args:
        inputs: Reader of records.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def counts(self, records: Sequence[Record]) -> list[int | None]:
        """Return the number of pages of each file; None for one that cannot be read or counted.

        Raises:
            StorageError: Storage fails for other files too.
        """
        with ThreadPoolExecutor(min(_IN_FLIGHT, len(records)), "pages") as threads:
            return list(threads.map(partial(self._count, records), records))

    def _count(self, others: Sequence[Record], record: Record) -> int | None:
        try:
            file = self._opened(record)
            pages = OpenTable(self._inputs.files.companion(CountingPool), file, version=None).ask("pages", file.size())
        except (NotFound, Changed, Fault, Unreadable):  # an attempt to read it gives the reason
            return None
        except StorageError:
            if not self._inputs.answers(record, others):
                raise
            return None
        found = pages.header
        return found if type(found) is int and 1 <= found <= MOST else None

    def _opened(self, record: Record) -> RangedFile:
        if is_member(record.url):
            data = self._inputs.read(record)
            return RangedFile(_Head(data, None), "", len(data), None)
        file = self._inputs.files.ranged(record.url, record.etag, record.size)
        return RangedFile(_Head(file.at(0, _HEAD), file), "", file.size(), None)


class _Head:
    """The first bytes of a file, and what reads the others.

    Args:
        data: The first bytes.
        rest: The file; None if these are all.
    """

    def __init__(self, data: bytes, rest: RangedFile | None) -> None:
        self._data, self._rest = data, rest

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """See `jobs.storage.ranged.Ranges`."""
        if self._rest is None or start + length <= len(self._data):
            return self._data[start : start + length]
        return self._rest.at(start, length)
