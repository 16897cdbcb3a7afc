"""The compacted statistics of each run: where they are stored, how they are read, and the move from the old layout.

    stats/<run_id>/part-00000.parquet           one row per image of the run, in the manifest's order
    stats/run_id=<run_id>/part-00000.parquet    the old layout

The files hold a column `run_id`. Pandas and pyarrow derive a second, conflicting one from a folder named `run_id=…`, so
runs write the new layout, and `migrate` moves what an earlier version wrote. Readers accept both.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.storage.contract import Storage

FOLDER = "stats"
"""Folder of all runs' statistics."""

_OLD = "run_id="
_RUNS_IN_FLIGHT = 16


def folder_of(run_id: str) -> str:
    """Folder of a run's statistics."""
    return f"{FOLDER}/{run_id}"


def run_ids(storage: Storage) -> list[str]:
    """Return the ids of the runs with statistics, in either layout."""
    return sorted({name.removeprefix(_OLD) for name in storage.names(FOLDER)})


def write_part(storage: Storage, run_id: str, number: int, data: bytes) -> None:
    """Store one file of a run's statistics."""
    storage.write(f"{folder_of(run_id)}/part-{number:05}.parquet", data)


def tables(storage: Storage, run_id: str) -> Iterator[pa.Table]:
    """Yield the rows of a run, one file at a time, in the manifest's order.

    Raises:
        Damaged: A file cannot be read.
    """
    for data in _files(storage, run_id):
        with _read_well(storage, run_id):
            table = statistics.read(data)
        yield table


def row_groups(storage: Storage, run_id: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a run, one row group at a time, in the manifest's order and with the columns as stored.

    Args:
        storage: Output storage.
        run_id: The run.
        columns: Columns to read; None for all.

    Raises:
        Damaged: A file cannot be read.
    """
    for data in _files(storage, run_id):
        with _read_well(storage, run_id):
            file = pq.ParquetFile(io.BytesIO(data))
        for group in range(file.num_row_groups):
            with _read_well(storage, run_id):
                table = file.read_row_group(group, columns=None if columns is None else list(columns))
            yield table


@contextmanager
def _read_well(storage: Storage, run_id: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise Damaged(
            f"{storage.url(folder_of(run_id))} is damaged; restore it, or make the run's images again: "
            f"maskfleet redo {storage.root} --run {run_id}"
        ) from error


def migrate(storage: Storage, fence: Fence) -> None:
    """Move statistics of the old layout to the new one. Does nothing if there are none.

    Every file is copied before its original is deleted. An interrupted move loses nothing, readers see each file once,
    and the next call finishes it.

    Args:
        storage: Output storage.
        fence: Fence of the lock's holder.

    Raises:
        Locked: Another driver has taken over the output.
    """
    runs = [name.removeprefix(_OLD) for name in storage.names(FOLDER) if name.startswith(_OLD)]
    with ThreadPoolExecutor(_RUNS_IN_FLIGHT) as pool:
        for _ in pool.map(lambda run_id: _move(storage, fence, run_id), runs):
            pass


def _move(storage: Storage, fence: Fence, run_id: str) -> None:
    old, new = _old_folder_of(run_id), folder_of(run_id)
    for name in storage.names(old):
        data = storage.read(f"{old}/{name}")
        fence.check()
        # Created, not written: an existing file is an earlier copy or newer statistics of the same run.
        storage.create(f"{new}/{name}", data)
        storage.discard(f"{old}/{name}")
    storage.remove_folder(old)


def _old_folder_of(run_id: str) -> str:
    return f"{FOLDER}/{_OLD}{run_id}"


def _files(storage: Storage, run_id: str) -> Iterator[bytes]:
    # The old layout is listed first: a file moved between the two listings is then in both.
    names = {*storage.names(_old_folder_of(run_id)), *storage.names(folder_of(run_id))}
    for name in sorted(names):
        if name.endswith(".parquet"):
            yield _read(storage, run_id, name)


def _read(storage: Storage, run_id: str, name: str) -> bytes:
    new = f"{folder_of(run_id)}/{name}"
    for path in (new, f"{_old_folder_of(run_id)}/{name}"):
        try:
            return storage.read(path)
        except NotFound:
            continue
    return storage.read(new)  # moved between the two reads
