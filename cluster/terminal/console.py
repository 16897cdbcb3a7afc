"""The two streams: stdout for results, for people or as JSON; stderr for progress and messages."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console

from maskfleet.cluster.terminal import table

_NARROWEST = 40
"""Columns of a narrower terminal, for wrapping."""

err = Console(stderr=True)


def say(message: str) -> None:
    """Print a message on stderr, verbatim."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print an error on stderr, in red where there are colours."""
    err.print(f"maskfleet: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout: aligned lines for people, or JSON for programs."""
    if as_json:
        show_json(result)
        return
    for line in table.lines(result):
        typer.echo(line)


def wrapped(label: str, text: str) -> Iterator[str]:
    """Yield a label and a text of prose as lines, wrapped only if stdout is a terminal."""
    head = f"{label:<8} "
    if not sys.stdout.isatty():
        yield f"{head}{text}"
        return
    yield from textwrap.wrap(
        text, max(_NARROWEST, shutil.get_terminal_size().columns), initial_indent=head,
        subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def show_json(result: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Print a result on stdout as JSON."""
    typer.echo(json.dumps(result, indent=1))
