"""The reference of the job file, read from its models: one entry per key, with its values, default and meaning.

Meanings are the docstrings below the attributes. They are parsed from the source on demand: pydantic's own extraction
would add 35 ms to every import.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from maskfleet.jobs.job import values
from maskfleet.jobs.job.keys import section_of
from maskfleet.jobs.job.schema import Job


@dataclass(frozen=True)
class Key:
    """A key of the job file.

    Attributes:
        section: Name of its section; "" for a key at the top.
        name: Name without section.
        values: Accepted values, such as `integer or "auto"`.
        default: Default as TOML; "" for a key without one, which is required or may be left out.
        example: A right value as TOML.
        required: Whether a job must state it.
        meaning: Description in one paragraph.
    """

    section: str
    name: str
    values: str
    default: str
    example: str
    required: bool
    meaning: str


def reference(model: type[BaseModel] = Job, section: str = "") -> Iterator[Key]:
    """Yield every key of the job file, in the order of the schema.

    Args:
        model: Model of the job file or of a section.
        section: Name of the section; "" for the job file.
    """
    meanings = docstrings(model)
    for name, field in model.model_fields.items():
        inner = section_of(field)
        if inner is not None:
            yield from reference(inner, f"{section}.{name}" if section else name)
            continue
        default = "" if field.is_required() or field.default in {None, "", ()} else values.toml(field.default)
        yield Key(
            section=section,
            name=name,
            values=values.accepted(field),
            default=default,
            example=values.example(field),
            required=field.is_required(),
            meaning=meanings.get(name, ""),
        )


def markdown() -> str:
    """Return the reference as Markdown: a heading and a table for the top and for each section."""
    tables: dict[str, list[str]] = {}
    for key in reference():
        default = "required" if key.required else f"`{key.default}`" if key.default else ""
        row = f"| `{key.name}` | {key.values} | {default} | {key.meaning} |"
        tables.setdefault(key.section, []).append(row)
    blocks = []
    for section, rows in tables.items():
        about = inspect.getdoc(_model(section)) if section else "Keys at the top of the file."
        heading = f"## `[{section}]`" if section else "## Top level"
        blocks += [heading, "", str(about), "", "| key | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(blocks)


def _model(section: str) -> type[BaseModel]:
    """Return the model of a section by its dotted name."""
    model: type[BaseModel] = Job
    for name in section.split("."):
        model = section_of(model.model_fields[name]) or model
    return model


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the texts below a model's attributes by name, with line breaks removed."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for statement, below in zip(declared.body, declared.body[1:], strict=False):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
