import os
from datetime import date

import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}


def test_local_paths_become_absolute_and_names_stay():
    job = Job.of({"input": "a/*.png", "output": "s3://b/c", "weights": "nuclei"})
    assert (job.input, job.output, job.weights) == (os.path.abspath("a/*.png"), "s3://b/c", ("nuclei",))
    assert Job.of(GOOD | {"weights": "w.safetensors"}).weights == (os.path.abspath("w.safetensors"),)


def test_a_url_with_credentials_is_refused():
    with pytest.raises(JobError, match="must not contain a user name and password"):
        Job.of(GOOD | {"input": "s3://id:secret@bucket/x"})


def test_date_and_name_are_filled_in():
    table = {"input": "s3://b/{date}/x{no}", "output": "s3://b/out/{name}/{date}", "weights": "nuclei", "name": "n"}
    job = Job.of(table, day=date(2026, 11, 1))
    assert (job.input, job.output) == ("s3://b/2026-11-01/x{no}", "s3://b/out/n/2026-11-01")
