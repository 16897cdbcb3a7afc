"""The history of one image: its outcome in each run, with which weights, and the reason for planning it or not."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from maskfleet.jobs.errors import Damaged, JobError, NotFound
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun, set_aside_of, stored_runs
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.outputs.lookup import committed_row
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

_SHOWN = ("status", "stage", "error_class", "error_message", "attempt", "worker", "mask_object", "mask_member")


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """One run in the history of an image.

    Attributes:
        run: Id of the run.
        planned: Whether the run planned the image.
        weights: Id of the weights.
        fingerprint: Fingerprint of the run.
        why: Reason for planning the image or not.
        etag: ETag of the image in the plan; None if it was not planned.
        shard: Shard of the image; None if it was not planned.
        outcome: Columns of the image's row: status, failure, attempt, worker and mask; and `mask`, the loose file, if
            there is one. Empty if it was not planned.
    """

    run: str
    planned: bool
    weights: str
    fingerprint: str
    why: str
    etag: str | None = None
    shard: str | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all attributes known, with those of the outcome on the same level."""
        table = {name: value for name, value in asdict(self).items() if name != "outcome"}
        if not self.planned:
            del table["etag"], table["shard"]
        return table | dict(self.outcome)


@dataclass(frozen=True, kw_only=True)
class History:
    """The history of an image.

    Attributes:
        key: Key of the image.
        state: Newest outcome and its run.
        etag: ETag of the image in the newest outcome; None if there is none.
        runs: The runs, oldest first.
    """

    key: str
    state: str
    etag: str | None
    runs: Sequence[RunHistory]

    def to_json(self) -> dict[str, Any]:
        """Return all attributes as a table."""
        runs = [run.to_json() for run in self.runs]
        return {"key": self.key, "state": self.state, "etag": self.etag, "runs": runs}


def explain(output: str, name: str, *, profile: str | None = None) -> History:
    """Return the history of an image.

    Args:
        output: Output of a job: path or URL.
        name: Key of the image, or any ending of it that no other key has.
        profile: AWS profile.

    Raises:
        JobError: There is no run, no image with this name was ever listed, or several images have this ending.
    """
    storage = open_storage(output, profile=profile)
    if next(stored_runs(storage), None) is None:
        raise JobError(f"there is no run in {storage.root}; correct the path")
    version = catalog.current(storage)
    key = name if _is_in_newest_plan(storage, name) else catalog.ending(storage, version, name)
    histories: list[RunHistory] = []
    for run in stored_runs(storage):
        try:
            histories.append(_history(storage, run, key, histories))
        except NotFound:  # interrupted before its plan was stored
            continue
        except Damaged as error:
            histories.append(_damaged(storage, run, error))
    newest = catalog.find(storage, version, key)
    return History(
        key=key,
        state=f"{newest['status']}, by run {newest['run_id']}" if newest else "not done yet",
        etag=newest["etag"] if newest else None,
        runs=histories,
    )


def _is_in_newest_plan(storage: Storage, key: str) -> bool:
    """Tell whether the newest run planned an image. Its outcome may be missing from the catalog."""
    for run_id in storage.names("runs")[-1:]:
        with suppress(NotFound, Damaged):
            return Manifest.stored(storage, run_id).find(key) is not None
    return False


def _damaged(storage: Storage, run: StoredRun, error: Damaged) -> RunHistory:
    aside = set_aside_of(storage, run.run_id)
    why = str(error) if aside is None else f"unknown: the run was set aside ({aside['reason']})"
    return RunHistory(run=run.run_id, planned=False, weights=run.weights, fingerprint=run.fingerprint, why=why)


def _history(storage: Storage, run: StoredRun, key: str, earlier: Sequence[RunHistory]) -> RunHistory:
    manifest = Manifest.stored(storage, run.run_id)
    row = manifest.find(key)
    if row is None:
        return RunHistory(
            run=run.run_id,
            planned=False,
            weights=run.weights,
            fingerprint=run.fingerprint,
            why=_reason_for_skipping(storage, run, key, earlier, listed_to_its_end=manifest.frozen.whole),
        )
    found = committed_row(storage, run.commits(storage), row["shard"], key)
    outcome = {"status": "not done yet"} if found is None else {name: found[1][name] for name in _SHOWN}
    if outcome.get("mask_member") and mask_format(run.mask_format).loose:
        outcome["mask"] = f"masks/{outcome['mask_member']}"
    return RunHistory(
        run=run.run_id,
        planned=True,
        weights=run.weights,
        fingerprint=run.fingerprint,
        why=row["why"],
        etag=row["etag"],
        shard=row["shard"],
        outcome={name: value for name, value in outcome.items() if value is not None},
    )


def _reason_for_skipping(
    storage: Storage, run: StoredRun, key: str, earlier: Sequence[RunHistory], *, listed_to_its_end: bool
) -> str:
    if any(key in table["key"].to_pylist() for table in gone_rows(storage, run.run_id)):
        return "no longer in the input, so it is marked as deleted"
    previous = next((history for history in reversed(earlier) if history.planned), None)
    if previous is None:
        return "not in the input yet" if listed_to_its_end else "the listing ended before this image"
    if previous.fingerprint == run.fingerprint:
        return f"done by run {previous.run}; neither the image nor weights nor settings have changed since"
    if selection := {name: value for name, value in run.job["select"].items() if value}:
        return f"not selected ({', '.join(f'{name} = {value}' for name, value in selection.items())})"
    return "not in the input" if listed_to_its_end else "the listing ended before this image"
