"""Two real processes on one output."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import tree

from maskfleet.jobs.outputs.verify import verify

NIGHT = Path(__file__).parents[1] / "faults" / "night.py"


@contextmanager
def night(images, out, weights_file, on_overlap="fail", stale=600.0):
    """A night that stops before its first shard until a line comes."""
    job = {
        "input": str(images), "output": str(out), "weights": weights_file, "inference": {"precision": "fp32"},
        "run": {"on_overlap": on_overlap, "shard_size": 4},
    }  # fmt: skip
    path = os.pathsep.join([str(NIGHT.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, NIGHT, json.dumps(job), str(stale)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def holds(process):
    line = process.stdout.readline()
    assert line == "holds\n", process.communicate()


def goes_on(process):
    return process.communicate("\n"), process.returncode


def _loose_end(path):
    return "/shards/" in path or "/logs/" in path or ".maskfleet-tmp-" in path


def runs(out):
    return [json.loads(path.read_bytes()) for path in sorted((out / "runs").glob("*/run.json"))]


@pytest.mark.slow
def test_each_on_overlap_beside_a_night_that_holds_the_output(images, tmp_path, weights_file):
    out = tmp_path / "out"
    with night(images, out, weights_file) as first:
        holds(first)
        others = [night(images, out, weights_file, on_overlap) for on_overlap in ("fail", "skip", "wait")]
        with others[0] as failing, others[1] as skipping, others[2] as waiting:
            for process, code in ((failing, 4), (skipping, 0)):
                (told, why), found = goes_on(process)
                assert (told, found) == ("", code)
                assert f"is held by process {first.pid}" in why
            assert not runs(out)
            assert goes_on(first)[1] == 0
            holds(waiting)
            assert goes_on(waiting)[1] == 0
    done, nothing = runs(out)
    assert (done["images"], nothing["images"], nothing["generation"]) == (24, 0, done["generation"] + 1)
    assert verify(str(out)).problems == []


@pytest.mark.slow
def test_a_holder_that_was_stopped_is_taken_over_and_commits_nothing_when_it_wakes_up(images, tmp_path, weights_file):
    out = tmp_path / "out"
    with night(images, out, weights_file) as stopped:
        holds(stopped)
        stopped.send_signal(signal.SIGSTOP)
        with night(images, out, weights_file, "wait", stale=0.5) as second:
            holds(second)
            assert goes_on(second)[1] == 0
        before = tree(out)
        stopped.send_signal(signal.SIGCONT)
        (_, why), code = goes_on(stopped)
        assert code == 4, why
        assert "while this one did not respond" in why
        after = tree(out)
    # What it was writing when it was stopped, and the attempts that it had begun, name nothing.
    promised = [{path: data for path, data in files.items() if not _loose_end(path)} for files in (before, after)]
    assert promised[0] == promised[1]
    # Where it was stopped before its plan was whole, a second run looks for what is behind it, and finds nothing.
    assert [done["images"] for done in runs(out)] in ([24], [24, 0])
    assert sum(done["ok"] for done in runs(out)) == 24
    assert verify(str(out)).problems == []
