"""`show`: what is drawn of an output, and what is said where something is missing."""

import shutil

import numpy as np
import pytest
from conftest import draw_images
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs import input_images
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.pictures.show import failed, least_confident, show
from maskfleet.jobs.run.execute import run


def job_of(folder, weights_file, *sets):
    table = {"input": str(folder / "in"), "output": str(folder / "out"), "weights": weights_file}
    return Job.of(table, ["run.shard_size=3", "run.max_error_rate=1", "cluster.threads=1", *sets])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_file):
    """Input and output of two runs: of 6 images, 3 broken ones and a tiny one, and of a new image."""
    folder = tmp_path_factory.mktemp("show")
    images = draw_images(folder / "in", 6)
    for name in ("bad-1.png", "bad-2.png"):
        (images / name).write_bytes(b"no image")
    (images / "empty.png").write_bytes(b"")
    Image.new("RGB", (8, 8), (250, 0, 0)).save(images / "tiny.png")
    run(job_of(folder, weights_file))
    Image.effect_noise((300, 40), 90).convert("RGB").save(images / "new.png")
    run(job_of(folder, weights_file))
    return folder


@pytest.fixture
def out(folder):
    return str(folder / "out")


def colours_of(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


def test_an_image_its_mask_and_the_overlay(folder, out):
    picture = show(out, "image-001.png", size=48)
    (line,) = picture.lines
    assert line.startswith("part-1/image-001.png: confidence 0.5")
    assert "class 1: " in line
    assert not picture.notices
    assert picture.image.width == max(3 * 36 + 4 * 12, 360)
    wide = show(out, "new.png", size=300).image
    assert wide.height > 3 * 40


def test_an_image_that_is_gone_leaves_its_mask(folder, tmp_path, out):
    shutil.copytree(folder, tmp_path / "copy")
    (folder / "in/part-1/image-001.png").rename(tmp_path / "moved")
    try:
        picture = show(out, "image-001.png", size=48)
        (notice,) = picture.notices
        assert notice.startswith("the mask alone: ")
        assert notice.endswith("image-001.png no longer exists")
        sheet = least_confident(out, 7)
        assert len(sheet.lines) == 7
    finally:
        (tmp_path / "moved").rename(folder / "in/part-1/image-001.png")


def test_an_image_larger_than_memory_is_read_in_rows(out, monkeypatch):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    whole = {key: show(out, key, size=20).image.tobytes() for key in ("image-001.png", "new.png")}
    monkeypatch.setattr(input_images, "STREAM_BYTES", 10)
    monkeypatch.setattr(input_images, "_ROWS", 7)
    for key, picture in whole.items():
        assert show(out, key, size=20).image.tobytes() == picture


def test_a_failed_image_is_shown_with_its_reason_or_named(out):
    picture = show(out, "tiny.png")
    assert picture.lines[0].startswith("tiny.png: no mask, decode failed: 8×8 px")
    assert (250, 0, 0) in colours_of(picture.image)
    with pytest.raises(JobError, match=r"empty.png has no mask \(decode failed: the file is empty.* cannot be shown"):
        show(out, "empty.png")


def test_the_least_confident_come_first(out):
    sheet = least_confident(out, 3)
    rows = open_output(out).rows(["key", "status", "mean_confidence"]).to_pylist()
    done = sorted((row["mean_confidence"], row["key"]) for row in rows if row["status"] == "ok")
    assert [line.split(":")[0] for line in sheet.lines] == [key for _, key in done[:3]]
    assert len(least_confident(out, 100).lines) == 7


def test_every_class_of_failures_is_represented(out):
    sheet = failed(out, 3)
    assert sheet.lines[-1] == f"3 of 4 failed images in {out}"
    assert {line.split(": ")[1] for line in sheet.lines[:-1]} == {"unidentified", "empty", "too_small"}
    assert len(failed(out, 24).lines) == 5
    assert (250, 0, 0) in colours_of(sheet.image)


def test_one_run(out):
    second, first = (entry.id for entry in open_output(out).runs)
    assert failed(out, 9, run_id=second) is None
    assert len(failed(out, 9, run_id=first).lines) == 5
    assert [line.split(":")[0] for line in least_confident(out, 9, run_id=second).lines] == ["new.png"]
    assert show(out, "image-001.png", run_id=first).lines
    with pytest.raises(JobError, match="no image key ends with 'image-001.png'"):
        show(out, "image-001.png", run_id=second)


def test_what_is_not_there_is_said(tmp_path, out):
    (tmp_path / "no").mkdir()
    for draw in (
        lambda place: show(place, "a"),
        lambda place: failed(place, 3),
        lambda place: least_confident(place, 3),
    ):
        for place in (tmp_path / "no", tmp_path / "absent"):
            with pytest.raises(JobError, match="there is no run in .*; correct the path"):
                draw(str(place))
    with pytest.raises(JobError, match="no image key ends with 'nothing.png'"):
        show(out, "nothing.png")
    with pytest.raises(JobError, match="there is no run xyz in .*; maskfleet list .* shows its runs"):
        show(out, "tiny.png", run_id="xyz")
    with pytest.raises(JobError, match="there is no run xyz in"):
        failed(out, 3, run_id="xyz")


def test_16_bits_and_bands_are_stretched(tmp_path):
    from conftest import seeded

    from maskfleet.unet import weights

    (tmp_path / "in").mkdir()
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(3, n_channels=5)))
    bands = np.random.default_rng(0).integers(0, 30, (40, 40, 5), np.uint8)
    np.save(tmp_path / "in/five.npy", bands)
    Image.fromarray(bands[..., 0].astype(np.uint16) * 30).save(tmp_path / "in/deep.png")  # fails: one band
    run(job_of(tmp_path, str(tmp_path / "w.safetensors")))
    for key in ("five.npy", "deep.png"):
        picture = show(str(tmp_path / "out"), key, size=40)
        assert not picture.notices
        shown = np.asarray(picture.image)[60:, :50]
        assert shown.max() > 240
