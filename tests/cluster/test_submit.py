"""Submissions to a real Ray head requiring a token."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from command_line import OURS, shadowed
from conftest import draw_images, draw_pairs, statistics
from ray_head import free_port, ray_head

from maskfleet.cluster.cli import operations
from maskfleet.cluster.submit import UnreachableError, check_dashboard, exit_code
from maskfleet.jobs.errors import JobError


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 130),
        ("STOPPED", 0, 130),
        *(("FAILED", code, code) for code in (1, 2, 3, 4)),
    ],
)
def test_the_exit_code_is_that_of_the_driver(state, code, expected):
    assert exit_code(state, code) == expected


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("10.0.0.5:8265", JobError, "give the URL of the cluster's dashboard, such as http://10.0.0.5:8265"),
        ("10.0.0.5", JobError, "such as http://10.0.0.5:8265"),
        ("ray://10.0.0.5:10001", JobError, "such as http://10.0.0.5:10001"),
        ("http://", JobError, "such as http://HOST:8265"),
        ("http://127.0.0.1:1", UnreachableError, "no Ray dashboard at http://127.0.0.1:1; correct --address"),
    ],
)
def test_a_wrong_dashboard_is_refused_at_once(address, error, message):
    began = time.monotonic()
    with pytest.raises(error, match=message):
        check_dashboard(address)
    assert time.monotonic() - began < 2


def test_an_installed_environment_has_its_own_interpreter(tmp_path):
    with pytest.raises(JobError, match="omit --python"):
        operations.submit(tmp_path / "job.toml", "http://127.0.0.1:9", python="/opt/venv/bin/python", install="pip")


# On a real head ----------------------------------------------------------------------------------


class Head(NamedTuple):
    """A running head."""

    address: str
    port: int
    token: Path
    session: Path
    metrics_port: int
    client_folder: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head with a token. Its folder and its client's have modules with the names of other modules.

    The head's folder has only the names of this project's: Ray's dashboard does not start beside a `random.py`.
    """
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment |= {"RAY_metrics_report_interval_ms": "500"}
    with ray_head(environment, log=folder / "ray.log", cwd=shadowed(folder / "head", OURS)) as started:
        yield Head(
            started.dashboard, started.port, token, started.session, started.metrics_port, shadowed(folder / "client")
        )


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def maskfleet(head, *arguments, token=True, wait=True):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "PYTHONPATH"))}
    variables |= {"COLUMNS": "200"} | ({"RAY_AUTH_TOKEN_PATH": str(head.token)} if token else {})
    command = [sys.executable, "-m", "maskfleet", *map(str, arguments)]
    settings = {"env": variables, "cwd": head.client_folder, "text": True}
    if not wait:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
    return subprocess.run(command, capture_output=True, timeout=200, check=False, **settings)


def job_file(folder, weights_file, name, images, *lines):
    file = folder / f"{name}.toml"
    text = f'name="{name}"\ninput="{images}"\noutput="{folder}/{name}"\nweights="{weights_file}"\n'
    file.write_text(text + "[run]\nshard_size=2\n[cluster]\nthreads=1\nworkers=1\n" + "\n".join(lines))
    return file


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_submitted_stopped_and_resumed(head, tmp_path, weights_file):
    address, token, session = head.address, head.token, head.session
    images = draw_images(tmp_path / "images", 60)
    # Eight views of each image take long enough to suspend the worker between the first shard and the last.
    job = job_file(tmp_path, "nuclei", "nuclei", images, "[inference]", 'tta="d4"', 'precision="fp32"')
    there = ["--address", address]
    submit = ["submit", job, *there, "--date", "2026-11-24", "--python", sys.executable]

    refused = maskfleet(head, *submit, token=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "requires a token" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1

    following = maskfleet(head, *submit, "--follow", wait=False)
    wait_for(lambda: list((tmp_path / "nuclei").glob("runs/*/commits/*.json")))
    (worker,) = workers(session)
    worker.suspend()  # the run must not end on a fast machine
    assert token.read_text() not in " ".join(" ".join(process.cmdline()) for process in processes())
    wait_for(lambda: {"images_total", "workers", "queue_shards", "queue_images", "device_share"} <= scraped(head), 30)
    again = maskfleet(head, *submit)
    assert (again.returncode, "nuclei-2026-11-24 is running" in again.stderr) == (4, True)
    shown = json.loads(maskfleet(head, "status", job, *there, "--json").stdout)
    assert (shown["id"], shown["state"], shown["run"]["state"]) == ("nuclei-2026-11-24", "RUNNING", "unfinished"), (
        maskfleet(head, "logs", job, *there).stdout[-3000:]
    )
    stopping = maskfleet(head, "stop", job, *there, wait=False)
    wait_for(lambda: "stopping after the shards in progress" in driver_log(session))
    worker.resume()
    assert (stopping.wait(60), stopping.stdout.read()) == (0, "nuclei-2026-11-24 stopped\n")
    assert following.wait(30) == 130
    assert "run the same command to resume" in following.stderr.read()
    done = set((tmp_path / "nuclei").glob("runs/*/commits/*.json"))
    assert 0 < len(done) < 30
    assert len(list((tmp_path / "nuclei").glob("runs/*/shards/*"))) == len(done), "it drained"

    gone_on = maskfleet(head, *submit, "--follow")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "WebSocket" not in gone_on.stderr
    assert re.search(r"^started +20\d\d-\S+\+00:00$", maskfleet(head, "status", job, *there).stdout, re.MULTILINE)
    assert len(list((tmp_path / "nuclei/runs").iterdir())) == 1
    assert len(statistics(tmp_path / "nuclei")) == 60
    listed = json.loads(maskfleet(head, "list", *there, "--json").stdout)
    assert [(row["id"], row["state"]) for row in listed] == [
        ("nuclei-2026-11-24-2", "SUCCEEDED"),
        ("nuclei-2026-11-24", "STOPPED"),
    ]
    assert "60 ok" in maskfleet(head, "logs", job, *there).stdout
    assert maskfleet(head, "list", job).stdout.split()[1:4] == ["complete", "exit", "0"], "from its own records"
    records = [json.loads(line) for line in maskfleet(head, "logs", job).stdout.splitlines()]
    done_shards = [record for record in records if record["event"] == "shard done"]
    assert len({record["shard"] for record in done_shards}) == len(done_shards) == 30
    assert all(record["run"] and record["attempt"] for record in done_shards)
    logs = [path.read_text(errors="replace") for path in session.rglob("*") if path.is_file() and "log" in str(path)]
    assert logs
    assert not [text for text in logs if token.read_text() in text]


@pytest.mark.ray
@pytest.mark.slow
def test_doctor_says_whether_a_cluster_answers_and_who_may_use_it(head):
    def found(address, *, token):
        done = maskfleet(head, "doctor", "--address", address, "--json", token=token)
        assert head.token.read_text() not in done.stdout + done.stderr
        lines = {line["check"]: line for line in json.loads(done.stdout)}
        return lines["ray"], lines.get("ray access")

    for address in (head.address, f"127.0.0.1:{head.port}"):
        ray, access = found(address, token=True)
        assert (ray["verdict"], access["verdict"]) == ("ok", "ok"), (ray, access)
        assert "takes no request without a token; the dashboard listens on 127.0.0.1:" in access["text"]
        ray, access = found(address, token=False)
        assert (ray["verdict"], "RAY_AUTH_TOKEN_PATH" in ray["remedy"]) == ("problem", True), (ray, access)


def workers(session):
    """Worker processes of this head."""
    raylets = [one for one in processes() if "raylet" in one.name() and str(session) in " ".join(one.cmdline())]
    return [one for raylet in raylets for one in raylet.children() if " ".join(one.cmdline()).startswith("ray::Worker")]


def driver_log(session):
    """Log of the newest submission's driver."""
    logs = sorted(session.glob("session_*/logs/job-driver-*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text()


def scraped(head):
    """Names of our metrics in Prometheus, without prefix."""
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=5) as answer:
        return set(re.findall(r"^ray_maskfleet_(\w+)\{", answer.read().decode(), re.MULTILINE))


def processes():
    for process in psutil.process_iter():
        try:
            process.cmdline()
        except psutil.Error:
            continue
        else:
            yield process


@pytest.mark.ray
@pytest.mark.slow
def test_exit_codes_reach_the_client(head, tmp_path, weights_file):
    from maskfleet.jobs.ledger.lock import Lock
    from maskfleet.jobs.storage.local import LocalStorage

    images = draw_images(tmp_path / "images", 6)
    follow = ["--address", head.address, "--python", sys.executable, "--follow"]
    wrong = maskfleet(head, "submit", job_file(tmp_path, "/none.safetensors", "wrong", images), *follow)
    assert (wrong.returncode, "none.safetensors" in wrong.stderr) == (2, True)
    with Lock(LocalStorage(str(tmp_path / "locked"))):
        locked = maskfleet(head, "submit", job_file(tmp_path, weights_file, "locked", images), *follow)
    assert (locked.returncode, "is held by process" in locked.stderr) == (4, True)
    (images / "broken.png").write_bytes(b"")
    failed = maskfleet(head, "submit", job_file(tmp_path, weights_file, "failed", images), *follow)
    assert (failed.returncode, "6 ok, 1 failed" in failed.stderr) == (1, True)
    pairs, masks = draw_pairs(tmp_path, 16)
    learning = ["[finetune]", f'images = "{pairs}"', f'masks = "{masks}"', "validation_share = 0.5"]
    learning += ["steps = 1", "crop = 32", "batch_size = 1"]  # too few for an improvement
    refused = maskfleet(head, "submit", job_file(tmp_path, weights_file, "refused", images, *learning), *follow)
    assert (refused.returncode, "the gate refused the new weights" in refused.stderr) == (3, True)
    ids = [row["id"] for row in json.loads(maskfleet(head, "list", "--address", head.address, "--json").stdout)]
    assert re.fullmatch(r"refused-\d{4}-\d\d-\d\d", ids[0])


@pytest.mark.ray
@pytest.mark.slow
def test_without_a_cluster_the_output_answers(head, tmp_path, weights_file):
    job = job_file(tmp_path, weights_file, "nuclei", draw_images(tmp_path / "images", 4))
    gone = maskfleet(head, "status", "some-id", "--address", f"http://127.0.0.1:{free_port()}")
    assert (gone.returncode, len(gone.stderr.strip().splitlines())) == (1, 1)
    assert "no Ray dashboard at" in gone.stderr
    assert maskfleet(head, "run", job, "--no-ray").returncode == 0
    told = maskfleet(head, "status", job, "--address", f"http://127.0.0.1:{free_port()}", "--json")
    assert (told.returncode, json.loads(told.stdout)["state"]) == (0, "complete")
