"""Export: the newest committed mask of every image, in the forms other programs read.

An export reads commits alone, may be repeated at any time, and writes nothing into its source.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import Damaged, JobError
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun, stored_runs
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.masks.names import mask_names
from maskfleet.jobs.outputs.exports.destination import refuse_unsafe
from maskfleet.jobs.outputs.exports.forms import EXPORTS
from maskfleet.jobs.outputs.rows import newest_rows
from maskfleet.jobs.outputs.stored_masks import StoredMask, stored_masks
from maskfleet.jobs.run.recovery.derived import missed_by
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        images: Number of masks written.
        failed: Number of images without a mask, since their newest outcome is a failure.
        remark: Remark of the form for the user, or "".
    """

    images: int
    failed: int
    remark: str = ""


def export(
    output: str,
    form: str,
    destination: str,
    *,
    key: str | None = None,
    names: Sequence[str] = (),
    profile: str | None = None,
) -> Exported:
    """Write the newest mask of every image in another form.

    Args:
        output: Output of a job: path or URL.
        form: Key of `jobs.outputs.exports.forms.EXPORTS`.
        destination: Path or URL to write to, outside the output and the input.
        key: Key of one image, or any unique ending of it; None for all images.
        names: Names of all classes after the first. Without them the classes are called `class_1`, `class_2` and so on.
        profile: AWS profile.

    Raises:
        JobError: The output has no run or no such key, the form is unknown, the names do not fit the classes, or masks
            cannot be exported in it.
        StorageError: A committed file is missing or damaged.
    """
    if form not in EXPORTS:
        raise JobError(f"unknown export form {form!r}; choose one of {', '.join(EXPORTS)}")
    source = open_storage(output, profile=profile)
    target = open_storage(destination, profile=profile)
    newest = next(stored_runs(source, newest_first=True), None)
    if newest is None:
        raise JobError(f"there is no run in {source.root}; correct the path")
    refuse_unsafe(destination, output=output, images=newest.input)
    only = None if key is None else _key_ending_with(source, key)
    images = failed = 0
    with (
        closing(Inputs(newest.input_options(profile))) as inputs,
        closing(EXPORTS[form].export(target, class_names=names, inputs=inputs)) as writer,
    ):
        for shard in _newest(source, only):
            if shard.masks:
                _check_names(names, len(shard.masks[0].values))
                writer.write(shard.masks)
            images += len(shard.masks)
            failed += shard.failed
        return Exported(images, failed, writer.finish())


def _check_names(names: Sequence[str], classes: int) -> None:
    if names and len(names) != classes - 1:
        like = ",".join(("cell", "wall", "nucleus")[: classes - 1]) + (",…" if classes > 4 else "")
        raise JobError(
            f"the masks have {classes} classes: {len(names)} given by --names; name all but the first class, such as "
            f"--names {like}"
        )


class _Newest(NamedTuple):
    """Newest outcomes committed by one shard.

    Attributes:
        masks: Masks of its images, unless a later run has processed them.
        failed: Number of its failed images, unless a later run has processed them.
    """

    masks: Sequence[StoredMask]
    failed: int


def _newest(storage: Storage, only: str | None) -> Iterator[_Newest]:
    """Yield the newest outcomes shard by shard, the newest run first. Holds the keys of all images in memory.

    Images missing from the newest complete listing of their input are left out, as in the tables.
    """
    later = pa.array([], pa.string())
    names = _Names()
    for run in stored_runs(storage, newest_first=True):
        keys = [later]
        commits, damaged = run.commits(storage).readable()
        for shard, error in damaged.items():
            _raise_unless_done_again(storage, run, shard, later, error)
        for commit in _in_order(commits):
            table = _rows_of(storage, run, commit, later)
            keys.append(table["key"].combine_chunks())
            rows = table.filter(pc.invert(pc.is_in(table["key"], value_set=later)))
            if only is not None:
                rows = rows.filter(pc.equal(rows["key"], only))
            ok = rows.filter(pc.equal(rows["status"], "ok"))
            masks = [names.distinct(mask) for mask in stored_masks(storage, run, commit, ok.to_pylist())]
            yield _Newest(masks, rows.num_rows - ok.num_rows)
        keys += [table["key"].combine_chunks() for table in missed_by(storage, run.run_id)]
        later = pa.concat_arrays(keys)


def _rows_of(storage: Storage, run: StoredRun, commit: Commit, later: pa.Array) -> pa.Table:
    """Return the rows of a shard; none if they are damaged and later runs have done all of its images."""
    try:
        return rows_of(storage, commit)
    except Damaged as error:
        _raise_unless_done_again(storage, run, commit.shard, later, error)
        return statistics.SCHEMA.empty_table()


def _raise_unless_done_again(storage: Storage, run: StoredRun, shard: str, later: pa.Array, error: Damaged) -> None:
    keys = pa.array(Manifest.stored(storage, run.run_id).keys_of(shard), pa.string())
    if not pc.all(pc.is_in(keys, value_set=later)).as_py():
        raise error


class _Names:
    """Distinct names of exported masks. Outputs of earlier versions may hold two images with one name."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def distinct(self, mask: StoredMask) -> StoredMask:
        """Return the mask, named after its whole key if a newer mask of another image has its name."""
        key = str(mask.row["key"])
        full = str(mask_names(pa.chunked_array([[key, f"{key}x"]]))[0])  # beside another ending, it keeps its own
        names = chain([mask.name], (f"{full}{'.png' * times}" for times in count()))
        name = next(name for name in names if self._keys.setdefault(name, key) == key)
        return mask if name == mask.name else replace(mask, row=mask.row | {"mask_member": name})


def _in_order(commits: Mapping[str, Commit]) -> Iterator[Commit]:
    return (commit for _, commit in sorted(commits.items()) if not commit.split)


def _key_ending_with(storage: Storage, ending: str) -> str:
    keys = (table["key"].filter(pc.ends_with(table["key"], ending)) for table in newest_rows(storage, ["key"]))
    return chosen(ending, (key for part in keys for key in part.to_pylist()))
