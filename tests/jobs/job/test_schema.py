import pytest
from pydantic import ValidationError

from maskfleet.jobs.job.schema import Job

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}


def test_a_job_survives_its_own_json():
    job = Job.of(GOOD, ["masks.values=[0, 255]", "run.shard_size=3"])
    assert Job.of(job.model_dump(mode="json", exclude_none=True)) == job


def test_a_job_is_frozen():
    job = Job.of(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        job.run.shard_size = 3
