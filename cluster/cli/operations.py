"""Commands on current and past runs, local or on a Ray cluster: submit, status, list, logs, stop.

Without a cluster's address they read the records in the output, which outlive any cluster.
"""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.targets import is_job_file, place_of
from maskfleet.cluster.terminal import console
from maskfleet.cluster.terminal.followed import Followed
from maskfleet.cluster.terminal.status import lines as status_lines
from maskfleet.jobs.errors import JobError, MaskfleetError
from maskfleet.jobs.job.schema import Job

if TYPE_CHECKING:  # imports Ray
    from maskfleet.cluster.submit import Submissions
    from maskfleet.jobs.outputs.status import Status


def submit(
    job: options.JobFile,
    address: options.Dashboard,
    sets: options.Set = None,
    date: options.Date = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show progress until the end, and exit with the run's exit code.")
    ] = False,
    python: Annotated[
        str,
        typer.Option("--python", metavar="PROGRAM", help="Python interpreter on the head node."),
    ] = "python",
    install: Annotated[
        Literal["none", "pip", "uv"],
        typer.Option(
            "--install",
            metavar="TOOL",
            help="Tool for installing this machine's package versions on the cluster first: pip, uv or none.",
        ),
    ] = "none",
) -> int:
    """Run a job on a Ray cluster.

    Ships this version of maskfleet and the job to the head node of the cluster, starts the run there, and prints its
    submission id.

    Examples:
      maskfleet submit job.toml --address http://10.0.0.5:8265 --follow
    """
    if install != "none" and "/" in python:
        raise JobError(f"--install creates a new environment, so {python} cannot be used; omit --python")
    from maskfleet.cluster.submit import Submissions

    night = (date or datetime.now(UTC)).date()
    submissions = Submissions(address)
    name = submissions.submit(Job.load(job, sets or (), day=night), night, python=python, install=install)
    if not follow:
        typer.echo(name)
        return 0
    console.say(f"submitted {name}")
    return _follow(submissions, name, events=False)


def status(
    target: options.Target,
    address: options.OptionalDashboard = None,
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the state of the newest run, or of a submission.

    Examples:
      maskfleet status out/
      maskfleet status job.toml --address http://10.0.0.5:8265
    """
    if address is None:
        found = _run_status(target, profile=profile)
        if as_json:
            console.show_json(asdict(found))
            return
        for line in status_lines(found):
            typer.echo(line)
    else:
        console.show(_submission_status(target, address, profile=profile), as_json=as_json)


def list_(
    output: options.OptionalTarget = None,
    address: options.OptionalDashboard = None,
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> None:
    """List the runs of an output, or the submissions of a cluster.

    Newest first.

    Examples:
      maskfleet list out/
      maskfleet list --address http://10.0.0.5:8265
    """
    if address is not None:
        from maskfleet.cluster.submit import Submissions

        rows = Submissions(address).list()
    elif output is not None:
        from maskfleet.jobs.outputs.runs import runs

        place = place_of(output, profile=profile)
        rows = [asdict(entry) for entry in runs(place.output, profile=place.profile)]
        if not rows:
            raise JobError(f"there is no run in {place.output}; correct the path")
    else:
        raise JobError("give an output to list its runs, or --address to list the submissions of a cluster")
    if as_json:
        console.show_json(rows)
        return
    for row in rows:
        code = "" if row["exit_code"] is None else f"exit {row['exit_code']}"
        typer.echo(f"{row['id']}  {row['state'].lower()}  {code}  {row['name'] or ''}".rstrip())


def logs(
    target: options.Target,
    address: options.OptionalDashboard = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="With --address: show the log until the end, and exit with the run's exit code."),
    ] = False,
    profile: options.Profile = None,
) -> int:
    """Show the log of the newest run, or of a submission.

    The log of a run has one JSON object per line. Runs with --no-ray keep none.

    Examples:
      maskfleet logs out/
      maskfleet logs job.toml --address http://10.0.0.5:8265 --follow
    """
    if address is None:
        from maskfleet.jobs.outputs.runs import log

        place = place_of(target, profile=profile)
        typer.echo(log(place.output, profile=place.profile), nl=False)
        return 0
    submissions, name = _found(target, address)
    if follow:
        return _follow(submissions, name, events=True)
    typer.echo(submissions.log(name), nl=False)
    return 0


def stop(target: options.Submission, address: options.Dashboard) -> int:
    """Stop a submission after its shards in progress.

    Submit the same job again to resume it.

    Examples:
      maskfleet stop job.toml --address http://10.0.0.5:8265
    """
    submissions, name = _found(target, address)
    state = submissions.stop(name)
    typer.echo(f"{name} {state.lower()}")
    return 0 if state in {"STOPPED", "SUCCEEDED", "FAILED"} else 1


def _run_status(target: str, *, profile: str | None) -> "Status":
    from maskfleet.jobs.outputs.status import status as status_of

    place = place_of(target, profile=profile)
    return status_of(place.output, profile=place.profile)


def _submission_status(target: str, address: str, *, profile: str | None) -> dict[str, Any]:
    """Return the state of a submission from its cluster, and of its run from the output.

    Without the cluster, return the state of the run alone if the target is a job file.
    """
    from maskfleet.cluster.submit import UnreachableError

    try:
        submissions, name = _found(target, address)
    except UnreachableError as error:
        if not is_job_file(target):
            raise
        console.say(f"{error}. Showing the state in the output instead")
        return asdict(_run_status(target, profile=profile))
    info = submissions.info(name)
    try:
        run = asdict(_run_status(info["output"], profile=profile)) if info["output"] else None
    except MaskfleetError as error:  # this machine may have no access to the output
        run = {"unknown": str(error)}
    return {**info, "run": run}


def _found(target: str, address: str) -> "tuple[Submissions, str]":
    """Return the submissions of a cluster, and the id of the one named by a target."""
    from maskfleet.cluster.submit import Submissions

    submissions = Submissions(address)
    return submissions, submissions.newest(Job.load(target).name) if is_job_file(target) else target


def _follow(submissions: "Submissions", name: str, *, events: bool) -> int:
    """Show the log of a submission until its end, with the events for programs or without."""

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    shown = write if events else Followed(write)
    try:
        code = submissions.follow(name, shown)
        if isinstance(shown, Followed):
            shown.close()
        return code
    except KeyboardInterrupt:
        console.say(f"\n{name} is still running; stop it with: maskfleet stop {name} --address …")
        raise
