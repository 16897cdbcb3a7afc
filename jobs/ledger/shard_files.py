"""The files of a committed shard: its statistics, and the archive of its masks."""

from collections.abc import Iterator

import pyarrow as pa

from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.commit import Commit, checked
from maskfleet.jobs.masks.formats import MaskFormat
from maskfleet.jobs.storage.contract import Storage

STATISTICS = "stats.parquet"
"""Name of the object with a shard's statistics."""


def rows_of(storage: Storage, commit: Commit) -> pa.Table:
    """Read the statistics of a committed shard.

    Raises:
        StorageError: They are missing or damaged.
    """
    return statistics.read(checked(storage, commit.objects[STATISTICS]))


def masks_of(storage: Storage, commit: Commit, format_: MaskFormat) -> Iterator[tuple[str, bytes]]:
    """Yield name and file of each mask in a committed shard's archive, in the order of its rows.

    Raises:
        StorageError: The archive is missing or damaged.
    """
    if format_.archive is not None and format_.archive in commit.objects:
        yield from format_.unpack(checked(storage, commit.objects[format_.archive]))
