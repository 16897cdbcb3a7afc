"""The package of a submission: this code and the job, in a folder shipped to the head of a Ray cluster."""

import json
import shutil
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, Literal

from maskfleet.jobs.job.schema import Job

STOP_SECONDS = 600
"""Time for a stopped driver to finish the shards in progress. Ray's default is 3 s."""

Install = Literal["none", "pip", "uv"]


def pack(folder: Path, job: Job) -> None:
    """Write this code, from a checkout or an installation, and a job into a folder.

    The job is written from its validated form. Other content of its file, such as a comment with a key, is not shipped.

    Args:
        folder: Empty folder to receive `maskfleet/`, its metadata and `job.json`.
        job: The job.
    """
    source = Path(__file__).parents[1]
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    # The code reads its own version, and the cluster may have no maskfleet installed, or another version.
    number = version("maskfleet")
    metadata = folder / f"maskfleet-{number}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: maskfleet\nVersion: {number}\n")
    (folder / "job.json").write_text(json.dumps(job.model_dump(mode="json", exclude_none=True), indent=1))


def environment(folder: str, install: Install) -> dict[str, Any]:
    """Return the Ray runtime environment of a submission.

    It holds no secrets, since Ray shows it to everyone with access to the dashboard.

    Args:
        folder: Folder written by `pack`.
        install: Tool for installing `pinned()` on the cluster; "none" if the cluster's image has everything.
    """
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "RAY_USAGE_STATS_ENABLED": "0"}
    runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": variables}
    if install != "none":
        runtime_env[install] = pinned()
    return runtime_env


def pinned() -> list[str]:
    """Return the required packages with the versions installed here, such as "numpy==2.4.1", except Ray."""
    needs = [need for need in requires("maskfleet") or () if "extra ==" not in need]
    names = [need.split(">")[0].split("[")[0].strip() for need in needs]
    return [f"{name}=={version(name).partition('+')[0]}" for name in names if name != "ray"]
