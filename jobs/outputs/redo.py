"""Images to be done again although nothing about them has changed, since their masks or rows are damaged.

Commits are never changed. Instead, a new version of the catalog gives the images the status `redo`, and the next run
plans them for that reason. One record makes the request, so a crash leaves all of it or nothing, and a repeated request
changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import on_overlap, state_of, stored_runs
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass
class Redo:
    """A request to do images again.

    Attributes:
        images: Number of images to be done again.
        jobs: The newest job of each of their inputs, as a table such as a job file holds, limited to these images.
        inputs: Inputs of which no run is left, so that their jobs are unknown.
    """

    images: int = 0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


def redo(
    output: str,
    *,
    keys: Sequence[str] = (),
    shards: Sequence[str] = (),
    runs: Sequence[str] = (),
    profile: str | None = None,
    waiting: Callable[[str], object] = lambda _: None,
) -> Redo:
    """Have images done again by the next run.

    Args:
        output: Output of a job: path or URL.
        keys: Keys of images, or unique endings of them.
        shards: Shards, as `<run>/<shard>`: their images, unless a later run has done them.
        runs: Runs: all their images, unless a later run has done them.
        profile: AWS profile.
        waiting: See `jobs.ledger.lock.locked`.

    Raises:
        JobError: The output has no finished run, or no such image, or the run is yet to be finished.
        Locked: A run holds the output.
    """
    storage = open_storage(output, profile=profile)
    with locked(storage, on_overlap(storage), waiting=waiting) as lock:
        version = catalog.current(storage)
        if not version.number and next(stored_runs(storage), None) is None:
            raise JobError(f"there is no run in {storage.root}; correct the path")
        if not version.number:
            raise JobError(
                f"{storage.root} has no catalog; run its job first: it makes the catalog, and what is missing"
            )
        wanted = _Wanted(storage, version, keys=keys, shards=shards, runs=runs)
        found = Redo()
        inputs: dict[str, None] = {}

        def counted() -> Iterator[pa.Table]:
            for table in catalog.rows(storage, version):
                rows = wanted.of(table)
                found.images += rows.num_rows
                inputs.update(dict.fromkeys(rows["input"].unique().to_pylist()))
                yield rows.filter(pc.not_equal(rows["status"], catalog.REDO))

        catalog.mark_redo(lock.fence.storage, counted(), fence=lock.fence)
    for run_id in dict.fromkeys([*runs, *(shard.partition("/")[0] for shard in shards)]):
        if not found.images and storage.names(f"runs/{run_id}") and state_of(storage, run_id) == "unfinished":
            raise JobError(
                f"run {run_id} is unfinished; run its job: it finishes the run, or sets it aside and goes on"
            )
    of_input = {run.input: dict(run.job) for run in stored_runs(storage)}  # the newest of each input
    for name in inputs:
        if name in of_input:
            found.jobs.append(of_input[name] | {"select": {"only": ["redo"]}})
        else:
            found.inputs.append(name)
    return found


class _Wanted:
    """The images of a request."""

    def __init__(
        self, storage: Storage, version: catalog.Version, *, keys: Sequence[str], shards: Sequence[str],
        runs: Sequence[str],
    ) -> None:  # fmt: skip
        self._keys = pa.array([catalog.ending(storage, version, key) for key in keys], pa.string())
        self._runs = pa.array(list(runs), pa.string())
        self._shards = [_Shard(storage, name) for name in shards]

    def of(self, table: pa.Table) -> pa.Table:
        """Return the rows of these images. Images no longer in the input are left out."""
        wanted = pc.or_(pc.is_in(table["key"], value_set=self._keys), pc.is_in(table["run_id"], value_set=self._runs))
        for shard in self._shards:
            wanted = pc.or_(wanted, shard.holds(table))
        return table.filter(pc.and_(wanted, pc.not_equal(table["status"], catalog.GONE)))


class _Shard:
    """The images of one shard, by its plan; if that is lost, by the catalog.

    Args:
        storage: Output storage.
        name: `<run>/<shard>`.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._run_id, _, self._id = name.partition("/")
        if not self._id[:5].isdigit() or not storage.names(f"runs/{self._run_id}"):
            raise JobError(f"there is no shard {name} in {storage.root}; write it as verify shows it: RUN/SHARD")
        keys: list[str] = []
        with suppress(StorageError):
            keys = Manifest.stored(storage, self._run_id).keys_of(self._id)
        self._keys = pa.array(keys, pa.string())

    def holds(self, table: pa.Table) -> pa.ChunkedArray:
        """Tell which rows are the newest of their image and of this shard."""
        shard = pc.fill_null(table["shard"], "")
        of_shard = pc.or_(pc.equal(shard, self._id), pc.starts_with(shard, f"{self._id}."))
        of_shard = pc.or_(of_shard, pc.is_in(table["key"], value_set=self._keys))
        return pc.and_(pc.equal(table["run_id"], self._run_id), of_shard)
