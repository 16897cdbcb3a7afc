"""A job file as a validated value: read the file, apply `--set` overrides, explain errors. Knows no particular key."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.keys import names

Model = TypeVar("Model", bound=BaseModel)


def read(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file, or in a JSON file named `*.json`.

    Raises:
        JobError: The file is missing, or is not TOML or JSON.
    """
    try:
        text = path.read_text("utf-8")
        table: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise JobError(f"job file {path} does not exist; write one, or give --input, --output and --weights") from error
    except (OSError, ValueError) as error:  # also a wrong encoding
        raise JobError(f"job file {path} cannot be read: {error}") from error
    return table


def overridden(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a table with overrides applied.

    Args:
        table: Content of a job file.
        overrides: `section.key=value` each. Values are TOML; a bare word is text.

    Raises:
        JobError: An override has another form, or its section is a plain key.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise JobError(f"--set {override!r} does not have the form section.key=value")
        *sections, key = name.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise JobError(f"--set {override!r}: {section} is not a section of the job")
        target[key] = _toml_value(text.strip())
    return merged


def validated(model: type[Model], table: Mapping[str, Any]) -> Model:
    """Return a table as a value of a model.

    Raises:
        JobError: A value is wrong or missing; the message is one line.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        known = {part for name in names(model) for part in name.split(".")}
        raise JobError("; ".join(_sentences(error, known))) from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentences(error: ValidationError, known: set[str]) -> Iterator[str]:
    for item in error.errors():
        # For a union such as int | "auto" pydantic reports each member; the key is the leading part.
        key = ".".join(str(part) for part in item["loc"] if part in known)
        if item["type"] == "missing":
            yield f"{key} is missing; state it in the job file or with --{key}"
        else:
            yield f"{key}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
