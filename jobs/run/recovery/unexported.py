"""Masks that could not be exported. Their run counts them, and every later run tries again.

    unexported/<run_id>.json    masks of a run that are missing below `masks/`, with the reason of each

A mask is exported later only while its row is the newest of its image, so it never replaces a newer one.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from maskfleet.jobs.errors import NotFound, StorageError
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import Commit, nonce
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.runs import stored_run
from maskfleet.jobs.ledger.shard_files import masks_of, rows_of
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.storage.contract import Storage

_FOLDER = "unexported"


class Unexported(NamedTuple):
    """A committed mask that is missing below `masks/`.

    Attributes:
        mask: Its name.
        key: Key of its image.
        shard: Its shard.
        reason: Why it could not be written.
    """

    mask: str
    key: str
    shard: str
    reason: str


def export_rest(output: RunOutput, done: Iterable[tuple[Shard, Commit]]) -> list[Unexported]:
    """Export the loose masks of all committed shards not exported yet. Returns those that cannot be written.

    Raises:
        StorageError: A shard's archive is missing or damaged, or no mask can be written at all.
    """
    if not output.format.loose:
        return []
    exported = set(output.storage.names(f"runs/{output.run_id}/exports"))
    failed: list[Unexported] = []
    tried = 0
    for shard, commit in done:
        if shard.id not in exported:
            tried += commit.images - commit.failed
            failed += _exported(output, commit)
    if 2 * len(failed) > tried and not _may_write(output.storage):
        raise StorageError(
            f"no mask can be written below masks/ ({failed[0].reason}); correct this, and run the same command again"
        )
    return failed


def forget_unsettled(output: RunOutput) -> None:
    """Forget exports that may be lost: of another machine, or from before a power cut. They are made again."""
    lifetime = output.storage.lifetime()
    folder = f"runs/{output.run_id}/exports"
    for shard in output.storage.names(folder) if lifetime else ():
        if output.storage.read(f"{folder}/{shard}") != lifetime.encode():
            output.storage.delete(f"{folder}/{shard}")


def _exported(output: RunOutput, commit: Commit) -> list[Unexported]:
    reasons = output.export(commit)
    if not reasons:
        return []
    rows = rows_of(output.storage, commit)
    keys = dict(zip(rows["mask_member"].to_pylist(), rows["key"].to_pylist(), strict=True))
    return [Unexported(mask, keys[mask], commit.shard, reason) for mask, reason in reasons.items()]


def _may_write(storage: Storage) -> bool:
    path = f"masks/.maskfleet-probe-{nonce()}"
    try:
        storage.export(path, b"")
        storage.discard(path)
    except StorageError:
        return False
    return True


def note(storage: Storage, run_id: str, masks: Sequence[Unexported], fence: Fence) -> None:
    """Store the masks of a run that later runs have to export; an empty list ends it."""
    path = f"{_FOLDER}/{run_id}.json"
    fence.check()
    if masks:
        storage.write(path, json.dumps([mask._asdict() for mask in masks], indent=1).encode())
    elif storage.exists(path):
        storage.write(path, b"[]")  # a run may lack the right to delete
        storage.discard(path)


def export_again(storage: Storage, fence: Fence, *, but: str) -> list[Unexported]:
    """Export what earlier runs could not, if it is still the newest. Returns the masks that still cannot be written.

    Args:
        storage: Output storage.
        fence: Fence of the lock's holder.
        but: The present run.
    """
    failed = []
    for name in storage.names(_FOLDER):
        run_id = name.removesuffix(".json")
        if run_id == but:
            continue
        with suppress(NotFound, ValueError, TypeError, StorageError):  # unreadable: the export cannot be repeated
            masks = [Unexported(**entry) for entry in json.loads(storage.read(f"{_FOLDER}/{name}"))]
            left = _export_again(storage, run_id, masks)
            if left != masks:
                note(storage, run_id, left, fence)
            failed += left
    return failed


def _export_again(storage: Storage, run_id: str, masks: Sequence[Unexported]) -> list[Unexported]:
    version = catalog.current(storage)
    wanted: defaultdict[str, dict[str, Unexported]] = defaultdict(dict)
    for mask in masks:
        newest = catalog.find(storage, version, mask.key)
        if newest is not None and newest["run_id"] == run_id:
            wanted[mask.shard][mask.mask] = mask
    run = stored_run(storage, run_id)
    failed = []
    for shard, of_shard in wanted.items():
        commit = run.commits(storage).get(shard)
        if commit is None:
            continue
        files = masks_of(storage, commit, mask_format(run.mask_format))
        errors = storage.export_all((f"masks/{name}", data) for name, data in files if name in of_shard)
        for path, error in errors.items():
            failed.append(of_shard[path.removeprefix("masks/")]._replace(reason=str(error)))
    return failed
