"""A few decoded images of a job."""

import os

import numpy as np
import pytest
from conftest import draw_images
from PIL import Image

from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network import sample as module
from maskfleet.jobs.network.sample import limits_of, sample


def job_of(folder, *sets):
    return Job.of({"input": str(folder), "output": str(folder.parent / "out"), "weights": "nuclei"}, sets)


def records_of(job):
    return list(Source(job.input, output=job.output))


def test_images_are_decoded_for_the_network(tmp_path):
    job = job_of(draw_images(tmp_path / "in", 8), "inference.scale=0.5")
    records = records_of(job)
    for channels in (1, 3):
        found = sample(job, records, limits_of(job, channels=channels, min_side=16))
        assert [example.record for example in found] == records
        for example in found:
            with open(example.record.url, "rb") as file:
                expected, *_ = decode(file.read(), channels=channels, scale=0.5)
            np.testing.assert_array_equal(example.pixels, expected)
            assert example.failure is None


def test_a_larger_image_gives_its_corner(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (900, 800, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in/a.png")
    job = job_of(tmp_path / "in")
    (example,) = sample(job, records_of(job), limits_of(job, channels=3, min_side=16))
    np.testing.assert_array_equal(example.pixels, pixels[:768, :768])


def test_a_failed_image_states_the_reason_in_its_place(tmp_path):
    folder = draw_images(tmp_path / "in", 2)
    (folder / "b.png").write_bytes(b"")
    (folder / "c.png").write_bytes(b"gone")
    job = job_of(folder)
    records = records_of(job)
    os.unlink(folder / "c.png")
    found = {example.record.key: example for example in sample(job, records, limits_of(job, channels=3, min_side=16))}
    assert {key: example.failure.error_class for key, example in found.items() if example.failure} == {
        "b.png": "empty",
        "c.png": "missing",
    }
    assert found["b.png"].pixels is None


def test_one_of_the_images_read_in_rows_is_sampled(tmp_path, monkeypatch):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 70, 3), np.uint8)
    for name, each in zip("ab", pixels, strict=True):
        Image.fromarray(each).save(tmp_path / f"in/{name}.tif")
    monkeypatch.setattr(module, "STREAM_BYTES", 100)
    job = job_of(tmp_path / "in")
    first, second = sample(job, records_of(job), limits_of(job, channels=3, min_side=16))
    np.testing.assert_array_equal(first.pixels, pixels[0])
    assert second[1:] == (None, None)  # too large, and no fault
    Image.fromarray(pixels[0]).save(tmp_path / "in/a.tif", save_all=True, append_images=[Image.fromarray(pixels[1])])
    first, _ = sample(job, records_of(job), limits_of(job, channels=3, min_side=16))
    assert (first.pixels, first.failure.error_class) == (None, "several_pages")


def test_limits_follow_the_job():
    job = Job.of(
        {"input": "a", "output": "b", "weights": "nuclei"},
        ["inference.scale=0.5", "inference.orientation=upright", "run.max_image_pixels=77", "run.decode_seconds=3"],
    )
    limits = limits_of(job, channels=5, min_side=16)
    assert (limits.channels, limits.scale, limits.upright, limits.max_pixels, limits.seconds) == (5, 0.5, True, 77, 3)
    assert limits.min_side == 16
    assert limits.memory == job.run.decode_memory
