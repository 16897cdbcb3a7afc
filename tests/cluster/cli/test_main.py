"""The command line as a user meets it: one line per error, exit codes, JSON, and a driver that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import draw_images, draw_pairs, seeded, statistics, tree

ROOT = Path(__file__).resolve().parents[2]


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "COLUMNS": "200"}


def maskfleet(*arguments, **more):
    command = [sys.executable, "-m", "maskfleet.cluster.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200, check=False, **more)


def options(images, output, weights_file):
    return ["--input", images, "--output", output, "--weights", weights_file]


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


def test_a_backfill_does_each_day_and_its_images_are_explained_and_retried(images, tmp_path, weights_file):
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


def test_a_backfill_on_ray_goes_on_behind_a_day_that_is_done(tmp_path, weights_file):
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


def test_a_job_file_and_the_printed_line_for_duckdb(images, tmp_path, weights_file):
    job = tmp_path / "job.toml"
    job.write_text(
        f'input = "{images}"\noutput = "{tmp_path}/out"\nweights = "{weights_file}"\n[masks]\nvalues = [0, 9]\n'
    )
    done = maskfleet("run", job, "--no-ray", "--set", "run.shard_size=10")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("runs/*/commits/*"))) == 3
    query = re.search(r'duckdb -c "(.*)"', done.stdout)[1]
    assert __import__("duckdb").sql(query).fetchall() == [("ok", 24)]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--set", "run.shard_sise=3"], 2, "did you mean run.shard_size?"),
        (["--weights", "none.safetensors"], 2, "built-in model (nuclei)"),
        (["--input", "none"], 2, "there is no input folder /"),
        (["--input", "gs://x/y"], 2, "local path or s3://"),
        (["--set", "masks.values=[0,1,2]"], 2, "2 classes"),
        (["--output", "/dev/null/x"], 2, "the output cannot be written"),
        (["--no-such-flag"], 2, "No such option"),
    ],
)
def test_bad_jobs_are_one_line_and_exit_2(change, code, message, images, tmp_path, weights_file):
    given = options(images, tmp_path / "out", weights_file)
    done = maskfleet("run", *given, *change, "--no-ray", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if "option" not in message:
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_credentials(images, weights_file, s3_server):
    bare = {name: value for name, value in environment().items() if not name.startswith("AWS_")}
    bare |= {"AWS_ENDPOINT_URL_S3": os.environ["AWS_ENDPOINT_URL_S3"], "AWS_EC2_METADATA_DISABLED": "true"}
    command = [
        sys.executable,
        "-m",
        "maskfleet.cluster.cli.main",
        "run",
        "--no-ray",
        *map(str, options(images, "s3://b/out", weights_file)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, timeout=100, check=False)
    assert done.returncode == 2
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_too_many_failures_are_exit_1(images, tmp_path, weights_file):
    (images / "broken.png").write_bytes(b"")
    done = maskfleet("run", *options(images, tmp_path / "out", weights_file), "--no-ray")
    assert done.returncode == 1
    assert "4.0% of the images failed and run.max_error_rate allows 1.0%" in done.stderr
    assert "24 ok, 1 failed (1 empty)" in done.stdout


def test_a_locked_output_is_exit_4(images, tmp_path, weights_file):
    from maskfleet.jobs.ledger.lock import Lock
    from maskfleet.jobs.storage.local import LocalStorage

    with Lock(LocalStorage(str(tmp_path / "out"))):
        done = maskfleet("run", *options(images, tmp_path / "out", weights_file), "--no-ray")
    assert done.returncode == 4
    assert f"is held by process {os.getpid()}" in done.stderr


@pytest.mark.ray
def test_the_demo_in_a_folder_of_ones_own(tmp_path):
    done = maskfleet("demo", "--images", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images   11: 8 ok, 3 failed (1 corrupt, 1 empty, 1 unidentified)" in done.stdout
    assert float(re.search(r"Dice +([\d.]+)", done.stdout)[1]) > 0.8
    assert len(list((tmp_path / "maskfleet-demo/output/masks").rglob("*.png"))) == 8


def test_convert(tmp_path):
    import torch

    torch.save({**seeded(bilinear=True).state_dict(), "mask_values": [0, 1]}, tmp_path / "m.pth")
    done = maskfleet("convert", tmp_path / "m.pth", tmp_path / "m.safetensors")
    assert "3 channels, 2 classes, width 4, bilinear" in done.stdout
    (tmp_path / "bad.pth").write_bytes(b"hello")
    bad = maskfleet("convert", tmp_path / "bad.pth", tmp_path / "x.safetensors")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.safetensors").exists()


SLOW = (
    "import sys; from maskfleet.cluster.driver import Fleet; from faults.killers import slowly; from maskfleet.cluster.cli.main import main; \
Fleet.__init__.__kwdefaults__['open_pipeline'] = slowly; main()"
)


@pytest.mark.ray
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
        time.sleep(1)  # a killed driver's workers may still commit what they had
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_drain(number, images, tmp_path, weights_file):
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
    assert "run the same command to go on" in errors
    assert json.loads(maskfleet("status", tmp_path / "out", "--json").stdout)["state"] == "unfinished"
    assert maskfleet("verify", tmp_path / "out").returncode == 0


def training_job(folder, **settings):
    """A job file for a tiny training, and its output."""
    from maskfleet.unet import weights

    folder.mkdir(parents=True, exist_ok=True)
    images, masks = draw_pairs(folder, 16)
    (folder / "base.safetensors").write_bytes(weights.save(seeded(width=2), mask_values=(0, 255)))
    given = {"steps": 9, "crop": 32, "batch_size": 2, "validation_share": 0.5, "save_every": 2, "validate_every": 4}
    given |= {"gate": "off"} | settings
    path = folder / "job.toml"
    path.write_text(
        f'input = "{images}"\noutput = "{folder}/out"\nweights = "{folder}/base.safetensors"\n'
        f'cluster = {{ decoders = 1, threads = 1 }}\n[finetune]\nimages = "{images}"\nmasks = "{masks}"\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())
    )
    return path


def test_finetune_says_what_it_made_and_evaluate_what_it_is_worth(tmp_path):
    job = training_job(tmp_path)
    planned = json.loads(maskfleet("plan", job, "--json").stdout)
    assert [warning for warning in planned["warnings"] if "the new weights are not trained yet" in warning]
    made = maskfleet("finetune", job)
    assert made.returncode == 0, made.stderr
    assert re.search(r"step 9/9, loss \d\.\d{4}, Dice \d\.\d{4}, \d+\.\d images/s, \d\.\d GiB, 0 s left", made.stderr)
    base, new, gate, weights_line = made.stdout.splitlines()
    assert gate == "gate     not judged: finetune.gate is off"
    assert re.match(
        r"base +class 1 on \d+ validation images: dice \d\.\d{4} \(\d\.\d{4} … \d\.\d{4}\), iou .* recall", base
    )
    path = weights_line.removeprefix("weights").strip()
    scored = maskfleet("finetune", job, "--evaluate", "--set", f"weights={json.dumps(path)}")
    assert scored.stdout.split(":")[1].strip() == new.split(":")[1].strip()
    refused = maskfleet("finetune", job, "--json", "--set", "finetune.gate=better")
    assert refused.returncode == 3
    assert "maskfleet: the gate refused the new weights, kept as" in refused.stderr
    record = json.loads(refused.stdout)
    assert record["classes"][0]["dice"]["low"] <= record["dice"] <= record["classes"][0]["dice"]["high"]


def test_finetune_without_pairs_is_exit_2(images, tmp_path, weights_file):
    job = tmp_path / "job.toml"
    job.write_text(f'input = "{images}"\noutput = "{tmp_path}/out"\nweights = "{weights_file}"\n')
    refused = maskfleet("finetune", job)
    assert (refused.returncode, "set finetune.images and finetune.masks" in refused.stderr) == (2, True)


@pytest.mark.parametrize("command", ["finetune", "run"])
def test_several_workers_train_on_the_cluster_that_is_named(tmp_path, command):
    job = training_job(tmp_path)
    refused = maskfleet(command, job, "--address", "127.0.0.1:1", "--set", "finetune.workers=2")
    assert (refused.returncode, "no Ray at 127.0.0.1:1" in refused.stderr) == (1, True)


def test_a_training_that_is_killed_ends_with_the_same_bytes(tmp_path):
    from maskfleet.jobs.job.schema import Job
    from maskfleet.jobs.training.finetune import finetune

    job = training_job(tmp_path / "killed")
    for step in ("3", "7"):
        command = [sys.executable, str(ROOT / "tests/faults/finetuning.py"), str(job), step]
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=200, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    seen = []
    outcome = finetune(Job.load(job), progress=lambda moment: seen.append(moment.step.number))
    assert seen == [7, 8, 9]  # the newest checkpoint is of step 6
    whole = finetune(Job.load(training_job(tmp_path / "whole")))
    assert Path(outcome.weights).read_bytes() == Path(whole.weights).read_bytes()
