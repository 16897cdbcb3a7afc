"""The runs of an output, as the first file of each describes it: `runs/<run_id>/job.json`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger.commit import Commits, Mode
from maskfleet.jobs.storage.contract import Storage


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run of an output.

    Attributes:
        run_id: Id of the run. It starts with the run's start time in UTC, so ids sort by age.
        created: Start time in UTC, ISO 8601.
        fingerprint: Fingerprint of the run.
        weights: Id of the weights.
        mask_values: Pixel value of each class, as stored with the weights; None if the weights state none.
        commit_mode: See `jobs.ledger.commit.Commits`.
        job: The job, as a table such as a job file holds.
    """

    run_id: str
    created: str
    fingerprint: str
    weights: str
    mask_values: Any
    commit_mode: Mode
    job: Mapping[str, Any]

    @property
    def input(self) -> str:
        """Input of the job."""
        return str(self.job["input"])

    @property
    def mask_format(self) -> str:
        """Key `masks.format` of the job."""
        return str(self.job.get("masks", {}).get("format", "png"))

    @property
    def upright(self) -> bool:
        """Whether images were turned as their EXIF orientation says, and masks with them."""
        return bool(self.job.get("inference", {}).get("orientation") == "upright")

    def commits(self, storage: Storage) -> Commits:
        """Return the commits of the run, for reading."""
        return Commits(storage, self.run_id, self.commit_mode)


def stored_run(storage: Storage, run_id: str) -> StoredRun:
    """Read the description of a run.

    Raises:
        NotFound: There is no such run.
        Damaged: The description cannot be read.
    """
    path = f"runs/{run_id}/job.json"
    try:
        record = json.loads(storage.read(path))
        return StoredRun(
            run_id=run_id,
            created=record["created"],
            fingerprint=record["fingerprint"],
            weights=record["weights"]["id"],
            mask_values=record["weights"]["mask_values"],
            commit_mode=record["commit_mode"],
            job=record["job"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(
            f"{storage.url(path)} is damaged; restore it, or delete the run's folder and make its images again: "
            f"maskfleet redo {storage.root} --run {run_id}"
        ) from error


def stored_runs(storage: Storage, *, newest_first: bool = False) -> Iterator[StoredRun]:
    """Yield the runs of an output in order of age. Skips runs interrupted before their description was written."""
    run_ids = storage.names("runs")
    for run_id in reversed(run_ids) if newest_first else run_ids:
        with suppress(NotFound):
            yield stored_run(storage, run_id)


def on_overlap(storage: Storage) -> Literal["skip", "fail", "wait"]:
    """Return `run.on_overlap` of the newest run's job, for other commands that take the lock; "fail" without a run."""
    newest = next(stored_runs(storage, newest_first=True), None)
    policy: Literal["skip", "fail", "wait"] = (
        "fail" if newest is None else newest.job.get("run", {}).get("on_overlap", "fail")
    )
    return policy


def summary_of(storage: Storage, run_id: str) -> Mapping[str, Any] | None:
    """Return the content of a run's `run.json`, or None if the run is unfinished."""
    path = f"runs/{run_id}/run.json"
    try:
        summary: dict[str, Any] = json.loads(storage.read(path))
    except NotFound:
        return None
    except ValueError as error:
        raise Damaged(
            f"{storage.url(path)} is damaged; restore it, or make the run's images again: "
            f"maskfleet redo {storage.root} --run {run_id}"
        ) from error
    return summary


def state_of(storage: Storage, run_id: str) -> str:
    """Return the state of a run: `complete`, `incomplete` or `unfinished`."""
    summary = summary_of(storage, run_id)
    return "unfinished" if summary is None else str(summary["status"])
