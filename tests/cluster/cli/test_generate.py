"""schedule and cluster-config: files in a folder, or on stdout."""

import json
import os
import tomllib

import jsonschema
import pytest
import yaml
from command_line import scheduled_job
from PIL import Image
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app
from maskfleet.cluster.deploy.files import CLUSTERS, SCHEDULERS
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.json_schema import json_schema
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools.preview import plan


def generated(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_command_writes_files_or_stdout(kind, tmp_path):
    file = scheduled_job(tmp_path)
    generated("schedule", file, "--for", kind, "--output", tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert files
    shown = generated("schedule", file, "--for", kind)
    assert (tmp_path / "made" / files[-1]).read_text().strip() in shown
    made = "".join((tmp_path / "made" / name).read_text() for name in files)
    assert "RAY_USAGE_STATS_ENABLED" in made
    assert os.environ["HOME"] not in made
    with pytest.raises(JobError, match="'crom' is unknown; choose one of kubernetes, kuberay-cron"):
        generated("schedule", file, "--for", "crom")


@pytest.mark.parametrize("kind", CLUSTERS)
def test_a_cluster_config_is_one_file(kind, tmp_path):
    """What is printed is the file, so that `kubectl apply -f -` and `docker build -f -` take it."""
    shown = generated("cluster-config", scheduled_job(tmp_path), "--for", kind)
    generated("cluster-config", tmp_path / "my job 100%.toml", "--for", kind, "--output", tmp_path / "made")
    (made,) = (tmp_path / "made").iterdir()
    assert made.name == ("Dockerfile" if kind == "docker" else "cluster.yaml")
    assert shown.strip() == made.read_text().strip()
    if kind != "docker":
        assert all(isinstance(document, dict) for document in yaml.safe_load_all(shown))


@pytest.mark.parametrize("kind", ["kubernetes", "kuberay-cron"])
def test_a_printed_schedule_is_kubernetes_objects_alone(kind, tmp_path):
    documents = list(yaml.safe_load_all(generated("schedule", scheduled_job(tmp_path), "--for", kind)))
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in documents)


def draw(folder):
    """Draw colour images, one of them with a mask beside it, and a damaged one."""
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (50, 40)).save(folder / name)
    Image.new("L", (50, 40)).save(folder / "a_mask.png")
    return folder


def test_init_writes_a_job_that_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "my images")
    said = generated("init", "my images")
    assert "next     maskfleet plan job.toml" in said
    text = (tmp_path / "job.toml").read_text()
    assert text.startswith("#:schema ./job.schema.json\n")
    assert json.loads((tmp_path / "job.schema.json").read_text()) == json.loads(generated("schema"))
    jsonschema.validate(tomllib.loads(text), json_schema())
    job = Job.load("job.toml")
    assert (job.name, job.exclude, job.output) == ("my-images", ("*_mask.png",), str(tmp_path / "out"))
    assert plan(job).images == 2


def test_init_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images")
    (tmp_path / "job.toml").write_text("mine")
    with pytest.raises(JobError, match=r"job\.toml exists already.*--job"):
        generated("init", "images")
    assert (tmp_path / "job.toml").read_text() == "mine"
    (tmp_path / "job.schema.json").write_text("{}")
    assert "maskfleet plan 'new job.toml'" in generated("init", "images", "--job", "new job.toml")
    assert (tmp_path / "job.schema.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["images", "--weights", "cells.pth"], "cells.pth"),
        (["images", "--job", "missing/job.toml"], "missing/job.toml cannot be written"),
    ],
)
def test_init_refuses_what_is_wrong_and_writes_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images")
    with pytest.raises(JobError, match=message):
        generated("init", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
