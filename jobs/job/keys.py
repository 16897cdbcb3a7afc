"""Keys of a job file: every known name, and the refusal of unknown ones with a suggestion. Knows no particular key."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.values import models_in

_SECRET = re.compile(r"secret|password|passwd|token|credential|access_?key|api_?key", re.IGNORECASE)


def names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the name of every key, those of a section as `section.key`.

    Args:
        model: Model of the job file or of a section.
        prefix: Text before every name, such as `run.`.
    """
    for key, field in model.model_fields.items():
        inner = section_of(field)
        if inner is None:
            yield prefix + key
        else:
            yield from names(inner, f"{prefix}{key}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section, or None for a plain key."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def refuse_unknown(model: type[BaseModel], table: Mapping[str, Any]) -> None:
    """Check that a table has known keys only, at every level.

    Args:
        model: Model of the job file.
        table: Content of a job file.

    Raises:
        JobError: A key is unknown, looks like a secret, or is a section's name with a plain value.
    """
    _refuse_unknown(model, table, "", list(names(model)))


def _refuse_unknown(model: type[BaseModel], table: Mapping[str, Any], prefix: str, known: list[str]) -> None:
    for key, value in table.items():
        if key not in model.model_fields:
            if _SECRET.search(key):
                raise JobError(
                    f"{prefix}{key} looks like a secret, and a job must not contain secrets; "
                    "set 'profile' to an AWS profile, or use environment variables"
                )
            raise JobError(f"unknown key {prefix}{key}; {_suggestion(prefix, key, known)}")
        field = model.model_fields[key]
        if section_of(field) and not isinstance(value, Mapping):
            raise JobError(f"{prefix}{key} is a section; write [{prefix}{key}]")
        inner = next(models_in(field.annotation), None)
        if inner and isinstance(value, Mapping):
            within = f"{prefix}{key}."
            _refuse_unknown(inner, value, within, [*known, *names(inner, within)])


def _suggestion(prefix: str, key: str, known: list[str]) -> str:
    """Return the known key that is meant: in this section first, then in another one, where a right key may belong."""
    written = key.lower().replace("-", "_")
    here = {_last(name): name for name in known if name.rpartition(".")[0] == prefix.rstrip(".")}
    near = [here[name] for name in difflib.get_close_matches(written, here, n=1, cutoff=0.6)]
    near = near or [name for name in known if _last(name) == written]
    near = near or [name for name in known if difflib.get_close_matches(written, [_last(name)], n=1, cutoff=0.7)]
    return f"did you mean {near[0]}?" if near else f"known keys are {', '.join(list(here.values()) or known)}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
