"""The layout of `--help`: commands in groups, plain names for values, verbatim examples; and wrong usage in one line.

Typer's own layout shows Python types, such as <list[str]>, and wraps examples like prose.
"""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

_EXAMPLES = "\nExamples:\n"

_PLAIN = (
    (
        r"(?:Value error, )?'([^']*)' does not match the formats? '%Y-%m-%d'",
        r"'\1' is no date; write it like 2026-11-24",
    ),
    (r"(\S+) is not in the range x>=([\d.]+)", r"\1 is too small; give at least \2"),
    (r"Input should be greater than or equal to ([\d.]+)", r"give at least \1"),
    (r"(?:Input should be|'[^']*' is not) a valid (?:int|integer)\b.*", "give a whole number, such as 100"),
    (r"(?:Input should be|'[^']*' is not) a valid (?:float|number)\b.*", "give a number, such as 0.5"),
    (r"Input should be (.*)", r"give \1"),
    (r"Value error, ", ""),
    (r" \(Possible options: ([^,)]*).*\)", r"; did you mean \1?"),
    (r"\. Did you mean '(.*)'\?", r"; did you mean \1?"),
    (r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", r"too many arguments: \1"),
)
"""Patterns in messages of Typer, and plain words for them."""


class Command(TyperCommand):
    """A command. Its docstring may end with a section of examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the line of usage, required arguments without Typer's braces."""
        return [re.sub(r"^\{(.*)\}$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the docstring without its examples."""
        _write_text(formatter, (self.help or "").partition(_EXAMPLES)[0])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(formatter, (self.help or "").partition(_EXAMPLES)[2])


class Group(TyperGroup):
    """A group of commands, each listed under the heading in its `rich_help_panel`."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the docstring without its examples."""
        _write_text(formatter, (self.help or "").partition(_EXAMPLES)[0])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands."""
        _write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by heading, in the order of the table."""
        width = max(map(len, self.commands))
        rows: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None)
            line = command.get_short_help_str(limit=100)
            rows.setdefault(heading if isinstance(heading, str) else "Commands", []).append((name.ljust(width), line))
        for heading, lines in rows.items():
            with formatter.section(heading):
                formatter.write_dl(lines)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(formatter, (self.help or "").partition(_EXAMPLES)[2])


def explained(error: Any) -> str:
    """Return one line on an error of Typer: what is wrong, and which help to read.

    Args:
        error: Error with `format_message` and, where it is known, the context of its command.
    """
    text = " ".join(error.format_message().split()).rstrip(".")
    for pattern, plain in _PLAIN:
        text = re.sub(pattern, plain, text)
    context = getattr(error, "ctx", None)
    return f"{text}; see {context.command_path if context else 'maskfleet'} --help"


def _write_text(formatter: Any, text: str) -> None:
    if text.strip():
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)


def _write_examples(formatter: Any, examples: str) -> None:
    if examples:
        formatter.write(f"\nExamples:\n{examples.rstrip()}\n")


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        if record := parameter.get_help_record(ctx):
            name, text = record
            # Typer adds the Python type to an argument's name, and writes bounds as [x>=1].
            name = re.sub(r" <.*>$", "", name)
            text = re.sub(r"x>=([\d.]+)", r"at least \1", text)
            rows["Arguments" if parameter.param_type_name == "argument" else "Options"].append((name, text))
    for heading, lines in rows.items():
        if lines:
            with formatter.section(heading):
                formatter.write_dl(lines)
