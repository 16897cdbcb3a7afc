"""Commands on an output: they take the output or its job file, and use singular and plural."""

import json
import os

import pytest
from command_line import maskfleet
from conftest import draw_images
from PIL import Image


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
        (["show", "image-000.jpg"], "class 1: "),
        (["show", "--failed"], "1 of 1 failed image in "),
        (["show", "--least-confident", "3", "--output", "sheet.png"], "\nsheet.png\n"),
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


def test_show_writes_a_picture_and_says_what_is_not_there(job, tmp_path):
    done = maskfleet("show", job, "image-000.jpg", "--size", "64", cwd=tmp_path)
    assert done.stdout.endswith("\nmaskfleet-show.png\n")
    with Image.open(tmp_path / "maskfleet-show.png") as picture:
        assert picture.format == "PNG"
    for arguments, message in (
        ([job], "name one image, or give --failed or --least-confident N"),
        ([job, "image-000.jpg", "--failed"], "name one image, or give"),
        ([job, "nope.png"], "no image key ends with 'nope.png'"),
        (["nope", "a.png"], "there is no run in nope; correct the path"),
        ([job, "--failed", "--run", "nope"], "there is no run nope in"),
        ([job, "broken.png"], "broken.png has no mask"),
        ([job, "image-000.jpg", "--output", "no/folder.png"], "no/folder.png cannot be written"),
    ):
        done = maskfleet("show", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
