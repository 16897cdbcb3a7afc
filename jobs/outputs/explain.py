"""An image's whole story: what each run made of it, with which weights, and why it was or was not planned."""

import io
import json
from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.shard_files import STATISTICS
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage

_TOLD = ("status", "stage", "error_class", "error_message", "attempt", "worker", "mask_object", "mask_member")


def explain(output: str, name: str, *, profile: str | None = None) -> dict[str, Any]:
    """The story of an image.

    Args:
        output: A job's.
        name: The image's key, or any ending of it that no other key has.
        profile: AWS profile.

    Raises:
        JobError: No image that was ever listed has that name, or several have.
    """
    storage = open_storage(output, profile=profile)
    version = catalog.current(storage)
    key = _unfinished(storage, name) or catalog.ending(storage, version, name)
    runs = [_of_run(storage, run_id, key) for run_id in storage.names("runs")]
    told: list[dict[str, Any]] = []
    for run in filter(None, runs):
        told.append(run if run["planned"] else run | {"why": _why_not(run, told)})
    newest = catalog.find(storage, version, key)
    state = newest["status"] if newest else "not done yet"
    return {
        "key": key,
        "state": f"{state}, by run {newest['run_id']}" if newest else state,
        "etag": newest["etag"] if newest else None,
        "runs": told,
    }


def _unfinished(storage: Storage, name: str) -> str | None:
    """The key, if it is planned in the newest run, whose outcome may be in no catalog yet."""
    for run_id in storage.names("runs")[-1:]:
        with suppress(NotFound):
            if Manifest.stored(storage, run_id).find(name):
                return name
    return None


def _of_run(storage: Storage, run_id: str, key: str) -> dict[str, Any] | None:
    try:
        record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        manifest = Manifest.stored(storage, run_id)
        row = manifest.find(key)
    except NotFound:
        return None  # cut off before there was a plan
    told: dict[str, Any] = {
        "run": run_id,
        "planned": row is not None,
        "weights": record["weights"]["id"],
        "fingerprint": record["fingerprint"],
    }
    if row is None:
        gone = any(key in table["key"].to_pylist() for table in gone_rows(storage, run_id))
        selection = {name: value for name, value in record["job"]["select"].items() if value}
        return told | {"gone": gone, "selection": selection, "listed_to_its_end": manifest.frozen.whole}
    told |= {"why": row["why"], "etag": row["etag"], "shard": row["shard"]}
    return told | _outcome(storage, Commits(storage, run_id, record["commit_mode"]), row["shard"], key)


def _outcome(storage: Storage, commits: Commits, shard: str, key: str) -> dict[str, Any]:
    """What the committed attempt made of it; a shard that was cut has its halves looked at."""
    commit = commits.get(shard)
    if commit is None:
        return {"status": "not done yet"}
    if commit.split:
        halves = (_outcome(storage, commits, f"{shard}.{half}", key) for half in (0, 1))
        return next((found for found in halves if found), {})
    table = pq.read_table(io.BytesIO(storage.read(commit.objects[STATISTICS].path)), filters=[("key", "=", key)])
    rows = table.select(list(_TOLD)).to_pylist()
    return {name: value for name, value in rows[0].items() if value is not None} if rows else {}


def _why_not(run: dict[str, Any], before: list[dict[str, Any]]) -> str:
    earlier = next((told for told in reversed(before) if told["planned"]), None)
    if run.pop("gone"):
        return "the input had it no more: a tombstone"
    selection, whole = run.pop("selection"), run.pop("listed_to_its_end")
    if earlier is None:
        return "the input did not have it yet" if whole else "the listing did not come so far"
    if earlier["fingerprint"] == run["fingerprint"]:
        return f"done already, by run {earlier['run']}, and neither it nor weights nor settings have changed"
    if selection:
        return f"not among what was selected ({', '.join(f'{name} = {value}' for name, value in selection.items())})"
    return "the listing did not come so far" if not whole else "the input did not have it then"
