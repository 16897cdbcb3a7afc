"""schedule and cluster-config: files in a folder, or on stdout."""

import os

import pytest
from command_line import scheduled_job
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app
from maskfleet.cluster.deploy.files import CLUSTERS, SCHEDULERS
from maskfleet.jobs.errors import JobError


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
def test_a_cluster_config_comes_with_its_dockerfile(kind, tmp_path):
    generated("cluster-config", scheduled_job(tmp_path), "--for", kind, "--output", tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["Dockerfile", "cluster.yaml"]
