"""What an output itself says of its runs, when no cluster is left to ask."""

import json
from typing import Any

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.storage.schemes import open_storage


def runs(output: str, *, profile: str | None = None) -> list[dict[str, Any]]:
    """Every run of an output, the newest first: id, job, state, exit code, counts."""
    storage = open_storage(output, profile=profile)
    found = []
    for run_id in reversed(storage.names("runs")):
        try:
            begun = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        try:
            ended = json.loads(storage.read(f"runs/{run_id}/run.json"))
        except NotFound:
            ended = {}
        found.append(
            {
                "id": run_id,
                "name": begun["job"].get("name"),
                "state": ended.get("status", "unfinished"),
                "exit_code": ended.get("exit_code"),
                "images": ended.get("images", begun.get("images")),
                "failed": ended.get("failed"),
            }
        )
    return found


def log(output: str, *, profile: str | None = None) -> str:
    """The log of the newest run that left one.

    Raises:
        JobError: None did.
    """
    storage = open_storage(output, profile=profile)
    for run_id in reversed(storage.names("runs")):
        if names := storage.names(f"runs/{run_id}/logs"):
            return "".join(storage.read(f"runs/{run_id}/logs/{name}").decode() for name in names)
    raise JobError(f"no run in {output} left a log; correct the path, or ask the cluster with --address")
