"""Each warning of the doctor, and none where nothing is wrong."""

import json

import numpy as np
import pytest
from conftest import draw_images, seeded
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import load_weights
from maskfleet.jobs.planning.mask_checks import refuse_other_channels, warnings
from maskfleet.jobs.run.begin import plan
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights


@pytest.fixture
def diagnosed(tmp_path):
    def diagnose(model, *sets, mask_values=None, metadata=None, normalize=None):
        if not (tmp_path / "in").exists():
            draw_images(tmp_path / "in", 8)
        path = tmp_path / "w.safetensors"
        path.write_bytes(weights.save(model, mask_values=mask_values, metadata=metadata, normalize=normalize))
        table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": str(path)}
        job = Job.of(table, ["inference.precision=fp32", *sets])
        return warnings(job, load_weights(job), plan(job, "f").manifest, threads=1)

    return diagnose


def shifted(by, n_classes=2):
    """A network that sees one class everywhere."""
    model = seeded(n_classes)
    model.outc.conv.bias[-1] += by
    return model


def test_nothing_wrong_nothing_said(diagnosed):
    assert diagnosed(seeded()) == []
    assert diagnosed(seeded(), mask_values=(0, 255), metadata={"scale": "1"}) == []


def test_another_scale_than_the_training(diagnosed):
    (warning,) = diagnosed(seeded(), metadata={"scale": "0.5"})
    assert "trained at scale 0.5 and inference.scale is 1; objects appear 2 times as large" in warning
    assert diagnosed(seeded(), "inference.scale=0.5", metadata={"scale": "0.5"}) == []


def test_a_checkpoint_that_does_not_say_its_scale(diagnosed):
    (warning,) = diagnosed(seeded(), metadata={"origin": weights.CHECKPOINT})
    assert "Pytorch-UNet's default for training and prediction is 0.5; inference.scale is 1" in warning


@pytest.mark.parametrize("values", [(0, 1), ((0, 0, 0), (0, 1, 2))])
def test_values_that_look_all_black(diagnosed, values):
    (warning,) = diagnosed(seeded(), mask_values=values)
    assert "look alike, often all black; set masks.values, such as [0, 255]" in warning
    assert diagnosed(seeded(), "masks.values=[0, 255]", mask_values=values) == []
    assert diagnosed(seeded(), mask_values=((0, 0, 0), (0, 0, 255))) == []


def test_files_that_would_fail(diagnosed, tmp_path):
    draw_images(tmp_path / "in", 6)
    (tmp_path / "in/bad.png").write_bytes(b"")
    (warning,) = diagnosed(seeded())
    assert warning.startswith("1 of 7 images of a sample would fail; the first is bad.png: the file is empty")


def test_an_image_that_is_read_in_rows_does_not_fail(diagnosed, monkeypatch):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    from maskfleet.jobs.network import sample

    monkeypatch.setattr(sample, "STREAM_BYTES", 100)
    assert diagnosed(seeded()) == []


def test_colours_for_a_network_of_one_channel(diagnosed, tmp_path):
    (warning,) = diagnosed(seeded(n_channels=1))
    assert "take one channel and 6 of 8 images have colours, of which the network sees the luma alone" in warning
    for path in list((tmp_path / "in").rglob("image*")):
        Image.open(path).convert("L").convert("RGB").save(path)
    assert diagnosed(seeded(n_channels=1)) == []


def test_masks_of_background_alone(diagnosed):
    (warning,) = diagnosed(shifted(-100))
    assert warning.startswith("100.00% of a sample's pixels are background (mean confidence 1.00); likely causes: ")
    assert "images unlike those of the training, training with mean and standard deviation" in warning
    assert "class order" not in warning
    assert "inference.threshold" not in warning


def test_masks_of_one_class_alone(diagnosed):
    (warning,) = diagnosed(shifted(100, n_classes=3), "masks.values=[0, 120, 240]")
    assert "are class 2 " in warning
    assert "a class order other than thought" in warning


def test_causes_that_do_not_apply_are_not_named(diagnosed):
    normalize = ((0.5,) * 3, (0.25,) * 3)
    (warning,) = diagnosed(shifted(-1000), normalize=normalize)
    assert "standard deviation" not in warning
    (warning,) = diagnosed(shifted(-1000, n_classes=1))
    assert "inference.threshold" in warning
    (warning,) = diagnosed(shifted(-1000), "inference.threshold=0.9")
    assert "inference.threshold" in warning


def test_a_network_that_gives_what_is_no_number(diagnosed):
    model = seeded()
    model.up4.conv.double_conv[4].weight[:] = 1e5
    model.outc.conv.weight[:] = 3e38
    assert "not finite on 8 of 8 images; use other weights" in diagnosed(model)[0]


def test_channels_that_no_image_has_end_the_job(tmp_path):
    draw_images(tmp_path / "in", 3)  # a JPEG, a PNG, a grey TIFF: none has four channels
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(n_channels=4)))
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": str(tmp_path / "w.safetensors")}
    job = Job.of(table, ["cluster.threads=1"])
    with pytest.raises(JobError, match="take 4 channels and no image of a sample has them .*use other weights"):
        refuse_other_channels(job, load_weights(job), plan(job, "f").manifest)
    np.save(tmp_path / "in/four.npy", np.zeros((40, 40, 4), np.uint8))
    report = run(job)
    assert (report.ok, report.failed) == (1, 3)  # one has: the others are rows that say why


def test_the_command_shows_them(tmp_path, capsys):
    from maskfleet.cluster.cli.main import app

    draw_images(tmp_path / "in", 4)
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(), metadata={"scale": "0.5"}))
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", tmp_path / "w.safetensors"]
    app(["plan", *map(str, arguments), "--json"], standalone_mode=False)
    assert "trained at scale 0.5" in json.loads(capsys.readouterr().out)["warnings"][0]
