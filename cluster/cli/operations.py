"""The command line's way to a cluster's jobs: submit, logs, stop, list; without one, an output's own records."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job

if TYPE_CHECKING:  # imports Ray, which `--help` must not wait for
    from maskfleet.cluster.submit import Submissions

app = typer.Typer()

Address = Annotated[str, typer.Option("--address", help="The cluster's dashboard: http://HEAD:8265.")]
MaybeAddress = Annotated[
    str | None, typer.Option("--address", help="The cluster's dashboard; without it, the output's own records.")
]
Target = Annotated[str, typer.Argument(help="Job file; or a submission's id, or, without --address, an output.")]
Profile = Annotated[str | None, typer.Option("--profile", help="AWS profile.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(help="Job file (TOML).")],
    address: Address,
    set: Annotated[list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")] = None,  # noqa: A002
    date: Annotated[
        datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="The night; without it today in UTC.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log; end with its exit code.")] = False,
    python: Annotated[str, typer.Option("--python", help="The interpreter, as the head's PATH has it.")] = "python",
    install: Annotated[
        str, typer.Option("--install", help="none, pip or uv: installs there what is installed here.")
    ] = "none",
) -> int:
    """Run a job on a Ray cluster: ships this code and starts the same run on the head."""
    if install not in ("none", "pip", "uv"):
        raise JobError(f"--install {install!r} is none of none, pip, uv")
    if install != "none" and "/" in python:
        raise JobError(f"--install makes an environment that {python} is not of; leave out --python")
    from maskfleet.cluster.submit import Submissions

    night = (date or datetime.now(UTC)).date()
    submissions = Submissions(address)
    name = submissions.submit(Job.load(job, set or (), day=night), night, python=python, install=install)  # type: ignore[arg-type]
    if not follow:
        typer.echo(name)
        return 0
    typer.echo(f"submitted {name}", err=True)
    return _follow(submissions, name)


@app.command()
def logs(
    target: Target,
    address: MaybeAddress = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; then with its exit code.")] = False,
    profile: Profile = None,
) -> int:
    """Show a submission's log; without a cluster, the log that the newest run left in its output."""
    if address is None:
        from maskfleet.jobs.outputs.runs import log

        typer.echo(log(output_of(target), profile=profile), nl=False)
        return 0
    submissions, name = found(target, address)
    if follow:
        return _follow(submissions, name)
    typer.echo(submissions.log(name), nl=False)
    return 0


@app.command()
def stop(target: Target, address: Address) -> int:
    """Stop a submission once the shards in work are done; the same job submitted again goes on."""
    submissions, name = found(target, address)
    state = submissions.stop(name)
    typer.echo(f"{name} {state.lower()}")
    return 0 if state in {"STOPPED", "SUCCEEDED", "FAILED"} else 1


@app.command("list")
def list_(
    output: Annotated[str | None, typer.Argument(help="An output, for its runs.")] = None,
    address: MaybeAddress = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """List a cluster's submissions, or an output's runs, the newest first."""
    if address is not None:
        from maskfleet.cluster.submit import Submissions

        rows = Submissions(address).list()
    elif output is not None:
        from maskfleet.jobs.outputs.runs import runs

        rows = runs(output_of(output), profile=profile)
    else:
        raise JobError("give an output to list its runs, or --address to list a cluster's submissions")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        code = "" if row["exit_code"] is None else f"exit {row['exit_code']}"
        typer.echo(f"{row['id']}  {row['state'].lower()}  {code}  {row['name'] or ''}".rstrip())


def submission_status(target: str, address: str, *, profile: str | None) -> dict[str, Any]:
    """A submission as the cluster sees it, and how far its run is as the output says.

    Where the cluster is gone and the job's file tells the output, the latter alone.
    """
    from maskfleet.cluster.submit import UnreachableError
    from maskfleet.jobs.errors import MaskfleetError
    from maskfleet.jobs.outputs.status import status

    try:
        submissions, name = found(target, address)
    except UnreachableError as error:
        if not _is_job(target):
            raise
        typer.echo(f"{error}; this is what the output says", err=True)
        return status(output_of(target), profile=profile)
    info = submissions.info(name)
    try:
        run = status(info["output"], profile=profile) if info["output"] else None
    except MaskfleetError as error:  # the output may be out of this machine's reach
        run = {"unknown": str(error)}
    return {**info, "run": run}


def found(target: str, address: str) -> "tuple[Submissions, str]":
    """A cluster's submissions, and which of them is meant."""
    from maskfleet.cluster.submit import Submissions

    submissions = Submissions(address)
    return submissions, submissions.newest(Job.load(target).name) if _is_job(target) else target


def output_of(target: str) -> str:
    """The output that is meant, by itself or by its job."""
    return Job.load(target).output if _is_job(target) else target


def _is_job(target: str) -> bool:
    return target.endswith((".toml", ".json")) and "://" not in target


def _follow(submissions: "Submissions", name: str) -> int:
    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        return submissions.follow(name, write)
    except KeyboardInterrupt:
        typer.echo(f"\n{name} goes on; stop it with: maskfleet stop {name} --address …", err=True)
        raise
