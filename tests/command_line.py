"""Helpers: call the command line in a process of its own, write a job file, and draw folders of misleading modules."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment():
    """Environment with wide lines and with the tests on the module search path, for faults."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "COLUMNS": "200"}


def maskfleet(*arguments, **more):
    """Call `python -m maskfleet` and wait for its end."""
    command = [sys.executable, "-m", "maskfleet", *map(str, arguments)]
    more = {"env": environment()} | more
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **more)


def options(images, output, weights_file):
    """The options required by every job."""
    return ["--input", images, "--output", output, "--weights", weights_file]


def scheduled_job(folder: Path) -> Path:
    """Write a job file with a schedule, whose name a shell and systemd must quote. Return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "my job 100%.toml"
    file.write_text(
        f'name="nuclei"\ninput="{folder}/images"\noutput="{folder}/out"\nweights="nuclei"\n'
        '[schedule]\ncron="30 2 * * mon-fri"\ntimezone="Europe/Berlin"\n'
    )
    return file


OURS = ("unet/__init__.py", "jobs/__init__.py", "cluster/__init__.py")
SHADOWS = (*OURS, "random.py", "json.py", "numpy.py", "logging.py")


def shadowed(folder, names=SHADOWS):
    """Write modules with misleading names that raise an error when imported, and return their folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise ImportError(f'{__file__} was imported')\n")
    return folder
