"""The command line in a process of its own, as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment():
    """Wide lines, and the tests' own modules for what is to be killed or slowed down."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "COLUMNS": "200"}


def maskfleet(*arguments, **more):
    """A finished call of `python -m maskfleet`."""
    command = [sys.executable, "-m", "maskfleet", *map(str, arguments)]
    more = {"env": environment()} | more
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **more)


def options(images, output, weights_file):
    """The three things every job needs."""
    return ["--input", images, "--output", output, "--weights", weights_file]


OURS = ("unet/__init__.py", "jobs/__init__.py", "cluster/__init__.py")
SHADOWS = (*OURS, "random.py", "json.py", "numpy.py", "logging.py")


def shadowed(folder, names=SHADOWS):
    """A folder whose modules have the names of ours and of others', and cannot be imported."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise ImportError(f'{__file__} was imported')\n")
    return folder
