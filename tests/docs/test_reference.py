"""The README says what is there."""

import re
import tomllib
from pathlib import Path

from typer.main import get_command

from maskfleet.cluster.cli.main import app
from maskfleet.jobs.job.keys import names
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.statistics import SCHEMA

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands():
    """By name, those of a group behind the group's."""
    found = {}
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner}
    return found


def test_every_command_and_key_and_column_is_in_the_readme():
    for command in commands():
        assert f"maskfleet {command}" in README, command
    for key in names(Job):
        assert re.search(rf"^\s*#?\s*{key.rsplit('.', 1)[-1]}\s*=|`{key.rsplit('.', 1)[-1]}`", README, re.MULTILINE), (
            key
        )
    for field in SCHEMA:
        assert f"`{field.name}`" in README or field.name.endswith("_seconds"), field.name


def test_the_tree_in_the_readme_is_the_tree_on_disk():
    told, folders = set(), []
    for line in README[README.index("\nunet/ ") : README.index("\ntests/ ")].splitlines():
        if found := re.match(r"([│├└─\s]*)(\w+(?:/|\.py))", line):
            depth = len(found[1]) // 4
            folders[depth:] = [found[2]]
            told.add("".join(folders))
    files = {file for folder in ("unet", "jobs", "cluster") for file in (ROOT / folder).rglob("*.py")}
    there = {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}
    assert {path for path in told if path.endswith(".py")} == there


def test_every_folder_of_code_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = (
        file.parent.relative_to(ROOT) for top in ("unet", "jobs", "cluster") for file in (ROOT / top).rglob("*.py")
    )
    assert set(settings["tool"]["setuptools"]["packages"]) == {".".join(folder.parts) for folder in folders}


def test_the_job_file_in_the_readme_is_a_job():
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    Job.of(tomllib.loads(block))


def test_the_surface_of_the_command_line_is_closed():
    """A flag more is a decision, made here."""
    surface = {
        name: sorted(option for parameter in command.params for option in parameter.opts if option.startswith("--"))
        for name, command in commands().items()
    }
    job = ["--input", "--json", "--output", "--set", "--weights"]
    selection = ["--date", "--limit", "--only", "--sample", "--since"]
    assert surface == {
        "run": sorted([*job, *selection, "--address", "--no-ray"]),
        "plan": sorted([*job, *selection]),
        "explain": ["--json", "--profile"],
        "retry": ["--address", "--class", "--json", "--no-ray", "--profile", "--set"],
        "gc": ["--delete", "--grace", "--json", "--profile"],
        "backfill": ["--address", "--from", "--json", "--no-ray", "--set", "--to"],
        "status": ["--address", "--json", "--profile"],
        "submit": ["--address", "--date", "--follow", "--install", "--python", "--set"],
        "logs": ["--address", "--follow", "--profile"],
        "stop": ["--address"],
        "list": ["--address", "--json", "--profile"],
        "schedule": ["--address", "--for", "--output"],
        "cluster-config": ["--for", "--output"],
        "verify": ["--json", "--profile"],
        "export": ["--key", "--names", "--profile", "--to"],
        "finetune": ["--address", "--evaluate", "--json", "--set"],
        "convert": ["--mean", "--scale", "--std"],
        "demo": ["--images", "--no-ray", "--output"],
        "bench forward": ["--json", "--pairs", "--precision", "--set", "--shape", "--weights"],
        "bench run": ["--images", "--input", "--json", "--no-ray", "--pairs", "--set", "--side", "--weights"],
        "bench null": ["--images", "--json", "--no-ray", "--pairs", "--set", "--side"],
        "bench codecs": ["--images", "--input", "--json", "--side"],
        "bench storage": ["--bytes", "--json", "--objects", "--profile"],
    }
