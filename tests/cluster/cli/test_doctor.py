import json

import pytest
from command_line import environment, maskfleet
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app
from maskfleet.cluster.doctor import table
from maskfleet.jobs.tools.doctor.contract import Check, Finding


def examine(*arguments):
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments)], standalone_mode=False)
    return done.return_value, done.stdout


def test_the_machine_alone_needs_no_job_and_no_network():
    done = maskfleet("doctor", env=environment() | {"RAY_ADDRESS": "", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       versions       maskfleet ")
    assert lines[-1].startswith("0 problems")
    assert not [line for line in lines if " output " in line]


def test_a_job_is_examined_and_programs_get_json(images, tmp_path):
    code, text = examine("--input", images, "--output", tmp_path / "out", "--json")
    found = {line["check"]: line for line in json.loads(text)}
    assert code == 0, text
    assert list(found) == [name for name in table.CHECKS if "credentials" not in name]
    assert found["commits"]["verdict"] == "ok"
    assert all(line["remedy"] for line in found.values() if line["verdict"] != "ok")


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_the_exit_code_is_that_of_the_worst_finding(monkeypatch, verdict, code):
    monkeypatch.setattr(table, "CHECKS", {"x": Check(lambda subject: Finding(verdict, "text", "do this"))})
    assert examine()[0] == code
    assert examine()[1].splitlines()[:2] == [f"{verdict:<8} x  text", "            → do this"]


def test_a_wrong_job_is_exit_code_2(tmp_path):
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "none.toml")], standalone_mode=False)
    assert getattr(done.exception, "exit_code", None) == 2
