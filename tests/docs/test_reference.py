"""The documentation agrees with the code: commands, keys, columns, modules, links."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from docs.pages import PAGES, ROOT, blocks, prose, text_of
from docs.reference import GENERATED, rendered
from typer.main import get_command

from maskfleet.cluster.cli.main import app
from maskfleet.jobs.job.keys import names
from maskfleet.jobs.job.schema import Job


def commands():
    """Every subcommand by name; those of a group follow the name of the group."""
    found = {}
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {each}": inner[each] for each in inner}
    return found


def options(command) -> list[str]:
    return sorted(option for parameter in command.params for option in parameter.opts if option.startswith("--"))


@pytest.mark.parametrize("page", GENERATED)
def test_generated_parts_are_up_to_date(page):
    assert rendered(page) == text_of(page), "run: python tests/docs/reference.py --write"


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) < 200


def test_the_checks_run_the_two_commands_of_the_readme():
    """`.ci/run` takes these lines from the README, and the workflow calls `.ci/run`."""
    install, test = [line for line in text_of("README.md").splitlines() if line.startswith("python3 -m venv")]
    assert install.endswith(" && .venv/bin/pip install -c constraints.txt . && .venv/bin/maskfleet demo")
    assert test.endswith(" && .venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest -n 2")
    assert "grep '^python3 -m venv' README.md" in text_of(".ci/run")
    assert "- run: .ci/run\n" in text_of(".github/workflows/checks.yml")


def test_every_subcommand_is_on_the_page_of_the_command_line():
    lines = [line for block in blocks("docs/command-line.md") for line in block.commands()]
    for command in commands():
        assert [line for line in lines if re.match(rf"maskfleet {command}\b", line)], command


@pytest.mark.parametrize("page", PAGES)
def test_inline_commands_exist_with_their_options(page):
    known = commands()
    common = options(get_command(app))
    for code in re.findall(r"`maskfleet ([^`]*)`", prose(page).replace("\n", " ")):
        words = [word for word in shlex.split(code.replace("…", "")) if word not in common]
        if words and re.fullmatch("[a-z][a-z-]*", words[0]):
            name = " ".join(words[:2]) if words[0] == "bench" and len(words) > 1 else words[0]
            command = known.get(name) or get_command(app).commands.get(name)
            assert command is not None, code
            assert {word.split("=")[0] for word in words if word.startswith("--")} <= {*options(command), "--help"}, (
                code
            )


@pytest.mark.parametrize("page", PAGES)
def test_every_job_is_valid(page):
    required = {"input": "in", "output": "out", "weights": "nuclei"}
    for block in blocks(page):
        if block.language == "toml":
            Job.of(required | tomllib.loads(block.text))


def test_the_example_job_shows_every_key():
    *_, example = [block for block in blocks("docs/job-file.md") if block.language == "toml"]
    table = tomllib.loads(example.text)
    shown = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in table.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    alternatives = "inference.normalize."  # its keys exclude each other
    assert shown == {name for name in names(Job) if not name.startswith(alternatives)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith(("https://", "http://", "mailto:")):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"


def anchors(page: Path) -> set[str]:
    """Return a page's anchors in GitHub's form."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_exists(page):
    for path in re.findall(r"`((?:unet|jobs|cluster|maskfleet|tests|docs)/[\w/.-]+)`", prose(page)):
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_every_step_of_the_way_names_code():
    """The steps name a file and a function or class in it."""
    text = text_of("docs/architecture.md")
    steps = re.findall(
        r"^\| \d[^|]*\|([^|]*)\|", text.split("<!-- steps -->")[1].split("<!-- /steps -->")[0], re.MULTILINE
    )
    assert steps
    for step in steps:
        path, *symbols = re.findall(r"`([^`]+)`", step)
        module = importlib.import_module(f"maskfleet.{path.removesuffix('.py').replace('/', '.')}")
        for symbol in symbols:
            value = module
            for name in re.match(r"[\w.]+", symbol)[0].split("."):
                value = getattr(value, name)


def test_every_folder_of_code_is_a_package():
    """Setuptools finds packages through the links in maskfleet/, and skips folders without __init__.py."""
    settings = tomllib.loads(text_of("pyproject.toml"))["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["maskfleet*"]
    for top in ("unet", "jobs", "cluster"):
        assert (ROOT / "maskfleet" / top).resolve() == ROOT / top
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_entries_of_the_toys_are_in_contributing():
    """The page for adding a thing shows the entry used by `test_extension`, and its module."""
    from test_extension import ENTRIES

    text = text_of("CONTRIBUTING.md")
    for toy, (table, _, entry) in ENTRIES.items():
        shown = entry.strip().removeprefix("KINDS = {").split(' "unet"')[0]
        assert f"`{shown}`" in text, entry
        assert f"`{table}`" in text, table
        assert f"(tests/toys/{toy}.py)" in text, toy


def test_the_surface_of_the_command_line_is_closed():
    """A new option is a decision, and it is made here."""
    job = ["--input", "--json", "--output", "--set", "--weights"]
    selection = ["--date", "--exclude", "--limit", "--only", "--sample", "--since"]
    assert {name: options(command) for name, command in commands().items()} == {
        "run": sorted([*job, *selection, "--address", "--no-ray"]),
        "plan": sorted([*job, *selection]),
        "report": ["--nights", "--profile", "--run", "--to"],
        "show": ["--failed", "--least-confident", "--open", "--output", "--profile", "--run", "--size"],
        "explain": ["--json", "--profile"],
        "retry": ["--address", "--class", "--json", "--no-ray", "--profile", "--set"],
        "redo": ["--address", "--json", "--no-ray", "--profile", "--run", "--set", "--shard"],
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
        "convert": ["--key", "--mean", "--scale", "--std"],
        "inspect": ["--json"],
        "doctor": ["--address", "--input", "--json", "--output", "--set"],
        "init": ["--job", "--output", "--weights"],
        "schema": [],
        "demo": ["--images", "--no-ray", "--output"],
        "bench forward": ["--json", "--pairs", "--precision", "--set", "--shape", "--weights"],
        "bench run": ["--images", "--input", "--json", "--no-ray", "--pairs", "--set", "--side", "--weights"],
        "bench null": ["--images", "--json", "--no-ray", "--pairs", "--set", "--side"],
        "bench codecs": ["--images", "--input", "--json", "--side"],
        "bench storage": ["--bytes", "--json", "--objects", "--profile"],
    }
