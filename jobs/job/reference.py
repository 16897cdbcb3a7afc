"""The reference of the job file, read from its models: one entry per key, with its values, default and meaning.

Meanings are the docstrings below the attributes. They are parsed from the source on demand: pydantic's own extraction
would add 35 ms to every import.
"""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maskfleet.jobs.job.keys import section_of
from maskfleet.jobs.job.schema import Job

_TYPES: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    datetime: "date or time",
}


@dataclass(frozen=True)
class Key:
    """A key of the job file.

    Attributes:
        section: Name of its section; "" for a key at the top.
        name: Name without section.
        values: Accepted values, such as `integer or "auto"`.
        default: Default as TOML; "" for a key without one, which is required or may be left out.
        required: Whether a job must state it.
        meaning: Description in one paragraph.
    """

    section: str
    name: str
    values: str
    default: str
    required: bool
    meaning: str


def reference(model: type[BaseModel] = Job, section: str = "") -> Iterator[Key]:
    """Yield every key of the job file, in the order of the schema.

    Args:
        model: Model of the job file or of a section.
        section: Name of the section; "" for the job file.
    """
    meanings = _docstrings(model)
    for name, field in model.model_fields.items():
        inner = section_of(field)
        if inner is not None:
            yield from reference(inner, name)
            continue
        default = "" if field.is_required() or field.default in {None, "", ()} else _toml(field.default)
        yield Key(section, name, _values(field), default, field.is_required(), meanings.get(name, ""))


def markdown() -> str:
    """Return the reference as Markdown: a heading and a table for the top and for each section."""
    tables: dict[str, list[str]] = {}
    for key in reference():
        default = "required" if key.required else f"`{key.default}`" if key.default else ""
        row = f"| `{key.name}` | {key.values} | {default} | {key.meaning} |"
        tables.setdefault(key.section, []).append(row)
    blocks = []
    for section, rows in tables.items():
        field = Job.model_fields.get(section)
        about = inspect.getdoc(section_of(field)) if field else "Keys at the top of the file."
        heading = f"## `[{section}]`" if section else "## Top level"
        blocks += [heading, "", str(about), "", "| key | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(blocks)


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Texts that stand below a model's attributes, with line breaks removed."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for statement, below in zip(declared.body, declared.body[1:], strict=False):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _values(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict) and isinstance(choices := field.json_schema_extra.get("enum"), list):
        return " or ".join(map(json.dumps, choices))
    bounds = {type(item).__name__: item for item in field.metadata}
    limits = [
        f"{sign} {getattr(bounds[kind], attribute)}"
        for kind, attribute, sign in (("Gt", "gt", ">"), ("Ge", "ge", "≥"), ("Lt", "lt", "<"), ("Le", "le", "≤"))
        if kind in bounds
    ]
    return " ".join([_type(field.annotation), ", ".join(limits)]).strip()


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(json.dumps(each) for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return f"list of {_type(arguments[0])}" if several else f"[{', '.join(map(_type, arguments))}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _TYPES[annotation]


def _toml(value: Any) -> str:
    """A default as TOML writes it; JSON has the same form for the types in use."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
