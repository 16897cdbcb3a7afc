"""Commands on an output: they take the output or its job file, and use singular and plural."""

import json
import os

import pytest
from command_line import maskfleet
from conftest import draw_images


@pytest.fixture(scope="module")
def job(tmp_path_factory, weights_file):
    """The job file of an output with one image and one broken file."""
    folder = tmp_path_factory.mktemp("one")
    draw_images(folder / "images", 1)
    (folder / "images/broken.png").write_bytes(b"no image")
    file = folder / "job.toml"
    file.write_text(
        f'input = "{folder}/images"\noutput = "{folder}/out"\nweights = "{weights_file}"\nrun.max_error_rate = 1.0\n'
    )
    done = maskfleet("run", file, "--no-ray")
    assert done.returncode == 0, done.stderr
    return file


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["verify"], "2 rows checked, no problems\n"),
        (["explain", "broken.png"], "broken.png: failed, by run"),
        (["export", "exported"], "1 mask in exported; 1 failed image without a mask\n"),
        (["gc"], "0 files (0 bytes) unused; delete with --delete; 0 unused files younger than 24 hours kept\n"),
        (["status"], "complete"),
        (["list"], "complete  exit 0  maskfleet\n"),
    ],
)
@pytest.mark.parametrize("by", ["output", "job file"])
def test_an_output_is_named_by_itself_or_by_its_job_file(job, tmp_path, by, arguments, expected):
    command, *more = arguments
    target = job if by == "job file" else job.parent / "out"
    done = maskfleet(command, target, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_a_retry_by_the_job_file(job):
    again = maskfleet("retry", job, "--class", "decode", "--no-ray", "--json")
    assert json.loads(again.stdout)["planned"] == {"failed": 1}


@pytest.mark.parametrize("command", ["status", "list", "gc"])
def test_a_folder_without_runs_is_an_error(command, tmp_path):
    done = maskfleet(command, "nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no run in nope; correct the path" in done.stderr
    assert not os.listdir(tmp_path)
