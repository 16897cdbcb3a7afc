"""Export: the newest committed mask of every image, in the forms other programs read.

An export reads commits alone, may be repeated at any time, and writes nothing into its source.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.ledger.commit import Commit
from maskfleet.jobs.ledger.keys import chosen
from maskfleet.jobs.ledger.runs import StoredRun, stored_runs
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.outputs.exports.forms import EXPORTS
from maskfleet.jobs.outputs.stored_masks import StoredMask, stored_masks
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
        destination: Path or URL to write to, outside the output.
        key: Key of one image, or any unique ending of it; None for all images.
        names: Names of the classes after the first. Unnamed classes are called `class_1`, `class_2` and so on.
        profile: AWS profile.

    Raises:
        JobError: The output has no run or no such key, the form is unknown, or masks cannot be exported in it.
        StorageError: A committed file is missing or damaged.
    """
    if form not in EXPORTS:
        raise JobError(f"unknown export form {form!r}; choose one of {', '.join(EXPORTS)}")
    source = open_storage(output, profile=profile)
    target = open_storage(destination, profile=profile)
    if f"{target.root}/".startswith(f"{source.root}/"):
        raise JobError(f"{destination} is inside the output {output}; export to another place")
    if next(stored_runs(source), None) is None:
        raise JobError(f"there is no run in {source.root}; correct the path")
    only = None if key is None else _key_ending_with(source, key)
    images = failed = 0
    with (
        closing(Inputs(profile=profile)) as inputs,
        closing(EXPORTS[form].export(target, class_names=names, inputs=inputs)) as writer,
    ):
        for shard in _newest(source, only):
            if shard.masks:
                writer.write(shard.masks)
            images += len(shard.masks)
            failed += shard.failed
        return Exported(images, failed, writer.finish())


class _Newest(NamedTuple):
    """Newest outcomes committed by one shard.

    Attributes:
        masks: Masks of its images, unless a later run has processed them.
        failed: Number of its failed images, unless a later run has processed them.
    """

    masks: Sequence[StoredMask]
    failed: int


def _newest(storage: Storage, only: str | None) -> Iterator[_Newest]:
    """Yield the newest outcomes shard by shard, the newest run first. Holds the keys of all images in memory."""
    later = pa.array([], pa.string())
    for run in stored_runs(storage, newest_first=True):
        keys = [later]
        for commit in _commits(storage, run):
            table = rows_of(storage, commit)
            keys.append(table["key"].combine_chunks())
            rows = table.filter(pc.invert(pc.is_in(table["key"], value_set=later)))
            if only is not None:
                rows = rows.filter(pc.equal(rows["key"], only))
            ok = rows.filter(pc.equal(rows["status"], "ok"))
            yield _Newest(stored_masks(storage, run, commit, ok.to_pylist()), rows.num_rows - ok.num_rows)
        later = pa.concat_arrays(keys)


def _commits(storage: Storage, run: StoredRun) -> Iterator[Commit]:
    return (commit for _, commit in sorted(run.commits(storage).all().items()) if not commit.split)


def _key_ending_with(storage: Storage, ending: str) -> str:
    matching: dict[str, None] = {}
    for run in stored_runs(storage, newest_first=True):
        for commit in _commits(storage, run):
            keys = rows_of(storage, commit)["key"]
            matching |= dict.fromkeys(keys.filter(pc.ends_with(keys, ending)).to_pylist())
    return chosen(ending, matching)
