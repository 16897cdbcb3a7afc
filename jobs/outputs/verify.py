"""The invariants of an output, checked again from storage alone.

1. Every planned image has exactly one row in its run's statistics, in the manifest's order.
2. Every shard has one commit, and each file that it names is there with its size and sha256.
3. Every `ok` row has its mask in the tar or table, with its size and sha256, or as run lengths in the row; no
   `failed` row has one.
4. The class counts of every row are those of its mask's pixels, and the mask has the image's size.
5. The compacted statistics are the committed rows.
6. Every loose mask is its tar's member.
7. The catalog has the newest outcome of every image of the finished runs, and no other.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, NotFound, StorageError
from maskfleet.jobs.ledger import catalog, compacted, statistics
from maskfleet.jobs.ledger.commit import Commit, Commits, checked, leaves, pending
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.ledger.sorted_tables import SortedCursor, merged
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.run.derived import outcomes_of
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass
class Audit:
    """What was checked.

    Attributes:
        runs: Runs looked at, by id, with their state: complete, incomplete or unfinished.
        images: Rows checked.
        problems: What is wrong, a sentence each; none is good.
    """

    runs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    problems: list[str] = field(default_factory=list)


def verify(output: str, *, profile: str | None = None) -> Audit:
    """Check every run of an output; of an unfinished one, what is committed.

    Raises:
        JobError: There is no run.
    """
    storage = open_storage(output, profile=profile)
    audit = Audit()
    owners: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for run_id in storage.names("runs"):
        try:
            record = json.loads(storage.read(f"runs/{run_id}/job.json"))
            manifest = Manifest.stored(storage, run_id)
        except NotFound:
            continue  # cut off before its plan was frozen; it promised nothing
        audit.runs[run_id] = _state(storage, run_id)
        if audit.runs[run_id] != "unfinished":
            inputs[run_id] = record["job"]["input"]
        audit.problems += (f"run {run_id}: {problem}" for problem in _of_run(storage, record, manifest, audit, owners))
    if not audit.runs:
        raise JobError(f"there is no run in {output}; correct the path")
    audit.problems += _of_loose(storage, owners)
    audit.problems += _of_catalog(storage, inputs)
    return audit


def _state(storage: Storage, run_id: str) -> str:
    try:
        return str(json.loads(storage.read(f"runs/{run_id}/run.json"))["status"])
    except NotFound:
        return "unfinished"


def _of_run(
    storage: Storage, record: dict[str, Any], manifest: Manifest, audit: Audit, owners: dict[str, str]
) -> Iterator[str]:
    run_id = record["run_id"]
    finished = audit.runs[run_id] != "unfinished"
    commits = Commits(storage, run_id, record["commit_mode"]).all()
    missing = list(pending(manifest.shards(), commits))
    if finished and missing:
        yield f"{len(missing)} shards have no commit, the first is {missing[0].id}"
    against = _Compacted(storage, run_id)
    format_ = mask_format(record["job"].get("masks", {}).get("format", "png"))
    for shard, commit in leaves(manifest.shards(), commits):
        try:
            table = rows_of(storage, commit)
            yield from _of_shard(storage, manifest, shard, commit, table, format_)
        except StorageError as error:
            yield f"shard {shard.id}: {error}"
            continue
        audit.images += table.num_rows
        if finished:
            against.expect(table)
        if format_.loose:
            for row in table.to_pylist():
                if row["mask_member"] is not None and finished:
                    owners[row["mask_member"]] = row["mask_sha256"]
                elif row["mask_member"] is not None:
                    owners.pop(row["mask_member"], None)  # about to be replaced, or just replaced
    if finished:
        yield from against.problems()


def _of_shard(
    storage: Storage, manifest: Manifest, shard: Shard, commit: Commit, table: pa.Table, format_: MaskFormat
) -> Iterator[str]:
    planned = [record.key for record, _ in manifest.records(shard)]
    rows = table.to_pylist()
    if [row["key"] for row in rows] != planned:
        yield f"shard {shard.id}: rows are not the planned images, one each"
    if commit.images != len(rows) or commit.failed != sum(row["status"] == "failed" for row in rows):
        yield f"shard {shard.id}: its commit counts other rows than its statistics have"
    files: dict[str, bytes] = {}
    if format_.archive is not None and format_.archive in commit.objects:
        archive = checked(storage, commit.objects[format_.archive])
        files = dict(format_.unpack(archive))
        if not format_.agrees(archive, table):
            yield f"shard {shard.id}: the rows beside its masks are not those of its statistics"
    for row in rows:
        yield from (f"{row['key']}: {problem}" for problem in _of_row(row, files, format_))
    if files:
        yield f"shard {shard.id}: {len(files)} masks belong to no row, such as {next(iter(files))}"


def _of_row(row: dict[str, Any], files: dict[str, bytes], format_: MaskFormat) -> Iterator[str]:
    if row["status"] == "failed":
        if any(value is not None for column, value in row.items() if column.startswith("mask_")):
            yield "failed, and yet has a mask"
        if not (row["stage"] and row["error_class"] and row["error_message"]):
            yield "failed without a reason"
        return
    yield from format_.problems(row, files.pop(row["mask_member"], None))


class _Compacted:
    """A run's compacted statistics against the committed rows as these come; neither are in memory as a whole."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._folder = compacted.folder_of(run_id)
        self._groups = compacted.row_groups(storage, run_id)
        self._held = statistics.SCHEMA.empty_table()
        self._expected = self._found = 0
        self._equal = True

    def expect(self, rows: pa.Table) -> None:
        """These must be the next."""
        while self._held.num_rows < rows.num_rows and (group := next(self._groups, None)) is not None:
            self._found += group.num_rows
            self._held = pa.concat_tables([self._held, group]) if self._held.num_rows else group
        self._equal = self._equal and self._held.slice(0, rows.num_rows).equals(rows)
        self._held = self._held.slice(rows.num_rows)
        self._expected += rows.num_rows

    def problems(self) -> Iterator[str]:
        """What is not as expected; these were all."""
        self._found += sum(group.num_rows for group in self._groups)
        if not self._equal or self._found != self._expected:
            found, expected = self._found, self._expected
            yield f"{self._folder} has {found} rows and is not what the commits hold ({expected} rows)"


def _of_loose(storage: Storage, owners: dict[str, str]) -> Iterator[str]:
    for name, sha256 in owners.items():
        try:
            data = storage.read(f"masks/{name}")
        except NotFound:
            yield f"masks/{name} is missing"
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            yield f"masks/{name} is not the committed mask"


def _of_catalog(storage: Storage, inputs: dict[str, str]) -> Iterator[str]:
    version = catalog.current(storage)
    if not version.number:  # the next run makes it anew
        return
    newest = merged([outcomes_of(storage, run_id, input_) for run_id, input_ in inputs.items()], newest=True)
    known = SortedCursor(catalog.rows(storage, version))
    wrong: list[str] = []
    for expected in newest:
        if expected.num_rows:
            found = known.up_to(expected["key"][-1].as_py(), catalog.SCHEMA)
            wrong += _differing(expected, found, list(inputs))
    while (found := known.next()) is not None:
        wrong += _differing(catalog.SCHEMA.empty_table(), found, list(inputs))
    if wrong:
        yield (
            f"the catalog has {len(wrong)} images otherwise than the finished runs, such as {wrong[0]}; "
            "delete catalog/, and the next run makes it anew"
        )


def _differing(expected: pa.Table, found: pa.Table, finished: list[str]) -> list[str]:
    """Keys whose rows are not equal, shards aside; and but for those of a run that was cut off behind the catalog."""
    of_finished = pc.is_in(found["run_id"], value_set=pa.array(finished, pa.string()))
    ahead = found["key"].filter(pc.invert(of_finished))
    expected = expected.filter(pc.invert(pc.is_in(expected["key"], value_set=ahead))).drop_columns("shard")
    found = found.filter(of_finished).drop_columns("shard")
    if found.equals(expected):
        return []
    one, other = ({row["key"]: row for row in table.to_pylist()} for table in (expected, found))
    return sorted(key for key in one | other if one.get(key) != other.get(key))
