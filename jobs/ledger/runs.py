"""The runs of an output, as the first file of each describes it: `runs/<run_id>/job.json`.

A run ends with `run.json`, or with `set_aside.json` if damage keeps it from ever being finished. The latter says why,
how many images were kept and lost, and which shards were lost.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.inputs.fetch import options_with
from maskfleet.jobs.job.sections import InputOptions
from maskfleet.jobs.ledger.commit import Commit, Commits, Mode
from maskfleet.jobs.storage.contract import Options, Storage

SET_ASIDE = "set_aside"
"""State of a run that cannot be finished."""


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

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the run described by the content of its `job.json`."""
        return cls(
            run_id=record["run_id"],
            created=record["created"],
            fingerprint=record["fingerprint"],
            weights=record["weights"]["id"],
            mask_values=record["weights"]["mask_values"],
            commit_mode=record["commit_mode"],
            job=record["job"],
        )

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

    def input_options(self, profile: str | None) -> Options:
        """Return how the buckets of the input are asked.

        Args:
            profile: AWS profile, if the job names none for its input.
        """
        return options_with(InputOptions.model_validate(self.job.get("input_options", {})), profile)

    def commits(self, storage: Storage) -> Commits:
        """Return the commits of the run, for reading."""
        return Commits(storage, self.run_id, self.commit_mode)

    def committed(self, storage: Storage) -> dict[str, Commit]:
        """Return the readable commits by shard id, without shards set aside."""
        lost = (set_aside_of(storage, self.run_id) or {}).get("lost_shards", ())
        commits, _ = self.commits(storage).readable()
        return {shard: commit for shard, commit in commits.items() if shard not in lost}


def described(storage: Storage, run_id: str) -> dict[str, Any]:
    """Return the content of a run's `job.json`.

    Raises:
        NotFound: There is no such run.
        Damaged: It is unreadable.
    """
    path = f"runs/{run_id}/job.json"
    try:
        record: dict[str, Any] = {"run_id": run_id, **json.loads(storage.read(path))}
        StoredRun.of(record)
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(
            f"{storage.url(path)} is damaged; restore it, or delete the run's folder and make its images again: "
            f"maskfleet redo {storage.root} --run {run_id}"
        ) from error
    return record


def stored_run(storage: Storage, run_id: str) -> StoredRun:
    """Read the description of a run.

    Raises:
        NotFound: There is no such run.
        Damaged: Its description is unreadable.
    """
    return StoredRun.of(described(storage, run_id))


def stored_runs(storage: Storage, *, newest_first: bool = False) -> Iterator[StoredRun]:
    """Yield the runs of an output in order of age. Skips runs without a readable description."""
    run_ids = storage.names("runs")
    for run_id in reversed(run_ids) if newest_first else run_ids:
        with suppress(NotFound, Damaged):
            yield stored_run(storage, run_id)


def on_overlap(storage: Storage) -> Literal["skip", "fail", "wait"]:
    """Return `run.on_overlap` of the newest run's job, for other commands that take the lock; "fail" without a run."""
    newest = next(stored_runs(storage, newest_first=True), None)
    policy: Literal["skip", "fail", "wait"] = (
        "fail" if newest is None else newest.job.get("run", {}).get("on_overlap", "fail")
    )
    return policy


def summary_of(storage: Storage, run_id: str) -> Mapping[str, Any] | None:
    """Return the content of a run's `run.json`, or None if the run is not finished."""
    return _record_of(storage, f"runs/{run_id}/run.json")


def set_aside_of(storage: Storage, run_id: str) -> Mapping[str, Any] | None:
    """Return the content of a run's `set_aside.json`, or None if the run was not set aside."""
    return _record_of(storage, f"runs/{run_id}/{SET_ASIDE}.json")


def _record_of(storage: Storage, path: str) -> Mapping[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(storage.read(path))
    except (NotFound, ValueError):  # what is unreadable is written again
        return None
    return record


def state_of(storage: Storage, run_id: str) -> str:
    """Return the state of a run: `complete`, `incomplete`, `set_aside` or `unfinished`."""
    if (summary := summary_of(storage, run_id)) is not None:
        return str(summary["status"])
    return "unfinished" if set_aside_of(storage, run_id) is None else SET_ASIDE
