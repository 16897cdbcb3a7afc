"""The progress of an output's newest run, from storage alone, during the run or after it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import pending
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import SET_ASIDE, StoredRun, set_aside_of, state_of, stored_runs
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage


@dataclass(frozen=True, kw_only=True)
class Status:
    """The progress of a run.

    Attributes:
        run_id: Id of the run.
        state: `planning`, `unfinished`, `complete`, `incomplete`, or `set_aside` if damage kept it from being finished.
        created: Start time in UTC, ISO 8601.
        images: Number of images planned so far.
        done: Number of images with a committed row.
        ok: Number of images with a mask.
        failed: Number of failed images.
        shards_left: Number of shards, or halves of split shards, without a commit.
        left_alone: Number of files in the input that are no images of it, by the rule; empty while planning.
        fingerprint: Fingerprint of the run.
        weights: Id of the weights.
        totals: Number of images of the whole output by their newest outcome in finished runs: ok, failed, redo.
        problem: Damage that keeps the run from being finished, or "".
    """

    run_id: str
    state: str
    created: str
    images: int
    done: int
    ok: int
    failed: int
    shards_left: int
    left_alone: Mapping[str, int]
    fingerprint: str
    weights: str
    totals: Mapping[str, int]
    problem: str = ""


def status(output: str, *, profile: str | None = None) -> Status:
    """Return the progress of the newest run with a plan.

    Raises:
        JobError: There is no such run.
    """
    storage = open_storage(output, profile=profile)
    for run in stored_runs(storage, newest_first=True):
        aside = set_aside_of(storage, run.run_id)
        if aside is not None:
            return _set_aside(storage, run, aside)
        try:
            return _status(storage, run, Manifest.stored(storage, run.run_id))
        except NotFound:  # interrupted before its plan was stored
            continue
        except Damaged as error:
            return _set_aside(storage, run, {"reason": str(error)})
    raise JobError(f"there is no run in {output}; correct the path")


def _set_aside(storage: Storage, run: StoredRun, record: Mapping[str, Any]) -> Status:
    kept = record.get("kept", 0)
    return Status(
        run_id=run.run_id,
        state=SET_ASIDE if "kept" in record else "unfinished",
        created=run.created,
        images=record.get("planned") or kept,
        done=kept,
        ok=kept - record.get("failed", 0),
        failed=record.get("failed", 0),
        shards_left=0,
        left_alone={},
        fingerprint=run.fingerprint,
        weights=run.weights,
        totals=_totals(storage),
        problem=record["reason"],
    )


def _status(storage: Storage, run: StoredRun, manifest: Manifest) -> Status:
    commits = run.committed(storage)
    done = sum(commit.images for commit in commits.values())
    failed = sum(commit.failed for commit in commits.values())
    state = state_of(storage, run.run_id)
    return Status(
        run_id=run.run_id,
        state="planning" if state == "unfinished" and not manifest.is_frozen else state,
        created=run.created,
        images=manifest.images,
        done=done,
        ok=done - failed,
        failed=failed,
        shards_left=sum(1 for _ in pending(manifest.shards(), commits)),
        left_alone=manifest.frozen.left_alone,
        fingerprint=run.fingerprint,
        weights=run.weights,
        totals=_totals(storage),
    )


def _totals(storage: Storage) -> dict[str, int]:
    totals: Counter[str] = Counter()
    try:
        for table in catalog.rows(storage, catalog.current(storage)):
            totals.update(table["status"].to_pylist())
    except catalog.Unreadable:  # the next run makes it again
        return {}
    del totals[catalog.GONE]
    return dict(totals.most_common())


def newest_job(output: str, *, profile: str | None = None) -> dict[str, Any]:
    """Return the job of the newest run, as a table such as a job file holds.

    Raises:
        JobError: There is no run.
    """
    newest = next(stored_runs(open_storage(output, profile=profile), newest_first=True), None)
    if newest is None:
        raise JobError(f"there is no run in {output}; correct the path")
    return dict(newest.job)
