import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}


def test_a_job_file_with_overrides(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('input = "a"\noutput = "s3://b/c"\nweights = "w"\n[run]\nshard_size = 8\n')
    job = Job.load(path, ["run.max_error_rate=0.5", "masks.format=tar", "masks.values=[0, 7]", "output=elsewhere"])
    assert (job.run.shard_size, job.run.max_error_rate, job.masks.format, job.masks.values) == (8, 0.5, "tar", (0, 7))
    assert job.output == os.path.abspath("elsewhere")


@pytest.mark.parametrize(
    ("table", "sets", "message"),
    [
        ({}, [], "input is missing; state it in the job file or with --input"),
        (GOOD, ["inference.precision=fp8"], "inference.precision: Input should be 'auto', 'fp32'"),
        (GOOD, ["run.shard_size"], "does not have the form section.key=value"),
        (GOOD, ["input.x=1"], "input is not a section"),
    ],
)
def test_errors_name_the_key_and_the_remedy(table, sets, message):
    with pytest.raises(JobError, match=message) as error:
        Job.of(table, sets)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_missing_or_broken_file_is_a_job_error(tmp_path):
    with pytest.raises(JobError, match="job file .* does not exist"):
        Job.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("input = [")
    with pytest.raises(JobError, match="cannot be read"):
        Job.load(tmp_path / "bad.toml")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_override_gives_a_job_or_an_error_message(text):
    try:
        Job.of(GOOD, [text])
    except JobError as error:
        assert str(error)
