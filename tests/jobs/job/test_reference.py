import tomllib

from maskfleet.jobs.job.keys import names
from maskfleet.jobs.job.reference import markdown, reference
from maskfleet.jobs.job.schema import Job


def test_every_key_has_an_entry_with_a_meaning():
    keys = list(reference())
    assert [f"{key.section}.{key.name}".lstrip(".") for key in keys] == list(names(Job))
    assert not [key.name for key in keys if not key.meaning.endswith((".", '".'))]


def test_defaults_are_toml_and_give_the_same_job():
    stated = "\n".join(
        f"{key.section}.{key.name} = {key.default}" for key in reference() if key.section and key.default
    )
    required = {"input": "in", "output": "out", "weights": "nuclei"}
    assert Job.of(required | tomllib.loads(stated)) == Job.of(required)


def test_values_are_described_by_type_and_bounds():
    values = {f"{key.section}.{key.name}": key.values for key in reference()}
    assert values["inference.scale"] == "number > 0, ≤ 4"
    assert values["cluster.workers"] == 'integer ≥ 1 or "auto" or {min, max}'
    assert values["masks.values"] == "list of integers or [integer, integer, integer]"


def test_the_markdown_has_a_row_for_every_key():
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(names(Job)))
    assert '| `shard_size` | integer ≥ 1 or "auto" | `"auto"` | Images per shard,' in markdown()
