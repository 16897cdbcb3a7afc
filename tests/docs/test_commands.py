"""Every `maskfleet`, Python and SQL line of the documentation runs, or is listed here with a reason."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from docs.pages import PAGES, ROOT, Block, blocks
from ray_head import ray_head
from typer.testing import CliRunner

from docs import world
from maskfleet.cluster.cli.main import app

NOT_RUN = {
    r"^python3 -m venv ": "installs; .ci/run runs the README's two commands as they are",
    r"^source \.venv/bin/activate$": "a shell's own state",
    r"^(\.venv/bin/)?pip install ": "installs",
    r"^(export|\(umask) ": "a shell's own state, and files in the home folder",
    r"^ray (start|up|down|dashboard)\b": "starts machines or services",
    r"^docker ": "needs Docker and a registry",
    r"^kubectl ": "needs a Kubernetes cluster",
    r"^sudo ": "changes the machine",
    r"^ssh ": "needs another machine",
    r"^pytest\b|^ruff |^mypy$|^lint-imports$|^\.ci/run$|^mkdocs serve$": "the checks themselves",
    r"^python tests/docs/reference\.py --write$": "writes the pages; test_reference.py compares them",
    r"^python -m tests\.faults\b": "minutes to hours; tests/faults runs the same functions smaller",
    r"^maskfleet demo$": "takes minutes; .ci/run runs it, and tests run smaller ones",
}
"""Lines that do not run, by pattern, and why."""

ONE_STEP = "--set finetune.steps=1 --set finetune.crop=32 --set finetune.batch_size=1 --set finetune.gate=off"

SMALLER = {
    r"command-line\.md: maskfleet run job\.toml$": "--address 10.0.0.5:6379",
    r": maskfleet (run|retry|redo|backfill)\b(?!.*--(no-ray|address))": "--no-ray",
    r": maskfleet bench (run|null)\b": "--no-ray --images 4 --side 32 --pairs 1",
    r": maskfleet bench codecs\b": "--images 4 --side 32",
    r": maskfleet bench forward\b": "--pairs 1 --shape 32x32",
    r": maskfleet bench storage\b": "--objects 4 --bytes 1000",
    r"finetuning\.md: maskfleet (finetune|run)\b": ONE_STEP,
    r"command-line\.md: maskfleet finetune\b": f"{ONE_STEP} --set finetune.images={world.PAIRS[0]} --set finetune.masks={world.PAIRS[1]}",
    r": maskfleet submit\b": f"--python {sys.executable} --set cluster.workers=1 --set cluster.threads=1",
}
"""Options added to lines by pattern of page and line, to make them short. Ray gives the same bytes as one process."""

STAND_INS = {"napari": "needs a display", "fiftyone": "needs MongoDB"}
"""Modules of other tools, replaced by ones that accept every call, and why."""

AS_WRITTEN = ("docs/quick-start.md",)
"""Pages with lines run as they are, from images alone; runs in processes of their own, with a local Ray."""


@dataclass(frozen=True)
class Cluster:
    """Addresses of a Ray cluster: of its head and of its dashboard."""

    head: str
    dashboard: str

    def named(self, command: str) -> str:
        """Return a command with the documentation's addresses replaced."""
        command = command.replace("10.0.0.5:6379", self.head)
        return re.sub(r"http://(head|HEAD|127\.0\.0\.1):8265", self.dashboard, command)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    world.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    """A Ray head with a dashboard, in its own processes, with credentials for the bucket."""
    with ray_head(_environment(), log=tmp_path_factory.mktemp("ray") / "log") as head:
        yield Cluster(f"127.0.0.1:{head.port}", head.dashboard)


def has_lines(page: str, *words: str) -> bool:
    return any(word in block.text for block in blocks(page) for word in words)


WITH_CLUSTER = [page for page in PAGES if has_lines(page, "--address http", "--address 10.")]
LONG = (
    "docs/checkpoint.md",
    "docs/finetuning.md",
    "docs/job-file.md",
    "docs/quick-start.md",
    "docs/s3.md",
    "docs/speed.md",
)
OTHERS = [
    pytest.param(page, marks=pytest.mark.slow if page in LONG else ())
    for page in PAGES
    if page not in WITH_CLUSTER and blocks(page)
]


@pytest.mark.parametrize("page", OTHERS)
def test_the_lines_of_a_page_run(page, prepared, tmp_path, monkeypatch, request):
    _run(page, prepared, tmp_path, monkeypatch, request, None)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_CLUSTER)
def test_the_lines_of_a_page_run_with_a_cluster(page, prepared, tmp_path, monkeypatch, request, cluster):
    _run(page, prepared, tmp_path, monkeypatch, request, cluster)


@pytest.mark.parametrize("page", PAGES)
def test_every_line_is_known(page):
    """A line neither run nor listed, for example of a new tool, is an error here even if its page is slow."""
    for block in blocks(page):
        assert block.language in {"bash", "toml", "python", "sql", "json", ""}, f"{page}:{block.line}"
        if block.language == "bash":
            for command in block.commands():
                assert _reason(command) or command.startswith(("maskfleet ", "duckdb -c ")), f"{page}: {command}"
        elif not block.language:
            assert not re.search(r"^(\$ )?(maskfleet|pip|python) ", block.text, re.MULTILINE), f"{page}:{block.line}"


def test_every_exception_is_needed():
    lines = [
        command for page in PAGES for block in blocks(page) if block.language == "bash" for command in block.commands()
    ]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern


def _run(page, prepared, folder, monkeypatch, request, cluster) -> None:
    in_s3 = has_lines(page, "s3://")
    if in_s3:
        request.getfixturevalue("s3_server")
        world.fill_bucket()
    world.copy(prepared, folder, world.IN_S3 if in_s3 else world.LOCAL, outputs=page not in AS_WRITTEN)
    monkeypatch.chdir(folder)
    for name in STAND_INS:
        monkeypatch.setitem(sys.modules, name, MagicMock(name=name))
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "toml":
            _write_job(block, folder)
        elif block.language == "python":
            exec(compile(block.text, f"{ROOT / page}:{block.line}", "exec"), names)
        elif block.language == "sql":
            assert _query(block.text)
        elif block.language == "bash":
            for command in block.commands():
                if not _reason(command):
                    _run_line(page, command, cluster)


def _run_line(page: str, command: str, cluster: Cluster | None) -> None:
    if command.startswith("duckdb -c "):
        assert _query(shlex.split(command)[2]), f"{page}: {command}"
        return
    if command.startswith("maskfleet init ") and "--job" not in command:
        Path("job.toml").unlink(missing_ok=True)  # a reader has none yet
    for pattern, options in SMALLER.items() if page not in AS_WRITTEN else ():
        if re.search(pattern, f"{page}: {command}"):
            command += f" {options}"
    if cluster is not None:
        command = cluster.named(command)
    _, *arguments = shlex.split(command)
    own_process = (page in AS_WRITTEN and arguments[0] == "run") or "--address" in arguments
    code, said = _in_a_process(arguments) if own_process else _here(arguments)
    assert code == 0, f"{page}: {command}: exit {code}\n{said}"


def _here(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; loading torch and Ray in each would take longer than all else."""
    done = CliRunner().invoke(app, arguments, standalone_mode=False)
    code = getattr(done.exception, "exit_code", 1) if done.exception else done.return_value
    return code or 0, f"{done.output}\n{done.exception!r}"


def _in_a_process(arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "maskfleet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=_environment())
    return done.returncode, done.stdout + done.stderr


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def _reason(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


def _write_job(block: Block, folder: Path) -> None:
    """Write a job file shown on a page, or add the sections shown to the present one."""
    head = block.text.splitlines()[0]
    if head.startswith("# job.toml"):
        (folder / "job.toml").write_text(block.text)
    elif head.startswith("# in job.toml"):
        shown = set(re.findall(r"^\[(\w+)\]", block.text, re.MULTILINE))
        kept = re.split(r"^(?=\[)", (folder / "job.toml").read_text(), flags=re.MULTILINE)
        kept = [part for part in kept if not part.startswith(tuple(f"[{name}]" for name in shown))]
        (folder / "job.toml").write_text("".join([*kept, "\n", block.text]))


def _query(sql: str) -> list:
    import duckdb

    return duckdb.sql(sql).fetchall()
