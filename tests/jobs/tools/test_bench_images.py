from pathlib import Path

import pytest
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.bench_images import bench_job


def job_of(weights_file, input_=""):
    job = Job.of({"input": input_ or "-", "output": "bench", "weights": weights_file}, ["inference.precision=fp32"])
    return job.model_copy(update={"input": input_})


def test_drawn_images_are_valid_and_deleted(weights_file):
    with bench_job(job_of(weights_file), 3, 48) as job:
        paths = [Path(record.url) for record in Source(job.input, output=job.output)]
        assert [Image.open(path).size for path in paths] == [(48, 48)] * 3
    assert not any(path.exists() for path in paths)


def test_the_input_is_limited(images, weights_file, tmp_path):
    with bench_job(job_of(weights_file, str(images)), 5, 48) as job:
        assert len(list(Source(job.input, output=job.output))) == 5
    assert len(list(images.rglob("*.*"))) == 24
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(JobError, match="no images in .*; correct 'input'"),
        bench_job(job_of(weights_file, str(tmp_path / "empty")), 5, 48),
    ):
        pass
