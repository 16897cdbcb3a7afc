"""What a submission ships."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw_images

import maskfleet
from maskfleet.cluster.package import environment, pack, pinned
from maskfleet.jobs.job.schema import Job


def files(folder: Path) -> set[str]:
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in paths if "__pycache__" not in path.parts}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    return folder


def test_the_package_is_complete_and_has_the_job(folder, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('# AKIAIOSFODNN7EXAMPLE\nname="n"\ninput="s3://b/in put"\noutput="s3://b/out"\nweights="nuclei"\n')
    job = Job.load(file, ["run.shard_size=7"])
    pack(folder, job)
    assert Job.load(folder / "job.json") == job
    (metadata,) = importlib.metadata.distributions(path=[str(folder)])
    assert (metadata.name, metadata.version) == ("maskfleet", importlib.metadata.version("maskfleet"))
    assert {path.name for path in folder.iterdir()} == {
        "maskfleet",
        f"maskfleet-{metadata.version}.dist-info",
        "job.json",
    }
    source = Path(maskfleet.__file__).parent
    expected = {
        str(Path(path).relative_to(source))
        for top, _, names in os.walk(source, followlinks=True)
        for path in (Path(top, name) for name in names)
        if "__pycache__" not in path.parts
    }
    assert {"py.typed", "unet/models/nuclei.safetensors", "cluster/cli/main.py"} <= expected
    assert files(folder / "maskfleet") == expected
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert b"AKIA" not in b"".join(path.read_bytes() for path in folder.glob("*.json"))


def test_the_package_runs_its_job_with_its_own_code(folder, tmp_path):
    table = {"input": str(draw_images(tmp_path / "images", 2)), "output": str(tmp_path / "out"), "weights": "nuclei"}
    pack(folder, Job.of(table))
    code = "import runpy, sys; import maskfleet; print(maskfleet.__file__); runpy.run_module('maskfleet', run_name='__main__')"
    command = [sys.executable, "-P", "-c", code, "run", "job.json", "--no-ray"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(folder / "maskfleet/__init__.py")
    assert "2 ok" in done.stdout


def test_the_environment_has_no_secrets(folder, monkeypatch):
    from ray.runtime_env import RuntimeEnv

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-token")
    pack(folder, Job.of({"input": "s3://b/in", "output": "s3://b/out", "weights": "nuclei"}))
    for install in ("none", "pip", "uv"):
        made = environment(str(folder), install)
        assert RuntimeEnv(**made)
        assert "canary" not in json.dumps(made)
        assert int(made["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60
    assert "canary" not in (folder / "job.json").read_text()


def test_packages_are_pinned_to_the_versions_here():
    assert any(re.fullmatch(r"torch==[\d.]+", need) for need in pinned())
    assert not [need for need in pinned() if need.startswith("ray=")]
