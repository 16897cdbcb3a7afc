"""The public interface: `import maskfleet`."""

import asyncio
import threading

import numpy as np
import pytest
from PIL import Image

import maskfleet


def job_of(images, output, weights_file):
    return maskfleet.Job.of({"input": str(images), "output": str(output), "weights": weights_file})


def test_every_public_name_is_there_and_documented():
    for name in maskfleet.__all__:
        assert getattr(maskfleet, name).__doc__, name
        assert name in dir(maskfleet)
    with pytest.raises(AttributeError, match="no attribute 'Jobb'"):
        maskfleet.Jobb  # noqa: B018


def test_a_job_from_plan_to_overlay(images, tmp_path, weights_file):
    (images / "notes.txt").write_text("no image")
    job = job_of(images, tmp_path / "out", weights_file)
    plan = maskfleet.plan(job)
    assert (plan.images, plan.listed, plan.reasons, plan.left_alone) == (24, 24, {"new": 24}, {".txt": 1})
    assert plan.table.column_names == ["key", "url", "size", "etag", "why"]
    assert plan.bytes == sum(plan.table["size"].to_pylist())
    assert not (tmp_path / "out").exists()
    summary = maskfleet.run(job)
    assert (summary.ok, summary.exit_code, summary.shards) == (24, 0, plan.shards)
    output = maskfleet.open_output(job.output)
    rows = output.rows().to_pylist()
    assert [row["key"] for row in rows] == plan.table["key"].to_pylist()
    for row in rows[:4]:
        mask = output.mask(row["key"])
        assert mask.shape == (row["height"], row["width"])
        assert output.overlay(row["key"]).size == mask.shape[::-1]
    assert output.failures().num_rows == 0
    assert [run.id for run in output.runs] == [summary.run_id]
    assert maskfleet.plan(job).images == 0


def test_the_segmenter_of_a_job_gives_the_jobs_masks(images, tmp_path, weights_file):
    job = job_of(images, tmp_path / "out", weights_file)
    maskfleet.run(job)
    key = "part-1/image-001.png"
    pixels = np.asarray(Image.open(images / key))
    (result,) = maskfleet.Segmenter.load(weights_file)([pixels])
    assert (result.classes * np.uint8(255) == maskfleet.open_output(job.output).mask(key)).all()


def test_a_run_works_in_a_running_event_loop_and_in_a_thread(images, tmp_path, weights_file):
    async def in_a_notebook():
        return maskfleet.run(job_of(images, tmp_path / "loop", weights_file))

    assert asyncio.run(in_a_notebook()).ok == 24
    found = []
    thread = threading.Thread(
        target=lambda: found.append(maskfleet.run(job_of(images, tmp_path / "thread", weights_file)))
    )
    thread.start()
    thread.join()
    assert found[0].ok == 24


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_works_in_a_running_event_loop(images, tmp_path, weights_file):
    async def in_a_notebook():
        return maskfleet.run(job_of(images, tmp_path / "out", weights_file), maskfleet.Fleet())

    assert asyncio.run(in_a_notebook()).ok == 24
