"""The JSON Schema of the job file, for editors: names, values and meanings of all keys, read from the models."""

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from maskfleet.jobs.job.reference import docstrings
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.section import Section

FILE = "job.schema.json"
"""Usual name of the schema beside a job file."""

DIRECTIVE = f"#:schema ./{FILE}"
"""First line of a job file. Editors with taplo, such as Even Better TOML, then check and complete its keys."""

_ONE_OR_MORE = ("weights", "exclude", "only", "classes")
"""Lists that may also be written as a single value."""


def json_schema() -> dict[str, Any]:
    """Return the schema, draft 2020-12.

    It knows types, choices, ranges and patterns of single keys. `Job.of` also checks what needs code: cron fields, time
    zones, and keys that belong together.
    """
    made = Job.model_json_schema()
    models = {model.__name__: model for model in _sections(Section)}
    for name, table in made.get("$defs", {}).items():
        _describe(table, models[name])
    _describe(made, Job)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "maskfleet job",
        "description": "What to do, as one TOML file: maskfleet run JOB.",
    }


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _sections(inner)


def _describe(table: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the meanings of a model's keys to its schema, and remove what TOML does not have: null."""
    table["description"] = " ".join((inspect.getdoc(model) or "").split())
    table.pop("title", None)
    meanings = docstrings(model)
    for name, value in table["properties"].items():
        value.pop("title", None)
        if "$ref" in value:  # the section has a description of its own
            value.pop("default", None)
            continue
        _without_null(value)
        if name in _ONE_OR_MORE:
            several = {key: value.pop(key) for key in ("items", "type") if key in value}
            value["anyOf"] = [several["items"], several]
        if value.get("format") == "date-time":  # TOML also has dates without a time
            del value["format"]
        value["description"] = meanings.get(name, "")


def _without_null(value: dict[str, Any]) -> None:
    if value.get("default", "") is None:
        del value["default"]
    kinds = [kind for kind in value.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del value["anyOf"]
        value.update(kinds[0])
    elif kinds:
        value["anyOf"] = kinds
