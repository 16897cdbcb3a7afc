"""A stop is obeyed within seconds in every phase of a run, and the same command goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import draw_images, jpeg, tar
from faults import hanging

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage

ROOT = Path(__file__).parents[3]
QUICK = ("finishing in threads",)


def started(phase, job_file, *command):
    """Start the command line, and wait until it hangs."""
    process = subprocess.Popen(
        [sys.executable, hanging.__file__, phase, *(command or ("run", str(job_file), "--no-ray"))],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(job_file.parent)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if "hanging" in line:
            return process
    raise AssertionError(f"it did not hang: {said}")


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(
            phase,
            signal.SIGINT if phase == "listing" else signal.SIGTERM,
            marks=() if phase in QUICK else pytest.mark.slow,
        )
        for phase in hanging.PHASES
    ],
)
def test_row_4_a_stop_is_obeyed_within_seconds(phase, number, tmp_path, weights_file, request):
    images = draw_images(tmp_path / "images", 6)
    tar(images / "more.tar", [("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))])
    table = {"input": str(images), "output": str(tmp_path / "out"), "weights": weights_file}
    job_file = tmp_path / "job.toml"
    job_file.write_text("".join(f'{key} = "{value}"\n' for key, value in table.items()))
    process = started(phase, job_file)
    request.addfinalizer(process.kill)
    if phase == "planning behind the first shards":
        time.sleep(2)  # meanwhile the first shards are done, and the loop waits for more
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - sent < 12
    assert "stopped; finished work is kept; run the same command to resume" in said
    summary = run(Job.load(job_file))
    assert summary.exit_code == 0
    assert verify(str(tmp_path / "out")).problems == []
    assert len(list(tmp_path.glob("out/masks/**/*.png"))) == 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_obeys_a_stop_within_seconds(number, tmp_path, weights_file, request):
    images = draw_images(tmp_path / "images", 3)
    tar(images / "more.tar", [("a.jpg", jpeg(1))])
    given = ["--input", str(images), "--output", str(tmp_path / "out"), "--weights", weights_file]
    process = started("listing in a thread", tmp_path / "job.toml", "plan", *given)
    request.addfinalizer(process.kill)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - sent < 12) == (130, True), said
    assert "stopped; a plan writes nothing" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_row_4_a_stop_is_obeyed_while_another_run_holds_the_lock(tmp_path, weights_file):
    images, out = draw_images(tmp_path / "images", 3), tmp_path / "out"
    job_file = tmp_path / "job.toml"
    job_file.write_text(
        f'input = "{images}"\noutput = "{out}"\nweights = "{weights_file}"\n[run]\non_overlap = "wait"\n'
    )
    with Lock(LocalStorage(str(out))):
        process = subprocess.Popen(
            [sys.executable, "-m", "maskfleet", "run", str(job_file), "--no-ray"], cwd=ROOT, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        time.sleep(15)  # loads torch, lists the input and waits
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - sent < 12) == (130, True), said
    assert run(Job.load(job_file)).ok == 3
