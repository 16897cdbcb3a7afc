"""A job file as a validated value: read the file, apply `--set` overrides, explain errors. Knows no particular key."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.wrong_values import refusal

Model = TypeVar("Model", bound=BaseModel)


def read(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file, or in a JSON file named `*.json`.

    Raises:
        JobError: The file is missing, or is not TOML or JSON.
    """
    if path.is_dir():
        raise JobError(
            f"{path} is a folder, not a job file; give its job file, or --input {path}, --output and --weights"
        )
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise JobError(f"job file {path} does not exist; write one, or give --input, --output and --weights") from error
    except OSError as error:
        raise JobError(f"job file {path} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not a job file, which is UTF-8 text in TOML; to segment it, give --input") from error
    return _json(path, text) if path.suffix == ".json" else _toml(path, text)


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))  # Python 3.11 has no attribute for it
        number = int(place[1]) if place else max(1, len(text.splitlines()))
        raise JobError(
            _broken(path, text, number, 'key = value, texts in quotes, such as weights = "nuclei"')
        ) from error


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise JobError(_broken(path, text, error.lineno, '"key": value, such as "weights": "nuclei"')) from error
    if not isinstance(table, dict):
        raise JobError(f'job file {path} must hold one JSON object, such as {{"input": "images/", …}}')
    return table


def _broken(path: Path, text: str, number: int, form: str) -> str:
    lines = text.splitlines()
    line = lines[number - 1].strip()[:60] if number <= len(lines) else ""
    return f"job file {path}, line {number}: {line!r} cannot be understood; write {form}"


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
            raise JobError(f"--set {override!r} does not have the form section.key=value, such as run.shard_size=64")
        *sections, key = name.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise JobError(f"--set {override!r}: {section} is not a section; write it as in run.shard_size=64")
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
        raise refusal(model, table, error) from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
