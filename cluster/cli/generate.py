"""Commands writing files: a first job, its schema, and files for schedulers and clusters."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.deploy.files import CLUSTERS, SCHEDULERS, Files, Scheduled
from maskfleet.cluster.terminal import console
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

Folder = Annotated[
    Path | None, typer.Option("--output", metavar="FOLDER", help="Folder to write to. Default: print on stdout.")
]


def init(
    folder: Annotated[
        str,
        typer.Argument(metavar="[FOLDER]", help="Images: whatever `input` of a job takes. Default: this folder."),
    ] = ".",
    weights: Annotated[
        str, typer.Option("--weights", metavar="FILE|NAME", help="Safetensors file, or the built-in model: nuclei.")
    ] = "nuclei",
    output: Annotated[str, typer.Option("--output", metavar="PLACE", help="Where the job's output goes.")] = "out",
    file: Annotated[Path, typer.Option("--job", metavar="FILE", help="Job file to write.")] = Path("job.toml"),
) -> None:
    """Write a first job file from a look at images and weights.

    Lists the images, opens a few in an isolated process, and reads the weights. The job file explains each of its keys.
    A JSON Schema beside it lets editors check and complete keys. Overwrites nothing.

    Examples:
      maskfleet init images/
      maskfleet init s3://microscopy/plates/ --weights cells.safetensors --output s3://microscopy/masks/
    """
    from maskfleet.jobs.job.json_schema import FILE
    from maskfleet.jobs.network.inference_config import load_weights
    from maskfleet.jobs.tools.starting.draft import draft
    from maskfleet.jobs.tools.starting.look import look

    if file.exists():
        raise JobError(f"{file} exists already, and init overwrites nothing; edit it, or name another file with --job")
    given = Job.of({"input": folder, "output": output, "weights": weights})
    network = load_weights(given)
    text, notes = draft(given, look(given), network, places=(folder, output, weights))
    _write_new(file, text)
    beside = file.with_name(FILE)
    if not beside.exists():
        _write_new(beside, _schema())
    typer.echo(file)
    for note in notes:
        console.say(f"note     {note}")
    console.say(f"next     maskfleet plan {shlex.quote(str(file))}")


def schema() -> None:
    """Print the JSON Schema of the job file.

    Editors with taplo, such as Even Better TOML, use it if the job file begins with: #:schema ./job.schema.json

    Examples:
      maskfleet schema
    """
    typer.echo(_schema(), nl=False)


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

    Uses the [cluster] section of the job file. Start the cluster with kubectl or `ray up`, then use `maskfleet submit`.
    `--for docker` writes the Dockerfile of its image.

    Examples:
      maskfleet cluster-config job.toml --for docker --output .
      maskfleet cluster-config job.toml --for kuberay --output k8s/
      maskfleet cluster-config job.toml --for aws --output aws/
    """
    make = CLUSTERS.get(cluster)
    if make is None:
        raise JobError(f"--for {cluster!r} is unknown; choose one of {', '.join(CLUSTERS)}")
    _write(make(Job.load(job)), folder)


def _schema() -> str:
    from maskfleet.jobs.job.json_schema import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet.

    Raises:
        JobError: It exists by now, or its folder is missing or read-only.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; name another file with --job") from error


def _write(files: Files, folder: Path | None) -> None:
    for name, text in files.items():
        if folder is None:
            typer.echo(f"# {name}\n{text}" if len(files) > 1 else text)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        typer.echo(folder / name)
