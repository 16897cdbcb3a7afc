"""Every key of a job with wrong types, wrong ranges and typos: generated from the model, so a new key is covered."""

import math
import re
from datetime import date

import pytest

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.keys import names
from maskfleet.jobs.job.reference import reference
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.values import toml

GOOD = {"input": "in", "output": "out", "weights": "nuclei"}
KEYS = list(names(Job))
EXAMPLES = {f"{entry.section}.{entry.name}".lstrip("."): entry.example for entry in reference()}
VALUES = [
    True, 0, -1, 5, 10**30, 0.5, -2.5, 1e300, math.nan, math.inf, "surprise!", "", " ", "a\nb", [], [1], [-1], ["x"],
    [[1]], [None], {}, {"x": 1}, {"min": 0}, {"min": 2, "max": 1}, date(2026, 11, 24),
]  # fmt: skip
FOREIGN = re.compile(
    r"Input should|should match|should have|String should|Value error|pydantic|instance of|unable to|valid (integer|"
    r"string|number|dict|tuple|list|bool|date)|\^|\[a-z|\\|Traceback|Errno|datetime\.|None|True|False|union|literal|tuple"
)


def refusal(table):
    """Return the message refusing a table, or None if it is accepted."""
    try:
        Job.of(table)
    except JobError as error:
        return str(error)
    return None


def with_value(key, value):
    *sections, name = key.split(".")
    table = value
    for part in reversed([*sections, name]):
        table = {part: table}
    return GOOD | table


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_is_refused_in_our_words(key):
    found = {toml(value): refusal(with_value(key, value)) for value in VALUES}
    refused = {value: message for value, message in found.items() if message}
    assert refused, "no value is wrong"
    for value, message in refused.items():
        assert "\n" not in message, message
        assert len(message) < 400, message
        assert not FOREIGN.search(message.replace(value, "")), message
        assert message.startswith(
            (f"{key} = ", f"{key}.", f"unknown key {key}.", f"[{key.rpartition('.')[0]}] ", f"[{key}] ")
        ), message
        assert re.search(
            r"; (did you mean|set|write|put|give|known)|such as |must be one of|must be a multiple of", message
        ), message


@pytest.mark.parametrize("key", KEYS)
def test_the_example_of_a_key_is_right(key):
    assert EXAMPLES[key], "Field(examples=[…]) is missing"
    pair = ["finetune.images=a", "finetune.masks=b"]  # these belong together
    job = Job.of(GOOD, [*pair, f"{key}={EXAMPLES[key]}"])
    assert job.model_dump() == Job.of(job.model_dump(mode="json", exclude_none=True)).model_dump()


@pytest.mark.parametrize("key", KEYS)
def test_a_typo_is_corrected(key):
    section, _, name = key.rpartition(".")
    for typo in {name + "s", name[:-2] + name[-1], name.upper(), name.replace("_", "-")} - {name}:
        wrong = f"{section}.{typo}".lstrip(".")
        message = refusal(with_value(wrong, 1))
        assert message == f"unknown key {wrong}; did you mean {key}?"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.shard_size=abc", 'run.shard_size = "abc": must be an integer ≥ 1 or "auto", such as 64'),
        ("run.deadline=tomorrow", 'run.deadline = "tomorrow": must be a number followed by s, m or h, such as "90m"'),
        (
            "cluster.workers=0",
            'cluster.workers = 0: must be an integer ≥ 1 or "auto" or {min, max}, such as 4',
        ),
        ("cluster.workers={min=0, max=1}", "cluster.workers.min = 0: must be an integer ≥ 1, such as 1"),
        ("cluster.workers={min=1}", "cluster.workers.max is missing: must be an integer ≥ 1, such as 64"),
        ("cluster.workers={min=2, max=1}", "[cluster.workers] min must not exceed max; set max to at least min"),
        ("cluster.workers={min=1, maxx=2}", "unknown key cluster.workers.maxx; did you mean cluster.workers.max?"),
        ("run.attempts=true", "run.attempts = true: must be an integer from 1 to 20, such as 3"),
        ("inference.scale=nan", "inference.scale = nan: must be a number > 0, ≤ 4, such as 1.0"),
        ("select.since=yesterday", 'select.since = "yesterday": must be a date or time, such as "2026-11-24"'),
    ],
)
def test_what_is_wrong_what_is_right_and_an_example(override, message):
    with pytest.raises(JobError) as error:
        Job.of(GOOD, [override])
    assert str(error.value) == message
