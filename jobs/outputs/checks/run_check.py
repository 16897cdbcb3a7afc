"""The check of one run: its plan, its commits, the files of its shards, and its compacted statistics."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from maskfleet.jobs.errors import Damaged, StorageError
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import Commit, checked
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.runs import StoredRun
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.storage.contract import Storage

UNREADABLE = (StorageError, pa.ArrowException, ValueError, KeyError)
"""What reading damaged files raises."""


class LooseMask(NamedTuple):
    """What is known of a loose mask.

    Attributes:
        sha256: Its SHA-256.
        key: Key of its image.
        shard: Its shard, as `<run>/<shard>`.
        shared: Key of another image with the same name for its mask; None if there is none.
    """

    sha256: str
    key: str
    shard: str
    shared: str | None


class RunCheck:
    """The check of one run.

    Attributes:
        run_id: Id of the run.
        finished: Whether the run is finished, so that everything must be there.
        images: Number of rows checked.

    Raises:
        Damaged: A commit cannot be read.
    """

    def __init__(self, storage: Storage, run: StoredRun, manifest: Manifest, *, finished: bool) -> None:
        self._storage = storage
        self._manifest = manifest
        self._commits, self._damaged = run.commits(storage).readable()
        self._format = mask_format(run.mask_format)
        self._compacted = _CompactedCheck(storage, run.run_id)
        self.run_id = run.run_id
        self.finished = finished
        self.images = 0

    def problems(self, loose: dict[str, LooseMask]) -> Iterator[tuple[str | None, str]]:
        """Yield the problems of the run, each with its shard, if it concerns only one.

        Args:
            loose: What is known of each loose mask, by name; updated with the masks of this run.
        """
        missing: list[str] = []
        for shard, commit in _parts(self._manifest.shards(), self._commits):
            if commit is None and shard.id not in self._damaged:
                missing.append(shard.id)
                self._compacted.skip(len(shard))
                continue
            try:
                table = self._rows_of(shard, commit)
            except StorageError as error:
                yield shard.id, f"shard {shard.id}: {error}"
                self._compacted.skip(len(shard))
                continue
            assert commit is not None
            try:
                yield from ((shard.id, problem) for problem in self._shard_problems(shard, commit, table))
            except StorageError as error:
                yield shard.id, f"shard {shard.id}: {error}"
            self.images += table.num_rows
            if self.finished:
                self._compacted.expect(table)
            if self._format.loose:
                self._expect_loose(shard, table, loose)
        if self.finished and missing:
            count = "1 shard has" if len(missing) == 1 else f"{len(missing)} shards have"
            yield missing[0] if len(missing) == 1 else None, f"{count} no commit, the first is {missing[0]}"
        if self.finished:
            yield from ((None, problem) for problem in self._compacted.problems())

    def is_superseded(self, shard_id: str) -> bool:
        """Tell whether later runs have done all images of a shard again, or found them gone."""
        version = catalog.current(self._storage)
        try:
            rows = [catalog.find(self._storage, version, key) for key in self._keys_of(shard_id)]
        except (*UNREADABLE, StopIteration):
            return False
        return all(row is not None and row["run_id"] > self.run_id for row in rows)

    def _keys_of(self, shard_id: str) -> list[str]:
        try:
            return self._manifest.keys_of(shard_id)
        except Damaged:  # the plan; the rows may be there
            keys: list[str] = rows_of(self._storage, self._commits[shard_id])["key"].to_pylist()
            return keys

    def _rows_of(self, shard: Shard, commit: Commit | None) -> pa.Table:
        if commit is None:
            raise self._damaged[shard.id]
        return rows_of(self._storage, commit)

    def _expect_loose(self, shard: Shard, table: pa.Table, loose: dict[str, LooseMask]) -> None:
        for row in table.select(["key", "mask_member", "mask_sha256"]).to_pylist():
            name = row["mask_member"]
            if name is not None and self.finished:
                before = loose.get(name)
                shared = None if before is None else before.shared if before.key == row["key"] else before.key
                loose[name] = LooseMask(row["mask_sha256"], row["key"], f"{self.run_id}/{shard.id}", shared)
            elif name is not None:
                loose.pop(name, None)  # about to be replaced, or just replaced

    def _shard_problems(self, shard: Shard, commit: Commit, table: pa.Table) -> Iterator[str]:
        planned = [record.key for record, _ in self._manifest.records(shard)]
        rows = table.to_pylist()
        if [row["key"] for row in rows] != planned:
            yield f"shard {shard.id}: the rows do not match the planned images one to one"
        if commit.images != len(rows) or commit.failed != sum(row["status"] == "failed" for row in rows):
            yield f"shard {shard.id}: the counts of its commit differ from its rows"
        files: dict[str, bytes] = {}
        if self._format.archive is not None and self._format.archive in commit.objects:
            archive = checked(self._storage, commit.objects[self._format.archive])
            files = dict(self._format.unpack(archive))
            if not self._format.agrees(archive, table):
                yield f"shard {shard.id}: the rows stored with its masks differ from its statistics"
        for row in rows:
            yield from (f"{row['key']}: {problem}" for problem in _row_problems(row, files, self._format))
        if files:
            count = "1 mask belongs" if len(files) == 1 else f"{len(files)} masks belong"
            yield f"shard {shard.id}: {count} to no row, such as {next(iter(files))}"


def _parts(shards: Iterable[Shard], commits: Mapping[str, Commit]) -> Iterator[tuple[Shard, Commit | None]]:
    """Yield the shards, or halves of split shards, with their commits, in the manifest's order."""
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is not None and commit.split:
            yield from _parts(shard.halves(), commits)
        else:
            yield shard, commit


def _row_problems(row: dict[str, Any], files: dict[str, bytes], format_: MaskFormat) -> Iterator[str]:
    """Yield the problems of a row, and remove its mask from the files of its shard."""
    if row["status"] == "failed":
        if any(value is not None for column, value in row.items() if column.startswith("mask_")):
            yield "failed, but has a mask"
        if not (row["stage"] and row["error_class"] and row["error_message"]):
            yield "failed without a reason"
        return
    yield from format_.problems(row, files.pop(row["mask_member"], None))


class _CompactedCheck:
    """The comparison of a run's compacted statistics with its committed rows. Holds a few thousand rows of each."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._folder = compacted.folder_of(run_id)
        self._groups = compacted.row_groups(storage, run_id)
        self._held = statistics.SCHEMA.empty_table()
        self._expected = self._found = 0
        self._equal = True
        self._error = ""

    def expect(self, rows: pa.Table) -> None:
        """Compare the next committed rows."""
        found = self._next(rows.num_rows)
        self._equal = self._equal and found.equals(rows)

    def skip(self, count: int) -> None:
        """Pass over the rows of a shard that cannot be read."""
        self._next(count)

    def _next(self, count: int) -> pa.Table:
        while self._held.num_rows < count and (group := self._next_group()) is not None:
            self._found += group.num_rows
            self._held = pa.concat_tables([self._held, group]) if self._held.num_rows else group
        found, self._held = self._held.slice(0, count), self._held.slice(count)
        self._expected += count
        return found

    def _next_group(self) -> pa.Table | None:
        try:
            return next(self._groups, None)
        except StorageError as error:
            self._error = str(error)
            return None

    def problems(self) -> Iterator[str]:
        """Yield the difference, if any, after the last committed rows."""
        while (group := self._next_group()) is not None:
            self._found += group.num_rows
        if self._error:
            yield self._error
        elif not self._equal or self._found != self._expected:
            yield f"{self._folder} has {self._found} rows and differs from the {self._expected} committed rows"
