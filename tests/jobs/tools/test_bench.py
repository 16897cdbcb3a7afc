"""That figures are of what they say they are; how high they are is for tests/benchmarks."""

from pathlib import Path

import pytest
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.tools import bench


def job_of(weights_file, input_=""):
    job = Job.of({"input": input_ or "-", "output": "bench", "weights": weights_file}, ["inference.precision=fp32"])
    return job.model_copy(update={"input": input_})


def test_a_summary_is_of_medians():
    ratio = bench.Ratio()
    for pair in ((1.0, 2.0), (3.0, 3.0), (9.0, 10.0)):
        ratio.add(*pair)
    assert ratio.summary == {
        "images_per_second": 3.0,
        "reference_per_second": 3.0,
        "ratio": 0.9,
        "ratio_least": 0.5,
        "ratio_most": 1.0,
        "pairs": 3,
    }


def test_drawn_images_are_images_and_go_again(weights_file):
    with bench.prepared(job_of(weights_file), 3, 48) as job:
        paths = [Path(record.url) for record in Source(job.input, output=job.output)]
        assert [Image.open(path).size for path in paths] == [(48, 48)] * 3
    assert not any(path.exists() for path in paths)


def test_so_many_of_the_images_given(images, weights_file, tmp_path):
    with bench.prepared(job_of(weights_file, str(images)), 5, 48) as job:
        assert len(list(Source(job.input, output=job.output))) == 5
    assert len(list(images.rglob("*.*"))) == 24
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(JobError, match="no image in .*; correct 'input'"),
        bench.prepared(job_of(weights_file, str(tmp_path / "empty")), 5, 48),
    ):
        pass


def test_end_to_end_and_null(weights_file):
    with bench.prepared(job_of(weights_file), 8, 32) as job:
        for found in (
            bench.end_to_end(job, InProcess, pairs=1, seconds=0.05),
            bench.null(job, InProcess, pairs=1),
        ):
            assert found["images"] == 8
            assert found["ratio"] == pytest.approx(found["images_per_second"] / found["reference_per_second"])
            assert found["stages"]["decode"]["busy_seconds"] > 0
            assert found["limit"]


def test_storage_is_left_as_it_was(tmp_path):
    found = bench.storage(str(tmp_path), objects=3, size=100)
    assert (found["objects"], found["bytes"], found["retries"]) == (3, 100, 0)
    assert found["put_per_second"] > 0
    assert found["get_per_second"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
def test_a_bucket_is_left_as_it_was(bucket):
    from maskfleet.jobs.storage.schemes import open_storage

    assert bench.storage(bucket, objects=3, size=100)["get_cpu_ms"] > 0
    assert not list(open_storage(bucket).walk())
