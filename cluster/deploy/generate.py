"""`maskfleet schedule` and `maskfleet cluster-config`: files for the schedulers and clusters that there are."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from maskfleet.cluster.deploy import aws, kubernetes, timers
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.schema import Job

app = typer.Typer()

JobFile = Annotated[Path, typer.Argument(help="Job file (TOML).")]
Output = Annotated[Path | None, typer.Option("--output", help="Folder to write to; without it stdout.")]

_RAY_CRON_JOB = """# A RayCronJob is alpha in KubeRay 1.7 and off by default (feature gate RayCronJob). It has no rule
# about overlap, and after a stop of the operator it makes up for every night that was missed: the lock in the
# job's output keeps them apart. `--for kubernetes` has neither limit.
"""


@app.command()
def schedule(
    job: JobFile,
    for_: Annotated[str, typer.Option("--for", help="kubernetes, kuberay-cron, systemd, cron or airflow.")],
    output: Output = None,
    address: Annotated[
        str | None, typer.Option("--address", help="For systemd, cron, airflow: submit to this cluster's dashboard.")
    ] = None,
) -> None:
    """Write what makes another scheduler run a job every night, from its [schedule] and [cluster]."""
    work, file = Job.load(job), job.resolve()
    fields = work.schedule.cron
    if fields is None:
        raise JobError('the job has no [schedule] cron; add one such as cron = "30 2 * * *"')
    argv, here = timers.command(file, address), Path.cwd()
    makers: dict[str, Callable[[], dict[str, str]]] = {
        "kubernetes": lambda: _kubernetes(kubernetes.cron_job(work, _table(work, job), fields)),
        "kuberay-cron": lambda: _kubernetes(kubernetes.ray_cron_job(work, _table(work, job), fields), _RAY_CRON_JOB),
        "systemd": lambda: timers.systemd(work, Crontab.parse(fields), argv, here),
        "cron": lambda: timers.cron(work, fields, argv, file, here),
        "airflow": lambda: timers.airflow(work, fields, argv, here),
    }
    _write(_made(makers, for_), output)


@app.command("cluster-config")
def cluster_config(
    job: JobFile, for_: Annotated[str, typer.Option("--for", help="kuberay or aws.")], output: Output = None
) -> None:
    """Write a Ray cluster for `maskfleet submit`, from a job's [cluster], and the image that it runs."""
    work = Job.load(job)
    makers: dict[str, Callable[[], dict[str, str]]] = {
        "kuberay": lambda: {"cluster.yaml": _yaml(kubernetes.ray_cluster(work)), "Dockerfile": aws.dockerfile()},
        "aws": lambda: {"cluster.yaml": _yaml([aws.cluster_config(work)]), "Dockerfile": aws.dockerfile()},
    }
    _write(_made(makers, for_), output)


def _made(makers: dict[str, Callable[[], dict[str, str]]], kind: str) -> dict[str, str]:
    if kind not in makers:
        raise JobError(f"--for {kind!r} is none of {', '.join(makers)}")
    return makers[kind]()


def _kubernetes(objects: list[kubernetes.Object], head: str = "") -> dict[str, str]:
    return {"schedule.yaml": head + _yaml(objects), "Dockerfile": aws.dockerfile()}


def _yaml(documents: list[dict[str, Any]]) -> str:
    # Through JSON, so that what is used twice is written twice and not as an anchor.
    plain = json.loads(json.dumps(documents))
    return str(yaml.safe_dump_all(plain, sort_keys=False, allow_unicode=True, width=120))


def _table(work: Job, file: Path) -> dict[str, Any]:
    """The job as it travels: checked and complete, but with the {date} that each night fills in."""
    raw = tomllib.loads(file.read_text("utf-8"))
    kept = {key: raw[key] for key in ("input", "output") if "{" in raw[key]}
    return work.model_dump(mode="json", exclude_none=True) | kept


def _write(files: dict[str, str], folder: Path | None) -> None:
    for name, text in files.items():
        if folder is None:
            typer.echo(f"# {name}\n{text}" if len(files) > 1 else text)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        typer.echo(folder / name)
