"""How far an output's newest run is, from storage alone, while it runs or after."""

import json
from contextlib import suppress
from typing import Any

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.ledger.commit import Commits, pending
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.storage.schemes import open_storage


def status(output: str, *, profile: str | None = None) -> dict[str, Any]:
    """State and counts of the newest run with a plan.

    Raises:
        JobError: There is none.
    """
    storage = open_storage(output, profile=profile)
    for run_id in reversed(storage.names("runs")):
        folder = f"runs/{run_id}"
        try:
            record = json.loads(storage.read(f"{folder}/job.json"))
            manifest = Manifest.stored(storage, run_id)
        except NotFound:
            continue
        commits = Commits(storage, run_id, record["commit_mode"]).all()
        done = [commit for commit in commits.values() if not commit.split]
        images = sum(commit.images for commit in done)
        failed = sum(commit.failed for commit in done)
        state = "unfinished" if manifest.is_frozen else "planning"
        if storage.exists(f"{folder}/run.json"):
            state = json.loads(storage.read(f"{folder}/run.json"))["status"]
        return {
            "run_id": run_id,
            "state": state,
            "created": record["created"],
            "images": manifest.images,
            "done": images,
            "ok": images - failed,
            "failed": failed,
            "shards_left": sum(1 for _ in pending(manifest.shards(), commits)),
            "fingerprint": record["fingerprint"],
            "weights": record["weights"]["id"],
        }
    raise JobError(f"there is no run in {output}; correct the path")


def newest_job(output: str, *, profile: str | None = None) -> dict[str, Any]:
    """The job of an output's newest run, as a table such as a job file holds.

    Raises:
        JobError: There is no run.
    """
    storage = open_storage(output, profile=profile)
    for run_id in reversed(storage.names("runs")):
        with suppress(NotFound):
            table: dict[str, Any] = json.loads(storage.read(f"runs/{run_id}/job.json"))["job"]
            return table
    raise JobError(f"there is no run in {output}; correct the path")
