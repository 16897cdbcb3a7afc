"""The values that a key accepts, in words, and an example: read from the declaration of the key in its model."""

import json
import re
import types
from collections.abc import Iterator
from datetime import date, datetime
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_TYPES: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    datetime: "date or time",
}

_ARTICLES = {"integer": "an", "number": "a", "list": "a", "date": "a"}

_LIMITS = (
    ("Gt", "gt", ">"),
    ("Ge", "ge", "≥"),
    ("Lt", "lt", "<"),
    ("Le", "le", "≤"),
    ("MultipleOf", "multiple_of", "×"),
)


class Form(NamedTuple):
    """The form of a text, in words: metadata of a key whose values match a pattern.

    Attributes:
        words: Noun phrase, such as "a number followed by s, m or h".
    """

    words: str


def accepted(field: FieldInfo) -> str:
    """Return the accepted values of a key for a table, such as `integer ≥ 1 or "auto"`."""
    if choices := _choices(field):
        return " or ".join(map(json.dumps, choices))
    return " ".join([_type(field.annotation), _limits(field.metadata)]).strip()


def phrase(field: FieldInfo) -> str:
    """Return the accepted values of a key for a sentence, such as `an integer ≥ 1 or "auto"`."""
    if forms := [item.words for item in field.metadata if isinstance(item, Form)]:
        return forms[0]
    if choices := _choices(field):
        return f"one of {', '.join(map(json.dumps, choices))}"
    alternatives = accepted(field).split(" or ")
    return " or ".join(f"{_ARTICLES.get(text.split()[0], '')} {text}".strip() for text in alternatives)


def example(field: FieldInfo) -> str:
    """Return a right value of a key as TOML: its first example, otherwise its default; "" without either."""
    if field.examples:
        return toml(field.examples[0])
    return "" if field.is_required() or field.default in (None, "", ()) else toml(field.default)


def toml(value: Any) -> str:
    """Return a value as TOML writes it, on one line."""
    match value:
        case BaseModel():
            return toml(value.model_dump(exclude_none=True))
        case dict():
            inner = ", ".join(f"{key} = {toml(each)}" for key, each in value.items())
            return f"{{{inner}}}"
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case bool() | str():
            return json.dumps(value, ensure_ascii=False)
        case date():
            return value.isoformat()
        case None:
            return "nothing"
        case _:
            return str(value)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models among the alternatives of an annotation: a table may stand there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from models_in(inner)


def _choices(field: FieldInfo) -> list[Any]:
    extra = field.json_schema_extra
    choices = extra.get("enum") if isinstance(extra, dict) else None
    return choices if isinstance(choices, list) else []


def _limits(metadata: Any) -> str:
    bounds = {type(item).__name__: item for item in metadata}
    if {"Ge", "Le"} <= bounds.keys():
        return f"from {bounds['Ge'].ge} to {bounds['Le'].le}"
    return ", ".join(f"{sign} {getattr(bounds[kind], name)}" for kind, name, sign in _LIMITS if kind in bounds)


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        bounds = [item for each in arguments[1:] for item in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return " ".join([_type(arguments[0]), _limits(bounds)]).strip()
    if origin is Literal:
        return " or ".join(json.dumps(each) for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        inner = _type(arguments[0])
        plural = re.sub(r"^(integer|number)\b", r"\1s", inner)
        return f"list of {plural}" if several else f"[{', '.join(map(_type, arguments))}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _TYPES[annotation]
