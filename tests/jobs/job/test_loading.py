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
        (GOOD, ["inference.precision=fp8"], 'inference.precision = "fp8": must be "auto" or "fp32" or'),
        (GOOD, ["run.shard_size"], "does not have the form section.key=value"),
        (GOOD, ["input.x=1"], "input is not a section"),
    ],
)
def test_errors_name_the_key_and_the_remedy(table, sets, message):
    with pytest.raises(JobError, match=message) as error:
        Job.of(table, sets)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.toml", None, "none.toml does not exist; write one, or give --input, --output and --weights"),
        ("bad.toml", b"input = [", "bad.toml, line 1: 'input = [' cannot be understood; write key = value, texts in"),
        (
            "bad.toml",
            b'name = "x"\ninput = images/\n',
            "bad.toml, line 2: 'input = images/' cannot be understood; write",
        ),
        ("bad.json", b'{"input": }', 'line 1: \'{"input": }\' cannot be understood; write "key": value, such as'),
        ("list.json", b"[1]", 'must hold one JSON object, such as {"input": "images/", …}'),
        (
            "cell.png",
            b"\x89PNG\xff",
            "cell.png is not a job file, which is UTF-8 text in TOML; to segment it, give --input",
        ),
        ("images", "folder", "is a folder, not a job file; give its job file, or --input"),
        ("loop.toml", "link", "cannot be read (Too many levels of symbolic links); check its permissions"),
    ],
)
def test_a_missing_or_broken_file_is_a_job_error(name, content, message, tmp_path):
    match content:
        case bytes():
            (tmp_path / name).write_bytes(content)
        case "folder":
            (tmp_path / name).mkdir()
        case "link":
            (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(JobError) as error:
        Job.load(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_override_gives_a_job_or_an_error_message(text):
    try:
        Job.of(GOOD, [text])
    except JobError as error:
        assert str(error)
