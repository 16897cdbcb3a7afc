"""Every warning about masks, and none for a job without problems."""

import json

import numpy as np
import pytest
from conftest import draw_images, seeded
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import load_weights
from maskfleet.jobs.planning.mask_checks import refuse_other_channels, warnings
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.run.execute import run
from maskfleet.unet import weights
from maskfleet.unet.checkpoints.pytorch_unet import ORIGIN


@pytest.fixture
def diagnosed(tmp_path):
    def diagnose(model, *sets, mask_values=None, metadata=None, normalize=None):
        if not (tmp_path / "in").exists():
            draw_images(tmp_path / "in", 8)
        path = tmp_path / "w.safetensors"
        path.write_bytes(weights.save(model, mask_values=mask_values, metadata=metadata, normalize=normalize))
        table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": str(path)}
        job = Job.of(table, ["inference.precision=fp32", *sets])
        return warnings(job, load_weights(job), start_plan(job, "f").manifest, threads=1)

    return diagnose


def sure(n_channels=3):
    """Return a network that is not guessing."""
    model = seeded(n_channels=n_channels)
    model.outc.conv.weight *= 100
    model.outc.conv.bias *= 100
    return model


def shifted(by, n_classes=2):
    """Return a network that predicts one class everywhere."""
    model = seeded(n_classes)
    model.outc.conv.bias[-1] += by
    return model


def test_a_job_without_problems_has_no_warnings(diagnosed):
    assert diagnosed(sure()) == []
    assert diagnosed(sure(), mask_values=(0, 255), metadata={"scale": "1"}) == []


def test_a_scale_other_than_in_training(diagnosed):
    (warning,) = diagnosed(sure(), metadata={"scale": "0.5"})
    assert "trained at scale 0.5, but inference.scale is 1: objects appear 2 times as large" in warning
    assert diagnosed(sure(), "inference.scale=0.5", metadata={"scale": "0.5"}) == []


def test_a_scale_other_than_in_fine_tuning(diagnosed):
    (warning,) = diagnosed(sure(), metadata={"recipe": json.dumps({"scale": 0.5})})
    assert "trained at scale 0.5, but inference.scale is 1" in warning
    assert diagnosed(sure(), metadata={"recipe": "{}"}) == []


def test_a_checkpoint_without_a_recorded_scale(diagnosed):
    (warning,) = diagnosed(sure(), metadata={"origin": ORIGIN})
    assert "Pytorch-UNet trains and predicts at 0.5 by default, but inference.scale is 1" in warning


@pytest.mark.parametrize("values", [(0, 1), ((0, 0, 0), (0, 1, 2))])
def test_mask_values_that_look_black(diagnosed, values):
    (warning,) = diagnosed(sure(), mask_values=values)
    assert "look alike, usually all black; to make masks visible, set masks.values, such as [0, 255]" in warning
    assert diagnosed(sure(), "masks.values=[0, 255]", mask_values=values) == []
    assert diagnosed(sure(), mask_values=((0, 0, 0), (0, 0, 255))) == []


def test_images_that_would_fail(diagnosed, tmp_path):
    draw_images(tmp_path / "in", 6)
    (tmp_path / "in/bad.png").write_bytes(b"")
    (warning,) = diagnosed(sure())
    assert warning.startswith("1 of 7 sampled images would fail, the first being bad.png: the file is empty")


def test_an_image_read_in_rows_does_not_fail(diagnosed, monkeypatch):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    from maskfleet.jobs.network import sample

    monkeypatch.setattr(sample, "STREAM_BYTES", 100)
    assert diagnosed(sure()) == []


def test_colours_for_a_network_with_one_channel(diagnosed, tmp_path):
    (warning,) = diagnosed(sure(n_channels=1))
    assert "take one channel, but 6 of 8 sampled images have colours; the network sees only their luminance" in warning
    for path in list((tmp_path / "in").rglob("image*")):
        Image.open(path).convert("L").convert("RGB").save(path)
    assert diagnosed(sure(n_channels=1)) == []


def test_masks_with_only_background(diagnosed):
    (warning,) = diagnosed(shifted(-100))
    assert warning.startswith("100.00% of the sampled pixels are background (mean confidence 1.00); likely causes: ")
    assert "images unlike the training images, training with mean and standard deviation" in warning
    assert "order of classes" not in warning
    assert "inference.threshold" not in warning


def test_weights_that_guess(diagnosed):
    (warning,) = diagnosed(seeded())
    assert warning.startswith(
        "the network is hardly surer than chance in 8 sampled images (mean confidence 0.50 with 2"
    )
    assert "untrained weights" in warning


def test_masks_with_only_one_class(diagnosed):
    (warning,) = diagnosed(shifted(100, n_classes=3), "masks.values=[0, 120, 240]")
    assert "are class 2 " in warning
    assert "a different order of classes" in warning


def test_inapplicable_causes_are_not_named(diagnosed):
    normalize = ((0.5,) * 3, (0.25,) * 3)
    (warning,) = diagnosed(shifted(-1000), normalize=normalize)
    assert "standard deviation" not in warning
    (warning,) = diagnosed(shifted(-1000, n_classes=1))
    assert "inference.threshold" in warning
    (warning,) = diagnosed(shifted(-1000), "inference.threshold=0.9")
    assert "inference.threshold" in warning


def test_a_network_with_non_finite_output(diagnosed):
    model = seeded()
    model.up4.conv.double_conv[4].weight[:] = 1e5
    model.outc.conv.weight[:] = 3e38
    assert "the network returns NaN or infinity for 8 of 8 sampled images; use other weights" in diagnosed(model)[0]


def test_channels_missing_from_every_image_are_refused(tmp_path):
    draw_images(tmp_path / "in", 3)  # a JPEG, a PNG, a grey TIFF: none has four channels
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(n_channels=4)))
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": str(tmp_path / "w.safetensors")}
    job = Job.of(table, ["cluster.threads=1"])
    with pytest.raises(JobError, match="need 4 channels, but no image of a sample has them .*use other weights"):
        refuse_other_channels(job, load_weights(job), start_plan(job, "f").manifest)
    np.save(tmp_path / "in/four.npy", np.zeros((40, 40, 4), np.uint8))
    report = run(job)
    assert (report.ok, report.failed) == (1, 3)  # the other three become rows with a reason


def test_the_plan_command_shows_warnings(tmp_path, capsys):
    from maskfleet.cluster.cli.main import app

    draw_images(tmp_path / "in", 4)
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(), metadata={"scale": "0.5"}))
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", tmp_path / "w.safetensors"]
    app(["plan", *map(str, arguments), "--json"], standalone_mode=False)
    assert "trained at scale 0.5" in json.loads(capsys.readouterr().out)["warnings"][0]
