"""Verification: the invariants of an output, checked again from storage alone.

1. Every planned image has exactly one row in its run, in the manifest's order.
2. Every shard has one commit, and every file named by it has the stated size and SHA-256.
3. Every `ok` row has its mask, with its size and SHA-256 or as run lengths in the row; no `failed` row has one.
4. The class counts of every row are those of its mask, and the mask has the size of its image.
5. The compacted statistics are the committed rows, and belong to a run.
6. Every loose mask equals the mask in its shard's archive, and no two images share one.
7. The catalog holds the newest outcome of every image of the finished runs, and nothing else.

What is wrong in a shard whose images were all done again by later runs is no problem any more.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import SET_ASIDE, set_aside_of, state_of, stored_run
from maskfleet.jobs.ledger.sorted_tables import SortedCursor, merged
from maskfleet.jobs.outputs.checks.run_check import UNREADABLE, LooseMask, RunCheck
from maskfleet.jobs.run.recovery.derived import catalog_rows
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

_FINISHED = ("complete", "incomplete")


@dataclass
class Audit:
    """The result of a verification.

    Attributes:
        runs: State of each run checked, by id: complete, incomplete, unfinished, set_aside or damaged.
        images: Number of rows checked.
        problems: Problems found, one sentence each. Empty if the output is valid.
        remedies: Commands making the damaged images again, each once.
        superseded: Damaged shards without an effect, since later runs have done all their images again.
    """

    runs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    problems: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)

    def add(self, problem: str, remedy: str | None = None) -> None:
        """Add a problem and the command that cures it."""
        self.problems.append(problem)
        if remedy is not None and remedy not in self.remedies:
            self.remedies.append(remedy)


def verify(output: str, *, profile: str | None = None) -> Audit:
    """Check every run of an output. Of an unfinished run, check the committed shards.

    Raises:
        JobError: There is no run.
    """
    storage = open_storage(output, profile=profile)
    audit = Audit()
    redo = f"maskfleet redo {shlex.quote(output)}"
    loose: dict[str, LooseMask] = {}
    inputs: dict[str, str] = {}
    counts = _images_by_run(storage)
    for run_id in storage.names("runs"):
        if (aside := set_aside_of(storage, run_id)) is not None:
            audit.runs[run_id] = SET_ASIDE
            audit.images += aside.get("kept", 0)
            with suppress(NotFound, Damaged):
                inputs[run_id] = stored_run(storage, run_id).input
            continue
        try:
            run, manifest = stored_run(storage, run_id), Manifest.stored(storage, run_id)
            state = audit.runs[run_id] = state_of(storage, run_id)
            check = RunCheck(storage, run, manifest, finished=state in _FINISHED)
        except NotFound:
            if storage.names(f"runs/{run_id}/commits"):
                audit.runs[run_id] = "damaged"
                audit.add(f"run {run_id}: it has commits, but no job.json or no plan", f"{redo} --run {run_id}")
            continue  # otherwise it was interrupted before its plan was stored: nothing to check
        except Damaged as error:
            audit.runs[run_id] = "damaged"
            if counts[run_id] or not storage.exists(f"runs/{run_id}/run.json"):
                audit.add(f"run {run_id}: {error}", f"{redo} --run {run_id}")
            else:
                audit.superseded.append(f"run {run_id} is damaged; later runs did its images again")
            continue
        _check_run(audit, check, loose, redo, counts)
        if check.finished:
            inputs[run_id] = run.input
    if not audit.runs and not storage.names(compacted.FOLDER):
        raise JobError(f"there is no run in {output}; correct the path")
    _check_orphans(audit, storage, counts, redo)
    _check_loose(audit, storage, loose, redo)
    for problem in _catalog_problems(storage, inputs):
        audit.add(problem)
    return audit


def _check_run(audit: Audit, check: RunCheck, loose: dict[str, LooseMask], redo: str, counts: Counter[str]) -> None:
    damaged: dict[str, list[str]] = {}
    for shard, problem in check.problems(loose):
        if shard is None and check.finished and check.images and not counts[check.run_id]:
            audit.superseded.append(f"run {check.run_id} is damaged; later runs did its images again")
        elif shard is None:
            audit.add(f"run {check.run_id}: {problem}", f"{redo} --run {check.run_id}")
        else:
            damaged.setdefault(shard, []).append(problem)
    audit.images += check.images
    for shard, problems in damaged.items():
        if check.is_superseded(shard):
            audit.superseded.append(f"run {check.run_id}: shard {shard} is damaged; later runs did its images again")
            continue
        for problem in problems:
            audit.add(f"run {check.run_id}: {problem}", f"{redo} --shard {check.run_id}/{shard}")


def _images_by_run(storage: Storage) -> Counter[str]:
    """Return how many images have their newest row in each run, by the catalog, as far as it can be read."""
    unknown = Counter(dict.fromkeys(storage.names("runs"), 1))
    counts: Counter[str] = Counter()
    try:
        version = catalog.current(storage)
        for table in catalog.rows(storage, version):
            rows = table.filter(pc.not_equal(table["status"], catalog.GONE))
            for item in rows["run_id"].value_counts().to_pylist():
                counts[item["values"]] += item["counts"]
    except UNREADABLE:  # named below
        return unknown
    return counts if version.number else unknown


def _check_orphans(audit: Audit, storage: Storage, counts: Counter[str], redo: str) -> None:
    """Find statistics and catalog rows of runs whose folder was deleted."""
    there = set(storage.names("runs"))
    orphans = set(compacted.run_ids(storage)) - there
    for run_id in sorted((orphans | set(counts)) - there):
        what = "no image counts with it any more"
        if counts[run_id]:
            images = "1 image counts" if counts[run_id] == 1 else f"{counts[run_id]} images count"
            what = f"{images} with it, and the masks are lost"
        then = f"; delete {compacted.folder_of(run_id)}/" if run_id in orphans else ""
        audit.add(
            f"run {run_id}: its folder is missing; {what}{then}", f"{redo} --run {run_id}" if counts[run_id] else None
        )


def _check_loose(audit: Audit, storage: Storage, loose: Mapping[str, LooseMask], redo: str) -> None:
    for name, known in loose.items():
        remedy = f"{redo} --shard {known.shard}"
        try:
            if hashlib.sha256(storage.read(f"masks/{name}")).hexdigest() != known.sha256:
                audit.add(f"masks/{name} differs from the committed mask", remedy)
        except NotFound:
            audit.add(f"masks/{name} is missing", remedy)
        if known.shared is not None:
            other = None
            with suppress(catalog.Unreadable):  # named below
                other = catalog.find(storage, catalog.current(storage), known.shared)
            if other is not None and other["status"] == "ok":
                both = f"{shlex.quote(known.shared)} {shlex.quote(known.key)}"
                audit.add(
                    f"masks/{name} is shared by {known.shared} and {known.key}, and holds the mask of the latter",
                    f"{redo} {both}",
                )


def _catalog_problems(storage: Storage, inputs: Mapping[str, str]) -> Iterator[str]:
    """Compare the catalog with the finished runs, given with their inputs. Holds a few thousand rows of each."""
    wrong: list[str] = []
    try:
        version = catalog.current(storage)
        if not version.number:  # the next run rebuilds it
            return
        newest = merged([catalog_rows(storage, run_id, input_) for run_id, input_ in inputs.items()], newest=True)
        known = SortedCursor(catalog.rows(storage, version))
        for expected in newest:
            if expected.num_rows:
                found = known.up_to(expected["key"][-1].as_py(), catalog.SCHEMA)
                wrong += _different_keys(expected, found, list(inputs))
        while (found := known.next()) is not None:
            wrong += _different_keys(catalog.SCHEMA.empty_table(), found, list(inputs))
    except UNREADABLE as error:
        if isinstance(error, catalog.Unreadable) or not isinstance(error, Damaged):
            yield "the catalog cannot be read; the next run makes it again"
        return  # damaged statistics are named with their run
    if wrong:
        count = "1 image" if len(wrong) == 1 else f"{len(wrong)} images"
        yield (
            f"the catalog differs from the finished runs in {count}, such as {wrong[0]}; "
            "delete catalog/, and the next run rebuilds it"
        )


def _different_keys(expected: pa.Table, found: pa.Table, finished: Sequence[str]) -> list[str]:
    """Return the keys of rows that differ in anything but their shard and the name of their mask.

    Rows of unfinished runs are skipped: a run may have been interrupted after its rows were added to the catalog. So
    are images to be done again.
    """
    of_finished = pc.is_in(found["run_id"], value_set=pa.array(finished, pa.string()))
    of_finished = pc.and_(of_finished, pc.not_equal(found["status"], catalog.REDO))
    ahead = found["key"].filter(pc.invert(of_finished))
    expected = expected.filter(pc.invert(pc.is_in(expected["key"], value_set=ahead))).drop_columns(["shard", "mask"])
    found = found.filter(of_finished).drop_columns(["shard", "mask"])
    if found.equals(expected):
        return []
    one, other = ({row["key"]: row for row in table.to_pylist()} for table in (expected, found))
    return sorted(key for key in one | other if one.get(key) != other.get(key))
