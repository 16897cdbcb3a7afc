"""Unfinished runs of an output: the one to resume, work to keep, and runs to set aside.

A run that cannot be finished, because a record of it is missing or unreadable, is set aside: its intact shards count,
`set_aside.json` in its folder says what was lost, and the next run plans the lost images again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from maskfleet.jobs.errors import Damaged, Denied, NotFound, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.commit import Commit, checked, leaves
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import locked
from maskfleet.jobs.ledger.manifest import Frozen, Manifest, Shard, folder_of, is_planned, part_name
from maskfleet.jobs.ledger.run_output import RunOutput, stored_output
from maskfleet.jobs.ledger.runs import SET_ASIDE, StoredRun, described, state_of, stored_run
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.network import tuning
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.run.recovery.derived import compact, rebuild_catalog
from maskfleet.jobs.run.recovery.unexported import export_rest, forget_unsettled, note
from maskfleet.jobs.storage.contract import Fault, Storage
from maskfleet.jobs.storage.schemes import open_storage

_CHECKS_IN_FLIGHT = 16


def identity(job: Job, fingerprint: str) -> str:
    """Return a hash of everything two commands must share for one to resume the run of the other."""
    parts = [job.name, job.input, job.masks.format, fingerprint, job.select.model_dump(mode="json")]
    parts += [job.exclude] if job.exclude else []  # runs begun before this key stay resumable
    parts += [job.pages] if job.pages != "refuse" else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Unfinished(NamedTuple):
    """The newest run with a plan, if it is unfinished.

    Attributes:
        run_id: The run.
        identity: See `identity`; None if the run's description is unreadable.
    """

    run_id: str
    identity: str | None


def newest_unfinished(storage: Storage) -> Unfinished | None:
    """Return the newest run with a plan if it is unfinished, else None."""
    for run_id in reversed(storage.names("runs")):
        if not is_planned(storage, run_id):
            continue  # interrupted before any part of its plan was stored
        if state_of(storage, run_id) != "unfinished":
            return None
        try:
            return Unfinished(run_id, described(storage, run_id).get("identity"))
        except (NotFound, Damaged):
            return Unfinished(run_id, None)
    return None


def to_resume(storage: Storage, job: Job, fingerprint: str) -> str | None:
    """Return the newest run of the output if it is unfinished and belongs to this job, else None."""
    newest = newest_unfinished(storage)
    return newest.run_id if newest and newest.identity == identity(job, fingerprint) else None


def left_behind(storage: Storage, job: Job, fingerprint: str) -> str | None:
    """Return the newest run if it is unfinished, has commits or no description, and belongs to no command like this."""
    newest = newest_unfinished(storage)
    if newest is None or newest.identity == identity(job, fingerprint):
        return None
    commits = newest.identity is None or storage.names(f"runs/{newest.run_id}/commits")
    return newest.run_id if commits else None


def repair(
    storage: Storage,
    job: Job,
    fingerprint: str,
    stop: Callable[[], bool],
    waiting: Callable[[str], object] = lambda _: None,
) -> list[str]:
    """Rebuild a lost catalog, and settle an unfinished run that no command will resume.

    Args:
        storage: Output storage.
        job: Job of the present command.
        fingerprint: Its fingerprint.
        stop: Called while another run holds the lock. Once it returns True, the wait ends.
        waiting: See `jobs.ledger.lock.locked`.

    Returns:
        A sentence for people about each run set aside.
    """
    notices = []
    if not catalog.current(storage).number and storage.names(compacted.FOLDER):
        with locked(storage, job.run.on_overlap, stop, waiting=waiting) as lock:
            notices += rebuild_catalog(lock.fence.storage)
    if left_behind(storage, job, fingerprint) is None:
        return notices
    with locked(storage, job.run.on_overlap, stop, waiting=waiting) as lock:
        if (left := left_behind(storage, job, fingerprint)) is not None:
            try:
                keep(storage, left, lock.fence)
            except StorageError as error:
                notices.append(set_aside(storage, left, error, lock.fence))
    return notices


def forget_catalog(job: Job, error: catalog.Unreadable, stop: Callable[[], bool]) -> str:
    """Delete the records of a catalog that cannot be read, so that `repair` makes it again.

    Args:
        job: Job of the present command.
        error: What is unreadable.
        stop: See `repair`.

    Returns:
        A sentence for people.
    """
    with locked(open_storage(job.output, profile=job.profile), job.run.on_overlap, stop) as lock:
        lock.fence.check()
        catalog.forget(lock.fence.storage)
    return f"{str(error).partition(';')[0]}, so the catalog is made again from the statistics"


def keep(storage: Storage, run_id: str, fence: Fence) -> None:
    """Export and compact the commits of an unfinished run no command will resume, so its work counts.

    Raises:
        StorageError: The run is damaged, or storage fails.
    """
    run = stored_run(storage, run_id)
    output = stored_output(storage, run, fence)
    output.manifest.check()
    _keep(output, run, list(leaves(output.manifest.shards(), output.commits.all())), fence)


def _keep(output: RunOutput, run: StoredRun, done: Sequence[tuple[Shard, Commit]], fence: Fence) -> None:
    forget_unsettled(output)
    note(output.storage, output.run_id, export_rest(output, done), fence)
    output.storage.settle("masks")
    rows = compact(output, done, run.input, Counter())
    catalog.add(output.storage, output.run_id, rows, fence=fence, complete=False)
    for _ in rows:
        pass


def set_aside(storage: Storage, run_id: str, error: StorageError, fence: Fence) -> str:
    """Set a run aside after an error in reading its records. Keeps its intact shards.

    Args:
        storage: Output storage.
        run_id: The run.
        error: The error.
        fence: Fence of the lock's holder.

    Returns:
        A sentence for people: the reason, and how much was kept and lost.

    Raises:
        StorageError: The same error, if all records of the run are readable, or if storage does not answer.
    """
    single = isinstance(error, Damaged | NotFound | Denied | Fault) or storage.is_local  # not storage as a whole
    if not (isinstance(error, Damaged) or (single and f"runs/{run_id}/" in str(error))):
        raise error
    fence.check()
    found = _inspected(storage, run_id)
    if not found.reason:
        raise error
    if found.run is not None and found.output is not None and found.intact:
        _keep(found.output, found.run, found.intact, fence)
    kept = sum(commit.images for _, commit in found.intact)
    failed = sum(commit.failed for _, commit in found.intact)
    lost = None if found.planned is None else found.planned - kept
    record = {
        "reason": found.reason, "set_aside": datetime.now(UTC).isoformat(timespec="seconds"), "planned": found.planned,
        "kept": kept, "failed": failed, "lost": lost, "lost_shards": list(found.lost),
    }  # fmt: skip
    fence.check()
    storage.write(f"runs/{run_id}/{SET_ASIDE}.json", json.dumps(record, indent=1).encode())
    return (
        f"run {run_id} cannot be finished and is set aside: {found.reason}; results of {kept} images are kept, "
        f"{'the others' if lost is None else lost} are done again"
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is left of a run.

    Attributes:
        reason: What is damaged; "" if nothing is.
        run: Description of the run; None if it is unreadable.
        output: Output of the run; None without a description.
        planned: Number of planned images; None if unknown.
        intact: Committed shards with all their files, in order.
        lost: Committed shards that are damaged.
    """

    reason: str
    run: StoredRun | None = None
    output: RunOutput | None = None
    planned: int | None = None
    intact: Sequence[tuple[Shard, Commit]] = ()
    lost: Sequence[str] = ()


def _inspected(storage: Storage, run_id: str) -> _Found:
    """Read every record of a run, and every file of its committed shards."""
    try:
        run = stored_run(storage, run_id)
    except (StorageError, KeyError):
        return _Found(reason="its job.json is missing or unreadable")
    reasons = []
    try:
        Job.model_validate(run.job)
    except ValueError:
        reasons.append("its job.json is of another version")
    planned: int | None
    try:
        output = stored_output(storage, run)
        output.manifest.check()
        planned = output.manifest.images
    except StorageError:
        reasons.append("its plan is missing or unreadable")
        output, planned = _without_plan(storage, run)
    commits, errors = output.commits.readable()
    unreadable = list(errors)
    if unreadable:
        reasons.append(f"commits of {_counted(unreadable)} are unreadable")
    shards = list(leaves(output.manifest.shards(), commits)) if planned is not None else _in_order(commits)
    with ThreadPoolExecutor(_CHECKS_IN_FLIGHT) as pool:
        sound = list(pool.map(lambda shard: _is_intact(storage, shard[1]), shards))
    damaged = [shard.id for (shard, _), good in zip(shards, sound, strict=True) if not good]
    if damaged:
        reasons.append(f"files of {_counted(damaged)} are missing or damaged")
    if not _is_readable(storage, run_id):
        reasons.append("its tuning.json or its list of deleted images is unreadable")
    intact = [shard for shard, good in zip(shards, sound, strict=True) if good]
    return _Found(
        reason=", ".join(reasons), run=run, output=output, planned=planned, intact=intact, lost=[*unreadable, *damaged]
    )


def _without_plan(storage: Storage, run: StoredRun) -> tuple[RunOutput, int | None]:
    """Return the output of a run with a plan that is unreadable, and the number of planned images if it is known."""
    with suppress(StorageError):
        output = stored_output(storage, run)
        return output, output.manifest.images  # some part is unreadable, but its summary is there
    nothing = Frozen(parts=0, shards=0, images=0, shard_size=1, digest="", listed=0, bytes=0, whole=False)
    return RunOutput(
        storage=storage, run_id=run.run_id, fingerprint=run.fingerprint,
        manifest=Manifest(lambda part: storage.read(f"{folder_of(run.run_id)}/{part_name(part)}"), nothing),
        commits=run.commits(storage), format=mask_format(run.mask_format),
    ), None  # fmt: skip


def _in_order(commits: Mapping[str, Commit]) -> list[tuple[Shard, Commit]]:
    """Return the committed shards in the order of their ids, for lack of a plan. Their rows in it are unknown."""
    whole = [commit for commit in commits.values() if not commit.split]
    found = [(Shard(commit.shard, 0, commit.images), commit) for commit in whole]
    return sorted(found, key=lambda item: (item[0].group, item[0].id))


def _is_intact(storage: Storage, commit: Commit) -> bool:
    try:
        for item in commit.objects.values():
            checked(storage, item)
        rows_of(storage, commit)
    except (StorageError, KeyError, ValueError, OSError):  # pyarrow's errors are the last two
        return False
    return True


def _is_readable(storage: Storage, run_id: str) -> bool:
    try:
        tuning.read(storage, run_id)
        for _ in gone_rows(storage, run_id):
            pass
    except StorageError:
        return False
    return True


def _counted(shards: Sequence[str]) -> str:
    return "1 shard" if len(shards) == 1 else f"{len(shards)} shards"
