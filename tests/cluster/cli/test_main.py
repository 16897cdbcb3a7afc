"""All commands: the table, one-line errors, completion, and the module search path."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import OURS, ROOT, maskfleet, options, shadowed
from conftest import draw_images

from maskfleet.cluster.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--set", "run.shard_sise=3"], 2, "did you mean run.shard_size?"),
        (["--weights", "none.safetensors"], 2, "built-in model (nuclei)"),
        (["--input", "none"], 2, "input folder /"),
        (["--input", "gs://x/y"], 2, "local path or s3://"),
        (["--set", "masks.values=[0,1,2]"], 2, "2 classes"),
        (["--output", "/dev/null/x"], 2, "the output is not writable"),
        (["--no-such-flag"], 2, "No such option: --no-such-flag; see"),
        (["--only", "old"], 2, "'old' is unknown; choose from new, changed, stale, failed"),
        (["--limit", "0"], 2, "Invalid value for '--limit': give at least 1; see"),
        (
            ["--limit", "x"],
            2,
            "Invalid value for '--limit': give a whole number, such as 100; see",
        ),
        (["--since", "yesterday"], 2, "Invalid value for '--since': 'yesterday' is no date; write 2026-11-24 or"),
        (["--date", "24.11.2026"], 2, "'24.11.2026' is no date; write it like 2026-11-24"),
    ],
)
def test_bad_jobs_are_one_line_and_exit_2(change, code, message, images, tmp_path, weights_file):
    given = options(images, tmp_path / "out", weights_file)
    done = maskfleet("run", *given, *change, "--no-ray", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    # A slow machine may still say what it does.
    said = [line for line in done.stderr.strip().splitlines() if not re.fullmatch(r"(loading|listing).* s", line)]
    assert len(said) == 1
    assert not (tmp_path / "out").exists()


def test_no_command_shows_the_help():
    done = maskfleet()
    assert (done.returncode, done.stdout) == (2, "")
    assert all(f"\n  {name} " in done.stderr for commands in COMMANDS.values() for name in commands)


def test_the_shell_completes_commands():
    asked = {"_MASKFLEET_COMPLETE": "complete_bash", "COMP_WORDS": "maskfleet ba", "COMP_CWORD": "1"}
    script = Path(sys.executable).parent / "maskfleet"
    done = subprocess.run([script], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["backfill"]


MODULE = [sys.executable, "-m", "maskfleet"]
SCRIPT = [str(Path(sys.executable).parent / "maskfleet")]


@pytest.mark.parametrize("program", [MODULE, SCRIPT])
def test_modules_in_the_working_directory_are_not_imported(program, tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given = options(draw_images(tmp_path / "images", 2), tmp_path / "out", "nuclei")
    done = subprocess.run(
        [*program, "run", *map(str, given), "--no-ray"],
        cwd=shadowed(tmp_path / "folder"),
        env=plain,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ok" in done.stdout


@pytest.mark.parametrize("program", [MODULE, SCRIPT])
def test_a_search_path_with_the_working_directory_does_no_harm(program, tmp_path):
    """With PYTHONPATH=. in a folder with modules named like this project's folders."""
    given = options(draw_images(tmp_path / "images", 2), tmp_path / "out", "nuclei")
    done = subprocess.run(
        [*program, "run", *map(str, given), "--no-ray"],
        cwd=shadowed(tmp_path / "folder", OURS),
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", ["the checkout", "another folder"])
def test_only_the_checkout_stays_on_the_module_search_path(where, tmp_path):
    """Without an installation, `python -m maskfleet` works at the root of the checkout."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import atexit, sys; atexit.register(lambda: print(*sys.path))\n")
    folder = ROOT if where == "the checkout" else tmp_path
    done = maskfleet("--version", cwd=folder, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines()[1].split()
    assert first == str(ROOT if where == "the checkout" else tmp_path / "site")
