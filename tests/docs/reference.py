"""The generated parts of the documentation: keys of the job file, columns of the statistics, and the tree of modules.

`python tests/docs/reference.py --write` writes them into docs/; the tests compare.
"""

import ast
import re
import sys
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.statistics import SCHEMA

ROOT = Path(__file__).resolve().parents[2]


def keys() -> str:
    """Return a Markdown table of the keys of each section, in the order of the schema."""
    parts = [_table(Job, "The top level", "")]
    for name, field in Job.model_fields.items():
        if _is_section(field.annotation):
            parts.append(_table(field.annotation, f"`[{name}]`", f"{name}."))
    return "\n\n".join(parts)


def columns() -> str:
    """Return a Markdown table of the columns of the statistics."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for field in SCHEMA:
        kind = re.sub(r"(item|element): ", "", str(field.type)).replace("|", r"\|")
        lines.append(f"| `{field.name}` | {kind} | {_cell(field.metadata[b'meaning'].decode())} |")
    return "\n".join(lines)


def tree() -> str:
    """Return every folder of code with its modules, each with the first line of its docstring."""
    folders = sorted({path.parent for top in ("unet", "jobs", "cluster") for path in (ROOT / top).rglob("__init__.py")})
    folders.sort(key=lambda folder: (("unet", "jobs", "cluster").index(folder.relative_to(ROOT).parts[0]), folder))
    parts = []
    for folder in folders:
        lines = [f"### {folder.relative_to(ROOT)}/", "", _first_line(folder / "__init__.py")]
        if files := [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]:
            lines += ["", "| module | |", "|---|---|"]
            lines += [f"| `{path.name}` | {_cell(_first_line(path))} |" for path in files]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


GENERATED = {
    "docs/job-file.md": {"keys": keys},
    "docs/outputs.md": {"columns": columns},
    "docs/architecture.md": {"tree": tree},
}
"""Generated parts of each page: the name in its two HTML comments, and the function."""


def rendered(page: str) -> str:
    """Return a page with its generated parts renewed."""
    text = (ROOT / page).read_text("utf-8")
    for name, make in GENERATED[page].items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


def _table(section: type[BaseModel], title: str, prefix: str) -> str:
    meanings = _meanings(section)
    lines = [f"### {title}", "", "| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        if not _is_section(field.annotation):
            default = "required" if field.default is PydanticUndefined else _default(field.default)
            lines.append(f"| `{prefix}{key}` | {_values(field)} | {default} | {_cell(meanings[key])} |")
    return "\n".join(lines)


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """Return the string below each field of a class, or its `description`."""
    found = {key: field.description for key, field in section.model_fields.items() if field.description}
    (source,) = [path for path in (ROOT / "jobs/job").glob("*.py") if f"class {section.__name__}(" in path.read_text("utf-8")]
    (body,) = [
        node.body
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    ]
    for field, text in zip(body, body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = text.value.value
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _values(field: Any) -> str:
    """Return the accepted values in words, with their bounds."""
    bounds = []
    for limit in field.metadata:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (value := getattr(limit, name, None)) is not None:
                bounds.append(f"{sign} {value:,}")
    return " ".join([_kind(field.annotation), ", ".join(bounds)]).strip()


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}" if arguments[-1] is Ellipsis else "RGB"
    if arguments and origin is not None and origin not in (Union, type(int | str)):
        return _kind(arguments[0])
    if arguments:
        return ", ".join(dict.fromkeys(_kind(one) for one in arguments if one is not type(None)))
    names = {str: "text", int: "integer", float: "number", bool: "true, false"}
    return names.get(annotation) or {"WorkerRange": "`{min, max}`", "datetime": "date"}[annotation.__name__]


def _default(value: Any) -> str:
    if value in (None, (), ""):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else _quoted(value)}`"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", r"\|")


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")


def main() -> None:
    """Write the generated parts, or exit with 1 if they are out of date."""
    stale = {page: text for page in GENERATED if (text := rendered(page)) != (ROOT / page).read_text("utf-8")}
    if "--write" in sys.argv:
        for page, text in stale.items():
            (ROOT / page).write_text(text, "utf-8")
    elif stale:
        sys.exit(f"out of date: {', '.join(stale)}; run: python tests/docs/reference.py --write")


if __name__ == "__main__":
    main()
