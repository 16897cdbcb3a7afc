"""Wrong usage is explained in plain words, in one line."""

import re

import pytest
from typer.main import get_command

from maskfleet.cluster.cli.help import explained
from maskfleet.cluster.cli.main import _with_global_options_first, app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --limit x job.toml", "'--limit': give a whole number, such as 100; see maskfleet run --help"),
        ("run --limit 0 job.toml", "'--limit': give at least 1; see maskfleet run --help"),
        ("run --limit 1.5 job.toml", "'--limit': give a whole number, such as 100; see maskfleet run --help"),
        ("run --date 24.11.2026", "'24.11.2026' is no date; write it like 2026-11-24; see"),
        ("run --since yesterday", "'--since': 'yesterday' is no date; write 2026-11-24 or 2026-11-24T18:00; see"),
        ("retry out --class foo", "'--class': 'foo' is unknown; choose from decode, oom, io, crash; see"),
        ("retry out", "Missing option '--class'; see maskfleet retry --help"),
        ("gc out --grace x", "'--grace': give a number, such as 0.5; see"),
        ("submit j --address http://x --install bla", "'bla' is not one of 'none', 'pip', 'uv'; see"),
        ("run --inptu x", "No such option: --inptu; did you mean --input?; see maskfleet run --help"),
        ("rnu", "No such command 'rnu'; did you mean run?; see maskfleet --help"),
        ("run a b c", "too many arguments: b c; see maskfleet run --help"),
    ],
)
def test_wrong_usage_is_one_plain_line(arguments, message):
    with pytest.raises(Exception) as error:
        get_command(app).main(arguments.split(), prog_name="maskfleet", standalone_mode=False)
    text = explained(error.value)
    assert message in text
    assert not re.search(r"\n|Input should|Value error|%Y|x>=|\(s\)", text)


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("run job.toml --log", "--log run job.toml"),
        ("run --debug job.toml --log", "--debug --log run job.toml"),
        ("--log run job.toml", "--log run job.toml"),
        ("redo out -- --log", "redo out -- --log"),
    ],
)
def test_log_and_debug_may_stand_anywhere(given, ordered):
    assert _with_global_options_first(given.split()) == ordered.split()
