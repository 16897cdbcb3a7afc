"""Commands in the folder of a user: names there that are also names of this package, of Python, or of a library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw_images

RAISES = "raise ImportError('the working directory is on the module search path')\n"
COMMAND = Path(sys.executable).parent / "maskfleet"


def checkout(folder: Path) -> Path:
    """A folder like a checkout of Pytorch-UNet: packages with the names of this project's folders."""
    for package in ("unet", "jobs", "cluster"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(RAISES)
    draw_images(folder / "images", 6)
    return folder


def shadowing(folder: Path) -> Path:
    """The same with modules of Python and NumPy too."""
    for module in ("random", "json", "numpy", "PIL", "torch"):
        (checkout(folder) if module == "random" else folder).joinpath(f"{module}.py").write_text(RAISES)
    return folder


def run(folder: Path, weights_file: str, *arguments: str, command=(COMMAND,), **environment: str) -> dict:
    before = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "run", "--input", "images", "--output", "out", "--weights", weights_file, "--json", *arguments],
        cwd=folder, env=before | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.ray
@pytest.mark.parametrize("folder", [checkout, shadowing])
def test_a_run_on_ray_takes_no_module_from_the_working_directory(folder, tmp_path, weights_file):
    assert run(folder(tmp_path), weights_file, "--set", "cluster.threads=1")["ok"] == 6


@pytest.mark.parametrize("folder", [checkout, shadowing])
def test_a_run_in_one_process_takes_no_module_from_the_working_directory(folder, tmp_path, weights_file):
    assert run(folder(tmp_path), weights_file, "--no-ray")["ok"] == 6


@pytest.mark.ray
def test_a_run_on_ray_works_with_the_folder_on_the_search_path(tmp_path, weights_file):
    assert run(checkout(tmp_path), weights_file, "--set", "cluster.threads=1", PYTHONPATH=".")["ok"] == 6


def test_a_run_in_one_process_works_with_the_folder_on_the_search_path(tmp_path, weights_file):
    assert run(checkout(tmp_path), weights_file, "--no-ray", PYTHONPATH=".")["ok"] == 6


def test_python_m_takes_no_module_from_the_working_directory(tmp_path, weights_file):
    command = (sys.executable, "-m", "maskfleet")
    assert run(shadowing(tmp_path), weights_file, "--no-ray", command=command)["ok"] == 6
