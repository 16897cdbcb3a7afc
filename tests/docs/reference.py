"""The generated parts of the documentation: keys of the job file, columns of the statistics, and the tree of modules.

`python tests/docs/reference.py --write` writes them into docs/; the tests compare.
"""

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

from maskfleet.jobs.job.reference import markdown
from maskfleet.jobs.ledger.statistics import SCHEMA
from maskfleet.jobs.run.summary import RunSummary

ROOT = Path(__file__).resolve().parents[2]


def columns() -> str:
    """Return a Markdown table of the columns of the statistics."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for field in SCHEMA:
        kind = re.sub(r"(item|element): ", "", str(field.type)).replace("|", r"\|")
        lines.append(f"| `{field.name}` | {kind} | {_cell(field.metadata[b'meaning'].decode())} |")
    return "\n".join(lines)


def run_record() -> str:
    """Return a Markdown table of the keys of `run.json`."""
    lines = ["| key | meaning |", "|---|---|"]
    for field in dataclasses.fields(RunSummary):
        if field.name != "speed":
            found = re.search(
                rf"^    {field.name}: (.*?)(?=^    \w+:|\Z)", inspect.getdoc(RunSummary), re.DOTALL | re.MULTILINE
            )
            lines.append(f"| `{field.name}` | {_cell(found[1])} |")
    return "\n".join(lines)


def folders() -> str:
    """Return the tree of folders, each with the first line of its docstring."""
    lines = []
    for folder in _folders():
        depth = len(folder.relative_to(ROOT).parts) - 1
        name = f"{'    ' * depth}{folder.name}/"
        lines.append(f"{name:<22}{_first_line(folder / '__init__.py')}")
    return "\n".join(["```", *lines, "```"])


def tree() -> str:
    """Return every folder with its modules, each with the first line of its docstring."""
    parts = []
    for folder in _folders():
        lines = [f"### {folder.relative_to(ROOT)}/", "", _first_line(folder / "__init__.py")]
        if files := [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]:
            lines += ["", "| module | |", "|---|---|"]
            lines += [f"| `{path.name}` | {_cell(_first_line(path))} |" for path in files]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


GENERATED = {
    "docs/job-file.md": {"keys": lambda: markdown().strip()},
    "docs/outputs.md": {"columns": columns, "run": run_record},
    "docs/architecture.md": {"folders": folders, "tree": tree},
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


def _folders() -> list[Path]:
    """Return the folders of code: the package's own, then the three layers, each before its sub-folders."""
    layers = [path.parent for top in ("unet", "jobs", "cluster") for path in sorted((ROOT / top).rglob("__init__.py"))]
    return [ROOT / "maskfleet", *layers]


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
