"""The two streams: stdout for results, for people or as JSON; stderr for progress and messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console

from maskfleet.cluster.terminal import table

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


def show_json(result: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Print a result on stdout as JSON."""
    typer.echo(json.dumps(result, indent=1))
