"""Wrong usage of the command line in one line, without the words of the libraries that parse it."""

import re
from typing import Any

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
