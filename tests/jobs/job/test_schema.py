import os
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskfleet.jobs.errors import JobError, redacted
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
        (GOOD | {"run": {"shard_sise": 3}}, [], r"unknown key run.shard_sise; did you mean run.shard_size\?"),
        (GOOD | {"precision": "fp32"}, [], r"unknown key precision; did you mean inference.precision\?"),
        (GOOD | {"zzz": 1}, [], "unknown key zzz; known are input, column, output"),
        (GOOD, ["inference.precision=fp8"], "inference.precision: Input should be 'auto', 'fp32'"),
        (GOOD, ["run.max_error_rate=2"], "run.max_error_rate: .* less than or equal to 1"),
        (GOOD, ["run.shard_size=0"], "run.shard_size: must be at least 1"),
        (GOOD, ["masks.values=[0, 300]"], "masks.values: values must lie in 0 … 255"),
        (GOOD, ["masks.values=[1, 1]"], "masks.values: each class needs a value of its own"),
        (GOOD | {"aws_secret_access_key": "x"}, [], "looks like a secret"),
        (GOOD | {"cluster": {"token": "x"}}, [], "cluster.token looks like a secret"),
        (GOOD | {"input": "s3://id:secret@bucket/x"}, [], "must not hold a user name and password"),
        (GOOD | {"masks": "png"}, [], r"masks is a section; write \[masks\]"),
        (GOOD, ["run.shard_size"], "not of the form section.key=value"),
        (GOOD, ["input.x=1"], "input is no section"),
        (GOOD, ["finetune.workers=3"], "finetune: batch_size must be a multiple of workers"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(table, sets, message):
    with pytest.raises(JobError, match=message) as error:
        Job.of(table, sets)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_local_paths_are_made_absolute_and_names_are_not():
    job = Job.of({"input": "a/*.png", "output": "s3://b/c", "weights": "nuclei"})
    assert (job.input, job.output, job.weights) == (os.path.abspath("a/*.png"), "s3://b/c", ("nuclei",))
    assert Job.of(GOOD | {"weights": "w.safetensors"}).weights == (os.path.abspath("w.safetensors"),)


def test_a_missing_or_broken_file_is_a_job_error(tmp_path):
    with pytest.raises(JobError, match="there is no job file"):
        Job.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("input = [")
    with pytest.raises(JobError, match="cannot be read"):
        Job.load(tmp_path / "bad.toml")


def test_a_job_survives_its_own_json():
    job = Job.of(GOOD, ["masks.values=[0, 255]", "run.shard_size=3"])
    assert Job.of(job.model_dump(mode="json", exclude_none=True)) == job


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_override_is_a_job_or_a_sentence(text):
    try:
        Job.of(GOOD, [text])
    except JobError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    [
        "key AKIAABCDEFGHIJKLMNOP denied",
        "https://user:hunter22@host/path",
        "aws_secret_access_key=wJalrXUtnFEMIhunter22",
        "GET /x?X-Amz-Signature=hunter22hunter22&b=1",
        "{'Authorization': 'AWS4-HMAC-SHA256 hunter22'}",
        'password: "hunter22"',
    ],
)
def test_errors_carry_no_secrets(text):
    assert "hunter22" not in redacted(text)
    assert "AKIAABCDEFGHIJKLMNOP" not in str(JobError(text))


def test_a_date_and_a_name_are_filled_in():
    table = {"input": "s3://b/{date}/x{no}", "output": "s3://b/out/{name}/{date}", "weights": "nuclei", "name": "n"}
    job = Job.of(table, day=date(2026, 11, 1))
    assert (job.input, job.output) == ("s3://b/2026-11-01/x{no}", "s3://b/out/n/2026-11-01")


def test_a_selection_is_checked():
    table = {"input": "in", "output": "out", "weights": "nuclei"}
    job = Job.of(table, ['select.only="new"', 'select.since="2026-11-24"', "run.deadline=90m"])
    assert (job.select.only, job.select.since.isoformat()) == (("new",), "2026-11-24T00:00:00+00:00")
    assert job.run.deadline_seconds == 5400
    for wrong in ("select.only=old", "select.classes=bad", "select.limit=0", "run.deadline=6", "run.webhook=ftp://x"):
        with pytest.raises(JobError):
            Job.of(table, [wrong])
