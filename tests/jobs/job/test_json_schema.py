"""The JSON Schema says what the job file is: it accepts what a job accepts, and names what it refuses."""

import tomllib

import jsonschema
import pytest
from docs.pages import PAGES, blocks

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.json_schema import json_schema
from maskfleet.jobs.job.keys import names
from maskfleet.jobs.job.reference import reference
from maskfleet.jobs.job.schema import Job

REQUIRED = {"input": "in", "output": "out", "weights": "nuclei"}


@pytest.fixture(scope="module")
def checker():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_every_key_has_its_meaning():
    schema = json_schema()
    described = {}

    def describe(table, prefix):
        for name, value in table["properties"].items():
            if "$ref" in value:
                describe(schema["$defs"][value["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            else:
                described[prefix + name] = value.get("description")

    describe(schema, "")
    assert described == {f"{key.section}.{key.name}".lstrip("."): key.meaning for key in reference()}
    assert set(described) == set(names(Job))


@pytest.mark.parametrize("page", PAGES)
def test_every_job_in_the_documentation_is_accepted(page, checker):
    for block in blocks(page):
        if block.language == "toml":
            table = REQUIRED | tomllib.loads(block.text, parse_float=float)
            if "since" in (selection := table.get("select", {})):  # editors hand dates over as text
                selection["since"] = str(selection["since"])
            assert not [error.message for error in checker.iter_errors(table)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"inptu": "x"},
        {"run": {"shardsize": 4}},
        {"run": {"max_error_rate": 2}},
        {"run": {"deadline": "tomorrow"}},
        {"masks": {"format": "gif"}},
        {"cluster": {"workers": 0}},
        {"cluster": {"workers": {"min": 0, "max": 4}}},
        {"inference": {"precision": "fp8"}},
        {"select": {"only": "old"}},
        {"weights": 4},
        {"finetune": {"crop": 17}},
    ],
)
def test_what_a_job_refuses_the_schema_refuses(wrong, checker):
    assert list(checker.iter_errors(REQUIRED | wrong))
    with pytest.raises(JobError):
        Job.of(REQUIRED | wrong)


@pytest.mark.parametrize(
    "table", [{"weights": ["a.safetensors", "b.safetensors"]}, {"exclude": "*.thumb.jpg"}, {"select": {"only": "new"}}]
)
def test_one_or_several_values_are_accepted(table, checker):
    assert not list(checker.iter_errors(REQUIRED | table))
    assert Job.of(REQUIRED | table)


def test_a_required_key_is_missed(checker):
    assert list(checker.iter_errors({"input": "in"}))
