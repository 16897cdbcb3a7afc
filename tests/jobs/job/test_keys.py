import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.keys import names, refuse_unknown
from maskfleet.jobs.job.schema import Job


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"run": {"shard_sise": 3}}, r"unknown key run.shard_sise; did you mean run.shard_size\?"),
        ({"precision": "fp32"}, r"unknown key precision; did you mean inference.precision\?"),
        ({"zzz": 1}, "unknown key zzz; known keys are input, column, exclude, pages, output"),
        ({"aws_secret_access_key": "x"}, "looks like a secret"),
        ({"cluster": {"token": "x"}}, "cluster.token looks like a secret"),
        ({"masks": "png"}, r"masks is a section; write \[masks\]"),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(table, message):
    with pytest.raises(JobError, match=message) as error:
        refuse_unknown(Job, table)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_names_include_the_section():
    assert {"input", "run.shard_size", "schedule.cron"} <= set(names(Job))
    assert "run" not in set(names(Job))
