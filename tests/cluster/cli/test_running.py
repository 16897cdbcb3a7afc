"""plan, run, backfill and retry: JSON, exit codes, signals, and a killed driver."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import environment, maskfleet, options
from conftest import draw_images, statistics, tree


def test_plan_run_status_verify(images, tmp_path, weights_file):
    given = options(images, tmp_path / "out", weights_file)
    planned = json.loads(maskfleet("plan", *given, "--json").stdout)
    assert (planned["images"], planned["listed"], planned["shards"], planned["done"]) == (24, 24, 6, 0)
    assert planned["bytes"] == sum(path.stat().st_size for path in images.rglob("*.*") if path.is_file())
    assert not (tmp_path / "out").exists()
    done = maskfleet("run", *given, "--no-ray", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] == 24
    assert json.loads(maskfleet("status", tmp_path / "out", "--json").stdout)["state"] == "complete"
    assert json.loads(maskfleet("plan", *given, "--json").stdout)["images"] == 0
    assert "no problems" in maskfleet("verify", tmp_path / "out").stdout
    again = maskfleet("run", *given, "--no-ray")
    assert (again.returncode, again.stdout[:13]) == (0, "nothing to do")
    next((tmp_path / "out/masks").rglob("*.png")).unlink()
    damaged = maskfleet("verify", tmp_path / "out")
    assert (damaged.returncode, "is missing" in damaged.stdout) == (1, True)


@pytest.mark.slow
def test_a_backfill_runs_each_day_and_its_images_are_explained_and_retried(images, tmp_path, weights_file):
    for day in ("2026-11-01", "2026-11-02"):
        draw_images(tmp_path / "days" / day, 2)
    (tmp_path / "days/2026-11-02/broken.png").write_bytes(b"no image")
    job = tmp_path / "job.toml"
    job.write_text(
        f'input = "{tmp_path}/days/{{date}}"\noutput = "{tmp_path}/out/{{date}}"\nweights = "{weights_file}"\n'
        "run = { max_error_rate = 0.5 }\n"
    )
    days = ("--from", "2026-11-01", "--to", "2026-11-02", "--no-ray")
    assert maskfleet("backfill", job, *days).returncode == 0
    assert len(list((tmp_path / "out").glob("*/masks/*/*.png"))) == 4
    out = tmp_path / "out/2026-11-02"
    told = maskfleet("explain", out, "broken.png")
    assert (told.returncode, "failed, by run" in told.stdout, "unidentified" in told.stdout) == (0, True, True)
    again = maskfleet("retry", out, "--class", "decode", "--no-ray", "--json")
    assert json.loads(again.stdout)["planned"] == {"failed": 1}
    assert "0 files" in maskfleet("gc", out).stdout
    same = maskfleet("backfill", job, *days, "--set", f"input={images}")
    assert (same.returncode, "does not depend on {date}" in same.stderr) == (2, True)


@pytest.mark.slow
def test_a_backfill_on_ray_continues_after_a_finished_day(tmp_path, weights_file):
    job = tmp_path / "job.toml"
    job.write_text(
        f'input = "{tmp_path}/days/{{date}}"\noutput = "{tmp_path}/out/{{date}}"\nweights = "{weights_file}"\n'
    )
    for day in ("2026-11-01", "2026-11-02"):
        draw_images(tmp_path / "days" / day, 2)
    assert maskfleet("run", job, "--date", "2026-11-01", "--no-ray").returncode == 0
    done = maskfleet("backfill", job, "--from", "2026-11-01", "--to", "2026-11-02", "--address", "local")
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    assert len(list((tmp_path / "out").glob("*/masks/*/*.png"))) == 4


def test_the_printed_duckdb_query_runs(images, tmp_path, weights_file):
    job = tmp_path / "job.toml"
    job.write_text(
        f'input = "{images}"\noutput = "{tmp_path}/out"\nweights = "{weights_file}"\n[masks]\nvalues = [0, 9]\n'
    )
    done = maskfleet("run", job, "--no-ray", "--set", "run.shard_size=10")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("runs/*/commits/*"))) == 3
    query = re.search(r'duckdb -c "(.*)"', done.stdout)[1]
    assert __import__("duckdb").sql(query).fetchall() == [("ok", 24)]


def test_missing_credentials_are_one_line_and_exit_2(images, weights_file, s3_server):
    bare = {name: value for name, value in environment().items() if not name.startswith("AWS_")}
    bare |= {"AWS_ENDPOINT_URL_S3": os.environ["AWS_ENDPOINT_URL_S3"], "AWS_EC2_METADATA_DISABLED": "true"}
    done = maskfleet("run", "--no-ray", *options(images, "s3://b/out", weights_file), env=bare)
    assert done.returncode == 2
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_too_many_failures_are_exit_1(images, tmp_path, weights_file):
    (images / "broken.png").write_bytes(b"")
    done = maskfleet("run", *options(images, tmp_path / "out", weights_file), "--no-ray")
    assert done.returncode == 1
    assert (
        "4.0% of the images failed, and run.max_error_rate allows 1.0%; mostly empty, such as broken.png ("
        in done.stderr
    )
    assert "24 ok, 1 failed (1 empty)" in done.stdout


def test_a_locked_output_is_exit_4(images, tmp_path, weights_file):
    from maskfleet.jobs.ledger.lock import Lock
    from maskfleet.jobs.storage.local import LocalStorage

    with Lock(LocalStorage(str(tmp_path / "out"))):
        done = maskfleet("run", *options(images, tmp_path / "out", weights_file), "--no-ray")
    assert done.returncode == 4
    assert f"is held by process {os.getpid()}" in done.stderr


SLOW = (
    "from maskfleet.cluster.driver import Fleet; from maskfleet.cluster.cli.main import main; "
    "from faults.killers import slowly; Fleet.__init__.__kwdefaults__['open_pipeline'] = slowly; main()"
)


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_that_is_killed_again_and_again_loses_nothing(tmp_path, weights_file):
    images = draw_images(tmp_path / "images", 48)
    sets = ["--set", "run.shard_size=4", "--set", "inference.precision=fp32", "--set", "cluster.threads=1"]
    assert maskfleet("run", *options(images, tmp_path / "reference", weights_file), *sets, "--no-ray").returncode == 0
    command = [sys.executable, "-c", SLOW, "run", *map(str, options(images, tmp_path / "out", weights_file)), *sets]
    seen: set[Path] = set()
    for kills in range(3):
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        goal, deadline = len(seen) + 2, time.monotonic() + 90
        while len(list((tmp_path / "out").glob("runs/*/commits/*.json"))) < goal and time.monotonic() < deadline:
            assert process.poll() is None, f"the run ended before it was killed {kills + 1} times"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)  # the workers of a killed driver may still commit
        now = set((tmp_path / "out").glob("runs/*/commits/*.json"))
        assert seen <= now
        seen = now
    stamps = {path: path.stat().st_mtime_ns for path in seen}
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in seen} == stamps, "finished shards were done again"
    assert len(list((tmp_path / "out/runs").iterdir())) == 1
    assert tree(tmp_path / "out/masks") == tree(tmp_path / "reference/masks")
    assert statistics(tmp_path / "out") == statistics(tmp_path / "reference")
    assert "no problems" in maskfleet("verify", tmp_path / "out").stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_shards_in_progress(number, images, tmp_path, weights_file):
    sets = [
        "--set",
        "run.shard_size=4",
        "--set",
        "inference.precision=fp32",
        "--set",
        "cluster.threads=1",
        "--set",
        "cluster.workers=1",
    ]
    command = [sys.executable, "-c", SLOW, "run", *map(str, options(images, tmp_path / "out", weights_file)), *sets]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("runs/*/commits/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    assert json.loads(maskfleet("status", tmp_path / "out", "--json").stdout)["state"] == "unfinished"
    assert maskfleet("verify", tmp_path / "out").returncode == 0
