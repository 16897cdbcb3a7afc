"""Verification: the invariants of an output, checked again from storage alone.

1. Every planned image has exactly one row in its run, in the manifest's order.
2. Every shard has one commit, and every file named by it has the stated size and SHA-256.
3. Every `ok` row has its mask, with its size and SHA-256 or as run lengths in the row; no `failed` row has one.
4. The class counts of every row are those of its mask, and the mask has the size of its image.
5. The compacted statistics are the committed rows.
6. Every loose mask equals the mask in its shard's archive.
7. The catalog holds the newest outcome of every image of the finished runs, and nothing else.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, NotFound, StorageError
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import Commit, checked, leaves, pending
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.runs import StoredRun, state_of, stored_runs
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.ledger.sorted_tables import SortedCursor, merged
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.run.derived import catalog_rows
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass
class Audit:
    """The result of a verification.

    Attributes:
        runs: State of each run checked, by id: complete, incomplete or unfinished.
        images: Number of rows checked.
        problems: Problems found, one sentence each. Empty if the output is valid.
    """

    runs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    problems: list[str] = field(default_factory=list)


def verify(output: str, *, profile: str | None = None) -> Audit:
    """Check every run of an output. Of an unfinished run, check the committed shards.

    Raises:
        JobError: There is no run.
    """
    storage = open_storage(output, profile=profile)
    audit = Audit()
    loose: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for run in stored_runs(storage):
        try:
            manifest = Manifest.stored(storage, run.run_id)
        except NotFound:
            continue  # interrupted before its plan was stored: nothing to check
        state = audit.runs[run.run_id] = state_of(storage, run.run_id)
        check = _RunCheck(storage, run, manifest, finished=state != "unfinished")
        audit.problems += (f"run {run.run_id}: {problem}" for problem in check.problems(loose))
        audit.images += check.images
        if check.finished:
            inputs[run.run_id] = run.input
    if not audit.runs:
        raise JobError(f"there is no run in {output}; correct the path")
    audit.problems += _loose_problems(storage, loose)
    audit.problems += _catalog_problems(storage, inputs)
    return audit


class _RunCheck:
    """The check of one run.

    Attributes:
        finished: Whether the run is finished, so that everything must be there.
        images: Number of rows checked.
    """

    def __init__(self, storage: Storage, run: StoredRun, manifest: Manifest, *, finished: bool) -> None:
        self._storage = storage
        self._manifest = manifest
        self._commits = run.commits(storage).all()
        self._format = mask_format(run.mask_format)
        self._compacted = _CompactedCheck(storage, run.run_id)
        self.finished = finished
        self.images = 0

    def problems(self, loose: dict[str, str]) -> Iterator[str]:
        """Yield the problems of the run.

        Args:
            loose: Expected SHA-256 of each loose mask, by name; updated with the masks of this run.
        """
        missing = list(pending(self._manifest.shards(), self._commits))
        if self.finished and missing:
            count = "1 shard has" if len(missing) == 1 else f"{len(missing)} shards have"
            yield f"{count} no commit, the first is {missing[0].id}"
        for shard, commit in leaves(self._manifest.shards(), self._commits):
            try:
                table = rows_of(self._storage, commit)
                yield from self._shard_problems(shard, commit, table)
            except StorageError as error:
                yield f"shard {shard.id}: {error}"
                continue
            self.images += table.num_rows
            if self.finished:
                self._compacted.expect(table)
            if self._format.loose:
                self._expect_loose(table, loose)
        if self.finished:
            yield from self._compacted.problems()

    def _expect_loose(self, table: pa.Table, loose: dict[str, str]) -> None:
        for row in table.select(["mask_member", "mask_sha256"]).to_pylist():
            if row["mask_member"] is not None and self.finished:
                loose[row["mask_member"]] = row["mask_sha256"]
            elif row["mask_member"] is not None:
                loose.pop(row["mask_member"], None)  # about to be replaced, or just replaced

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

    def expect(self, rows: pa.Table) -> None:
        """Compare the next committed rows."""
        while self._held.num_rows < rows.num_rows and (group := next(self._groups, None)) is not None:
            self._found += group.num_rows
            self._held = pa.concat_tables([self._held, group]) if self._held.num_rows else group
        self._equal = self._equal and self._held.slice(0, rows.num_rows).equals(rows)
        self._held = self._held.slice(rows.num_rows)
        self._expected += rows.num_rows

    def problems(self) -> Iterator[str]:
        """Yield the difference, if any, after the last committed rows."""
        self._found += sum(group.num_rows for group in self._groups)
        if not self._equal or self._found != self._expected:
            yield f"{self._folder} has {self._found} rows and differs from the {self._expected} committed rows"


def _loose_problems(storage: Storage, loose: Mapping[str, str]) -> Iterator[str]:
    for name, sha256 in loose.items():
        try:
            data = storage.read(f"masks/{name}")
        except NotFound:
            yield f"masks/{name} is missing"
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            yield f"masks/{name} differs from the committed mask"


def _catalog_problems(storage: Storage, inputs: Mapping[str, str]) -> Iterator[str]:
    """Compare the catalog with the finished runs, given with their inputs. Holds a few thousand rows of each."""
    version = catalog.current(storage)
    if not version.number:  # the next run rebuilds it
        return
    newest = merged([catalog_rows(storage, run_id, input_) for run_id, input_ in inputs.items()], newest=True)
    known = SortedCursor(catalog.rows(storage, version))
    wrong: list[str] = []
    for expected in newest:
        if expected.num_rows:
            found = known.up_to(expected["key"][-1].as_py(), catalog.SCHEMA)
            wrong += _different_keys(expected, found, list(inputs))
    while (found := known.next()) is not None:
        wrong += _different_keys(catalog.SCHEMA.empty_table(), found, list(inputs))
    if wrong:
        count = "1 image" if len(wrong) == 1 else f"{len(wrong)} images"
        yield (
            f"the catalog differs from the finished runs in {count}, such as {wrong[0]}; "
            "delete catalog/, and the next run rebuilds it"
        )


def _different_keys(expected: pa.Table, found: pa.Table, finished: Sequence[str]) -> list[str]:
    """Return the keys of rows that differ in anything but their shard and the name of their mask.

    Rows of unfinished runs are skipped: a run may have been interrupted after its rows were added to the catalog.
    """
    of_finished = pc.is_in(found["run_id"], value_set=pa.array(finished, pa.string()))
    ahead = found["key"].filter(pc.invert(of_finished))
    expected = expected.filter(pc.invert(pc.is_in(expected["key"], value_set=ahead))).drop_columns(["shard", "mask"])
    found = found.filter(of_finished).drop_columns(["shard", "mask"])
    if found.equals(expected):
        return []
    one, other = ({row["key"]: row for row in table.to_pylist()} for table in (expected, found))
    return sorted(key for key in one | other if one.get(key) != other.get(key))
