"""Ray workers of a command that is started in a folder with modules named like ours, like Python's and like NumPy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import OURS, SHADOWS, shadowed
from conftest import draw_images

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(folder: Path, weights_file: str, **environment: str) -> dict:
    draw_images(folder / "images", 6)
    command = [Path(sys.executable).parent / "maskfleet", "run", "--json", "--set", "cluster.threads=1"]
    before = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--input", "images", "--output", "out", "--weights", weights_file],
        cwd=folder, env=before | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_workers_take_no_module_from_the_working_directory(tmp_path, weights_file):
    assert run(shadowed(tmp_path, SHADOWS), weights_file)["ok"] == 6


def test_workers_take_their_own_modules_with_the_folder_on_the_search_path(tmp_path, weights_file):
    assert run(shadowed(tmp_path, OURS), weights_file, PYTHONPATH=".")["ok"] == 6
