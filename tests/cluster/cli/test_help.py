"""Every help text is plain English and fits a terminal of 80 columns."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app

PATHS = [
    path
    for name, command in get_command(app).commands.items()
    for path in [(name,), *((name, inner) for inner in getattr(command, "commands", ()))]
]
"""Every command as words, groups included."""


def help_of(*path, flag="--help"):
    done = CliRunner().invoke(app, [*path, flag], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("path", [(), *PATHS], ids=" ".join)
def test_a_help_text_is_for_people(path):
    text = help_of(*path)
    assert help_of(*path, flag="-h") == text
    assert not re.findall(r"<\w+|%Y|x>=|\[default: \]", text), "types of Python"
    prose, _, examples = text.partition("\nExamples:\n")
    assert all(len(line) <= 80 for line in prose.splitlines())
    assert all(line.startswith("  maskfleet ") for line in examples.splitlines())
    assert examples or path == ("bench",)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_argument_and_option_is_described(path):
    command = get_command(app)
    for name in path:
        command = command.commands[name]
    for parameter in command.params:
        assert re.fullmatch(r"[A-Za-z\"\d].*[.]", parameter.help or ""), parameter.name
        if parameter.param_type_name == "argument" or not parameter.is_flag:
            assert parameter.metavar, parameter.name


def test_commands_are_listed_in_full():
    assert "..." not in help_of().partition("First steps:")[2]
    assert "..." not in help_of("bench").partition("Commands:")[2]
