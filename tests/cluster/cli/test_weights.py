"""finetune, convert and inspect."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, environment, maskfleet
from conftest import draw_pairs, seeded


def test_convert_writes_safetensors_and_refuses_other_files(tmp_path):
    import torch

    torch.save({**seeded(bilinear=True).state_dict(), "mask_values": [0, 1]}, tmp_path / "m.pth")
    done = maskfleet("convert", tmp_path / "m.pth", tmp_path / "m.safetensors")
    assert "3 channels, 2 classes, no exact tiles: it up-samples bilinearly with aligned corners" in done.stdout
    (tmp_path / "bad.pth").write_bytes(b"hello")
    bad = maskfleet("convert", tmp_path / "bad.pth", tmp_path / "x.safetensors")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_inspect_shows_what_weights_hold(tmp_path):
    found = json.loads(maskfleet("inspect", "nuclei", "--json").stdout)
    assert (found["kind"], found["channels"], found["classes"], found["grid"], found["halo"]) == ("unet", 3, 2, 16, 96)
    assert found["parameters"] > 10_000
    assert found["multiply_adds_per_pixel"] > 1000
    assert re.search(r"^halo +96$", maskfleet("inspect", "nuclei").stdout, re.MULTILINE)
    missing = maskfleet("inspect", tmp_path / "none.safetensors")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


def training_job(folder, **settings):
    """Job file for a tiny training."""
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


@pytest.mark.slow
def test_finetune_and_evaluate_print_the_same_scores(tmp_path):
    job = training_job(tmp_path)
    planned = json.loads(maskfleet("plan", job, "--json").stdout)
    assert [warning for warning in planned["warnings"] if "the new weights are not trained yet" in warning]
    made = maskfleet("finetune", job)
    assert made.returncode == 0, made.stderr
    assert re.search(r"step 9/9, loss \d\.\d{4}, Dice \d\.\d{4}, \d+\.\d images/s, \d\.\d GiB", made.stderr)
    base, new, report, gate, weights_line = made.stdout.splitlines()
    assert Path(report.removeprefix("report").strip()).read_text().startswith("<!doctype html>")
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
def test_several_workers_train_on_the_given_cluster(tmp_path, command):
    job = training_job(tmp_path)
    refused = maskfleet(command, job, "--address", "127.0.0.1:1", "--set", "finetune.workers=2")
    assert (refused.returncode, "no Ray at 127.0.0.1:1" in refused.stderr) == (1, True)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(tmp_path):
    from maskfleet.jobs.job.schema import Job
    from maskfleet.jobs.training.finetune import finetune

    job = training_job(tmp_path / "killed")
    for step in ("3", "7"):
        command = [sys.executable, str(ROOT / "tests/faults/finetuning.py"), str(job), step]
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=200, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    seen = []
    outcome = finetune(Job.load(job), on_step=lambda moment: seen.append(moment.step.number))
    assert seen == [7, 8, 9]  # the newest checkpoint is of step 6
    whole = finetune(Job.load(training_job(tmp_path / "whole")))
    assert Path(outcome.weights).read_bytes() == Path(whole.weights).read_bytes()
