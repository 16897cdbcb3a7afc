"""The findings of runs: in run.json, right for resumed runs, and none where nothing is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import draw_images, seeded
from PIL import Image

from maskfleet import Job, UNet, run
from maskfleet.jobs.errors import Stopped
from maskfleet.jobs.ledger.runs import stored_runs
from maskfleet.jobs.ledger.statistics import table_of
from maskfleet.jobs.planning.findings import MaskSums, of_masks, of_values
from maskfleet.jobs.planning.run_findings import RunFindings
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.unet import weights


@pytest.fixture
def warned(tmp_path):
    """Run a job and return its warnings by check."""

    def warn(model=None, *sets, metadata=None, normalize=None, images=None, stopped=None):
        if images is None and not (tmp_path / "in").exists():
            draw_images(tmp_path / "in", 8)
        path = tmp_path / "w.safetensors"
        if model is not None:
            path.write_bytes(weights.save(model, metadata=metadata, normalize=normalize))
        table = {
            "input": str(images or tmp_path / "in"),
            "output": str(tmp_path / "out"),
            "weights": "nuclei" if model is None else str(path),
        }
        job = Job.of(table, ["inference.precision=fp32", "cluster.threads=1", "run.shard_size=2", *sets])
        summary = run(job, stopped=stopped)
        stored = json.loads((tmp_path / "out/runs" / summary.run_id / "run.json").read_text())["warnings"]
        assert stored == summary.to_json()["warnings"]
        assert [sorted(each) for each in stored] == [["check", "class", "images", "message", "share"]] * len(stored)
        return {each["check"]: each for each in stored}

    return warn


def sure(**arguments):
    model = seeded(**arguments)
    model.outc.conv.weight *= 100
    model.outc.conv.bias *= 100
    return model


def always(class_, n_classes=2):
    model = sure(n_classes=n_classes)
    model.outc.conv.bias[class_] += 10_000
    return model


def nuclei_images(nuclei, folder, count):
    folder.mkdir()
    for path in sorted((nuclei / "images").rglob("*.png"))[:: 342 // count][:count]:
        shutil.copy(path, folder / path.name)
    return folder


def test_a_run_without_problems_has_no_warnings(warned):
    assert warned(sure()) == {}
    assert warned(sure()) == {}  # nothing to do


def test_real_images_have_none(warned, nuclei, tmp_path):
    assert warned(None, images=nuclei_images(nuclei, tmp_path / "in", 5)) == {}


@pytest.mark.full
def test_all_real_images_have_none(warned, nuclei):
    assert warned(None, "run.shard_size=64", images=nuclei / "images") == {}


@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_random_weights(warned, n_classes):
    torch.manual_seed(n_classes)
    found = warned(UNet(3, n_classes, False, 4).eval().requires_grad_(False), "masks.format=rle")
    assert {"uncertain"} <= set(found) <= {"uncertain", "single_class"}
    assert found["uncertain"]["images"] == 8
    assert "hardly surer than chance in 8 images" in found["uncertain"]["message"]
    assert "untrained weights" in found["uncertain"]["message"]


@pytest.mark.parametrize(("class_", "name"), [(0, "background"), (1, "class 1")])
def test_one_class_everywhere(warned, class_, name):
    found = warned(always(class_))["single_class"]
    assert (found["class"], found["share"], found["images"]) == (class_, 1.0, 8)
    assert found["message"].startswith(f"100.00% of the pixels are {name} (mean confidence 1.00); likely causes: ")
    assert ("a different order of classes" in found["message"]) == bool(class_)


def test_the_wrong_scale(warned):
    found = warned(None, "inference.scale=0.5")
    assert "trained at scale 1, but inference.scale is 0.5" in found["scale"]["message"]
    assert found["scale"]["images"] == 8


def test_mask_values_that_look_black(warned):
    found = warned(sure(), "masks.values=[0, 1]")
    assert "the mask values 0, 1 look alike, usually all black" in found["mask_values"]["message"]
    assert warned(sure(), "masks.values=[0, 1]", "masks.format=rle") == {}


def test_colours_for_one_channel(warned):
    found = warned(sure(n_channels=1))["colours"]
    assert "the weights take one channel" in found["message"]
    assert 0 < found["images"] <= 4


def test_blank_images(warned, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 120, (40, 40), np.uint16)  # 12 bits stored in 16
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.tif")
    found = warned(sure())["blank"]
    assert (found["images"], found["share"]) == (3, 1.0)
    assert "3 of 3 images are blank to the network" in found["message"]


def test_a_resumed_run_warns_of_all_its_images(warned):
    calls = iter(range(100))
    with pytest.raises(Stopped):
        warned(always(1), stopped=lambda: next(calls) > 1)
    found = warned(always(1))["single_class"]
    assert found["images"] == 8


def test_failed_images_do_not_count(warned, tmp_path):
    draw_images(tmp_path / "in", 4)
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert warned(always(1), "run.max_error_rate=1")["single_class"]["images"] == 4
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert warned(always(1), "run.max_error_rate=1") == {}


def test_a_few_empty_masks_are_no_news_after_a_run_that_was_fine(warned, tmp_path):
    def night(images, run_id="99991231T000000.000-aaaaaa"):
        findings = RunFindings(job(), {"metadata": {}})
        findings.add(table_of([row(number) for number in range(images)]))
        fingerprint = next(stored_runs(storage)).fingerprint
        return [(found.check, found.class_) for found in findings.findings(storage, run_id, fingerprint)]

    storage = LocalStorage(str(tmp_path / "out"))
    assert warned(sure()) == {}
    assert night(3) == []
    assert night(20) == [("single_class", 0)]
    assert night(3, "00010101T000000.000-aaaaaa") == [("single_class", 0)]  # nothing came before
    shutil.rmtree(tmp_path / "out")
    assert "single_class" in warned(always(0))
    assert night(3) == [("single_class", 0)]


def row(number):
    names = ("url", "run_id", "fingerprint", "attempt", "worker")
    return {
        **dict.fromkeys(names, "x"), "key": str(number), "status": "ok", "class_pixels": [100, 0],
        "mean_confidence": 0.99, "mean_entropy": 0.01, "input_std": [0.1, 0.1, 0.1],
    }  # fmt: skip


def test_numbers_about_masks_add_up():
    sums, other = MaskSums(), MaskSums()
    columns = {
        "class_pixels": np.array([[10, 90], [50, 50], [100, 0]]),
        "confidence": np.array([0.9, 0.8, 0.7], np.float32),
        "entropy": np.array([0.1, 0.2, 0.3], np.float32),
        "input_std": np.array([[0.1], [0.0], [0.2]]),
    }
    sums.add(**columns)
    for row in range(3):
        other.add(**{name: column[row : row + 1] for name, column in columns.items()})
    assert (sums.images, sums.blank, sums.class_pixels.tolist()) == (3, 1, [160, 140])
    assert (sums.images, sums.blank, sums.class_pixels.tolist()) == (
        other.images,
        other.blank,
        other.class_pixels.tolist(),
    )
    assert sums.confidence == pytest.approx(2.4)
    assert list(of_masks(job(), sums, normalized=False, one_logit=False)) == []


def job(*sets):
    return Job.of({"input": "in", "output": "out", "weights": "nuclei"}, sets)


def test_values_of_formats_without_files_are_not_judged():
    for form, findings in (("png", 1), ("tar", 1), ("parquet", 1), ("rle", 0), ("none", 0)):
        assert len(list(of_values(job(f"masks.format={form}"), (0, 1)))) == findings
