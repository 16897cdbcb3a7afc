"""Commands writing files for schedulers and clusters: schedule, cluster-config."""

from pathlib import Path
from typing import Annotated

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.deploy.files import CLUSTERS, SCHEDULERS, Files, Scheduled
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

Folder = Annotated[
    Path | None, typer.Option("--output", metavar="FOLDER", help="Folder to write to. Default: print on stdout.")
]


def schedule(
    job: options.JobFile,
    scheduler: Annotated[str, typer.Option("--for", metavar="SCHEDULER", help=f"One of: {', '.join(SCHEDULERS)}.")],
    folder: Folder = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            help="For systemd, cron and airflow: submit to this cluster's dashboard, http://HOST:8265. Default: run "
            "on the scheduler's machine.",
        ),
    ] = None,
) -> None:
    """Write the files for running a job on a schedule.

    Uses the [schedule] and [cluster] sections of the job file. Only writes files; installing them is up to you. Run it
    in the folder the job should run in.

    Examples:
      maskfleet schedule job.toml --for systemd --output units/
      maskfleet schedule job.toml --for kubernetes --output k8s/
    """
    make = SCHEDULERS.get(scheduler)
    if make is None:
        raise JobError(f"--for {scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}")
    _write(make(Scheduled.load(job, folder=Path.cwd(), address=address)), folder)


def cluster_config(
    job: options.JobFile,
    cluster: Annotated[str, typer.Option("--for", metavar="CLUSTER", help=f"One of: {', '.join(CLUSTERS)}.")],
    folder: Folder = None,
) -> None:
    """Write the configuration of a Ray cluster for a job.

    Uses the [cluster] section of the job file, and also writes the Dockerfile of its image. Start the cluster with
    kubectl or `ray up`, then use `maskfleet submit`.

    Examples:
      maskfleet cluster-config job.toml --for kuberay --output k8s/
      maskfleet cluster-config job.toml --for aws --output aws/
    """
    make = CLUSTERS.get(cluster)
    if make is None:
        raise JobError(f"--for {cluster!r} is unknown; choose one of {', '.join(CLUSTERS)}")
    _write(make(Job.load(job)), folder)


def _write(files: Files, folder: Path | None) -> None:
    for name, text in files.items():
        if folder is None:
            typer.echo(f"# {name}\n{text}" if len(files) > 1 else text)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        typer.echo(folder / name)
