"""The command checking machine, storage and cluster before a run."""

from typing import TYPE_CHECKING

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.targets import job_of
from maskfleet.cluster.terminal import console
from maskfleet.jobs.words import counted

if TYPE_CHECKING:
    from maskfleet.jobs.tools.doctor.contract import Finding


def doctor(
    job_file: options.OptionalCheckedJob = None,
    input_: options.Input = None,
    output: options.Output = None,
    sets: options.Set = None,
    address: options.Address = None,
    as_json: options.AsJson = False,
) -> int:
    """Check this machine, and a job's storage and cluster, before a run.

    Each line has a verdict, and a remedy unless it is ok. Rights are tried with small objects, deleted afterwards.
    Exits with code 1 if there is a problem.

    Examples:
      maskfleet doctor
      maskfleet doctor job.toml --address 10.0.0.5:6379
      maskfleet doctor --input s3://bucket/in/ --output s3://bucket/out/
    """
    from maskfleet.cluster.doctor.table import CHECKS
    from maskfleet.jobs.tools.doctor.contract import Subject, examined

    job = None
    if job_file or input_ or output:
        # No network is needed: any weights do for a job from options.
        given = {"input": input_, "output": output, "weights": [] if job_file else ["nuclei"]}
        job = job_of(job_file, given=given, sets=sets or [])
    found = dict(examined(CHECKS, Subject(job=job, address=address)))
    problems = sum(finding.verdict == "problem" for finding in found.values())
    if as_json:
        console.show_json([{"check": name, **vars(finding)} for name, finding in found.items()])
    else:
        _show(found, problems)
    return 1 if problems else 0


def _show(found: "dict[str, Finding]", problems: int) -> None:
    width = max(map(len, found))
    for name, finding in found.items():
        typer.echo(f"{finding.verdict:<8} {name:<{width}}  {finding.text}")
        if finding.remedy:
            typer.echo(f"{'':<8} {'':<{width}}  → {finding.remedy}")
    warnings = sum(finding.verdict == "warning" for finding in found.values())
    typer.echo(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}")
