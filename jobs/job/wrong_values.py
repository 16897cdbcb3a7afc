"""The refusal of a job's values in one line: what is wrong, what is right, and an example. Knows no particular key."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job import values

_LONGEST = 60
"""Characters of a wrong value that are shown."""

_HAS_REMEDY = re.compile(r"; |such as|must be one of")


def refusal(model: type[BaseModel], table: Mapping[str, Any], error: ValidationError) -> JobError:
    """Return the error saying what is wrong with a table.

    Args:
        model: Model of the job file.
        table: Content of the job file.
        error: The failed validation.
    """
    return JobError("; ".join(dict.fromkeys(_sentences(model, table, error))))


def shown(value: Any) -> str:
    """Return a value as TOML writes it, shortened to one line."""
    text = values.toml(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _sentences(model: type[BaseModel], table: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        path, field, value = _located(model, table, item["loc"])
        own = item["msg"].removeprefix("Value error, ") if item["type"] == "value_error" else ""
        if field is None:
            # A check of several keys together. Without words of ours, it is an alternative that the table is not meant
            # for.
            if own:
                yield f"[{path}] {own}" if path else own
        elif item["type"] == "missing" and value is None:
            option = "" if "." in path else f"; state it in the job file or with --{path}"
            yield f"{path} is missing{option}: {_right(field)}"
        elif own and field.annotation is not None:
            like = "" if _HAS_REMEDY.search(own) else f", such as {values.example(field)}"
            yield f"{path} = {shown(value)}: {own}{like}"
        else:
            yield f"{path} = {shown(value)}: {_right(field)}"


def _right(field: FieldInfo) -> str:
    return f"must be {values.phrase(field)}, such as {values.example(field)}"


def _located(model: type[BaseModel], table: Any, location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None, Any]:
    """Return the dotted name, the declaration and the value of the key that an error is about.

    Of a key that takes a plain value or a table, pydantic reports every alternative; a table is judged by its own keys,
    and a plain value by the key's.

    Args:
        model: Model of the table.
        table: Content.
        location: Location as pydantic gives it.
    """
    names: list[str] = []
    field: FieldInfo | None = None
    value: Any = table
    for part in location:
        inner = field is not None and isinstance(value, Mapping) and next(values.models_in(field.annotation), None)
        here = model if field is None else inner
        if here and part in here.model_fields:
            field = here.model_fields[str(part)]
            value = value.get(part) if isinstance(value, Mapping) else None
            names.append(str(part))
    last = next(values.models_in(field.annotation), None) if field is not None else None
    together = last is not None and isinstance(value, Mapping)
    return ".".join(names), None if together else field, value
