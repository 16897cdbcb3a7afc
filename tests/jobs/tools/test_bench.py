"""Benchmarks measure what they claim to; the figures themselves belong to tests/benchmarks."""

import pytest

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.tools import bench
from maskfleet.jobs.tools.bench_images import bench_job


def job_of(weights_file, input_=""):
    job = Job.of({"input": input_ or "-", "output": "bench", "weights": weights_file}, ["inference.precision=fp32"])
    return job.model_copy(update={"input": input_})


def test_a_summary_gives_medians():
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


def test_runs_are_compared_with_a_reference(weights_file):
    with bench_job(job_of(weights_file), 8, 32) as job:
        for found in (
            bench.end_to_end(job, InProcess, pairs=1, seconds=0.05),
            bench.without_network(job, InProcess, pairs=1),
        ):
            assert found["images"] == 8
            assert found["ratio"] == pytest.approx(found["images_per_second"] / found["reference_per_second"])
            assert found["stages"]["decode"]["busy_seconds"] > 0
            assert found["limit"]
