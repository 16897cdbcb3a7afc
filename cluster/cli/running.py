"""Commands processing images: plan, run, backfill, retry, redo."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from maskfleet.cluster.cli import options
from maskfleet.cluster.cli.targets import place_of, reached, with_job
from maskfleet.cluster.terminal import console, signals
from maskfleet.cluster.terminal.plan import lines as plan_lines
from maskfleet.cluster.terminal.progress import progress, training
from maskfleet.cluster.terminal.summary import summary
from maskfleet.jobs.errors import JobError, Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.words import counted

_PLAN_STOPPED = "stopped; a plan writes nothing"


@with_job
def plan(job: Job, *, as_json: options.AsJson = False) -> int:
    """Show what a run would do, with its estimated duration and cost. Writes nothing.

    Lists the input, processes a small sample on this machine to estimate duration and cost, and warns of masks likely
    to be wrong. Estimating costs needs prices in the job's [prices] section.

    Examples:
      maskfleet plan job.toml
      maskfleet plan --input images/ --output out/ --weights nuclei
    """
    with signals.stopping(_PLAN_STOPPED), progress() as view:
        try:
            result = _planned(job, view.phase)
        except KeyboardInterrupt:
            return signals.stopped(_PLAN_STOPPED)
    if as_json:
        console.show_json(result)
    else:
        for line in plan_lines(result):
            typer.echo(line)
    return 0


def _planned(job: Job, phase: Callable[[str], None]) -> dict[str, Any]:
    """Return a plan as JSON."""
    began = time.perf_counter()
    phase("loading PyTorch")
    from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values, threads_of
    from maskfleet.jobs.planning.mask_checks import warnings
    from maskfleet.jobs.run.begin import check_output, start_plan
    from maskfleet.jobs.tools.estimate import estimate
    from maskfleet.jobs.training.finetune import apply_finished_finetuning

    phase("loading the weights")
    work = apply_finished_finetuning(job)
    loaded = load_weights(work)
    mask_values(work, loaded)
    fingerprint = fingerprint_of(work, loaded)
    before = time.perf_counter() - began
    phase("listing the input")
    planned = start_plan(work, fingerprint)
    check_output(work)
    manifest = planned.manifest
    phase("timing a sample")
    result = estimate(work, planned, fingerprint, before=before).to_dict()
    phase("checking masks of a sample")
    result["warnings"] = warnings(work, loaded, manifest, threads=threads_of(work))
    if nameless := planned.planning.nameless:
        result["warnings"].append(
            f"the output cannot hold the {counted(nameless, 'mask')} with the longest names; these images will "
            "fail (mask_name): rename them, or set masks.format to tar"
        )
    if work.finetune.images:
        result["warnings"].append(
            "the new weights are not trained yet; this plan uses the current weights, but a run trains first"
        )
    return result


@with_job
def run(
    job: Job, *, address: options.Address = None, no_ray: options.NoRay = False, as_json: options.AsJson = False
) -> int:
    """Write masks and statistics for every image of the input.

    Resumes the newest unfinished run of the same job. Otherwise processes the images that are new, changed, or made
    with other weights or settings. Ctrl-C or SIGTERM finishes the shards in progress; run the same command to resume.

    Examples:
      maskfleet run job.toml
      maskfleet run job.toml --set run.shard_size=64 --only new --limit 1000
      maskfleet run --input s3://bucket/images/ --output s3://bucket/masks/ --weights nuclei
    """
    return run_job(job, address=address, no_ray=no_ray, as_json=as_json)


def backfill(
    job: options.JobFile,
    first: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="First day, inclusive.")
    ],
    last: Annotated[
        datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Last day, inclusive.")
    ],
    sets: options.Set = None,
    address: options.Address = None,
    no_ray: options.NoRay = False,
    as_json: options.AsJson = False,
) -> int:
    """Run a job once for each day of a period, the earliest first.

    The input of the job must contain {date}. A finished day costs only the listing of its input.

    Examples:
      maskfleet backfill job.toml --from 2026-11-01 --to 2026-11-07
    """
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    works = [Job.load(job, sets or (), day=day.date()) for day in days]
    if not works:
        raise JobError("--to is before --from; swap them")
    if len({work.input for work in works}) < len(works):
        raise JobError("the job's input does not depend on {date}, so every day would be the same; add {date} to it")
    code = 0
    for day, work in zip(days, works, strict=True):
        console.say(f"{day:%Y-%m-%d}")
        code = max(code, run_job(reached(work), address=address, no_ray=no_ray, as_json=as_json, last=False))
        if code == signals.STOPPED:
            break
    return code


def retry(
    output: options.OutputOrJob,
    classes: options.FailureKinds,
    sets: options.Set = None,
    address: options.Address = None,
    no_ray: options.NoRay = False,
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> int:
    """Process failed images again, by kind of failure.

    Uses the job stored with the newest run of the output. Includes failures never retried by a normal run, such as
    corrupt files.

    Examples:
      maskfleet retry out/ --class crash --class oom
    """
    from maskfleet.jobs.outputs.status import newest_job

    place = place_of(output, profile=profile)
    newest = newest_job(place.output, profile=place.profile)
    newest["select"] = {"classes": classes}
    return run_job(Job.of(newest, sets or ()), address=address, no_ray=no_ray, as_json=as_json)


def redo(
    output: options.OutputOrJob,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Keys of images, or unique endings of them.")
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option("--shard", metavar="RUN/SHARD", help="All images of a shard, as verify names it. Repeatable."),
    ] = None,
    runs: Annotated[
        list[str] | None, typer.Option("--run", metavar="RUN", help="All images of a run. Repeatable.")
    ] = None,
    sets: options.Set = None,
    address: options.Address = None,
    no_ray: options.NoRay = False,
    profile: options.Profile = None,
    as_json: options.AsJson = False,
) -> int:
    """Process images again whose masks or rows are lost or damaged.

    Uses the newest job of their input. Images done again by a later run are left out. If the command is interrupted,
    the next run of the job does the rest.

    Examples:
      maskfleet redo out/ well-0003.png
      maskfleet redo out/ --shard 20261128T020000.000-1a2b3c/00003
    """
    from maskfleet.jobs.outputs.redo import redo as mark

    if not (keys or shards or runs):
        raise JobError("no images are named; give KEY, --shard or --run")
    place = place_of(output, profile=profile)
    found = mark(
        place.output, keys=keys or (), shards=shards or (), runs=runs or (), profile=place.profile, waiting=console.say
    )
    console.say(f"{counted(found.images, 'image')} to do again")
    for name in found.inputs:
        console.say(f"no run of {name} is left; run its job: it does the images of this input")
    code = 0
    for number, job in enumerate(found.jobs, 1):
        last = number == len(found.jobs)
        code = max(code, run_job(Job.of(job, sets or ()), address=address, no_ray=no_ray, as_json=as_json, last=last))
        if code == signals.STOPPED:
            break
    return code


def run_job(job: Job, *, address: str | None, no_ray: bool, as_json: bool, last: bool = True) -> int:
    """Run a job, with progress on stderr and the outcome on stdout.

    Args:
        job: The job.
        address: Ray cluster; None for RAY_ADDRESS, otherwise a local Ray.
        no_ray: Whether to run in this process.
        as_json: Whether to print the outcome as JSON.
        last: Whether the process ends after this run and need not wait for a Ray still starting.

    Returns:
        The exit code.
    """
    began = time.monotonic()
    with signals.stopping() as stop, progress() as view:
        run_with: dict[str, Any] = {
            "on_progress": view.progress, "on_training_step": training(), "on_phase": view.phase, "stopped": stop,
            "draining": stop.draining,
        }  # fmt: skip
        view.phase("loading PyTorch")
        try:
            if no_ray:
                from maskfleet.jobs.outputs.report.run import run as run_on

                loading = time.monotonic() - began
                done = run_on(job, **run_with)
            else:
                from maskfleet.cluster import auth

                auth.settle()
                from maskfleet.cluster.connection import Connection

                connection = Connection(address)
                if last and not job.finetune.images:  # training may take hours before Ray is needed
                    connection.begin()
                from maskfleet.cluster.driver import Fleet
                from maskfleet.jobs.outputs.report.run import run as run_on

                fleet = Fleet(connection)
                loading = time.monotonic() - began
                try:
                    done = run_on(job, fleet, **run_with)
                finally:
                    connection.close(wait=not last)
        except (Stopped, KeyboardInterrupt):
            return signals.stopped()
    if as_json:
        console.show_json(done.to_json())
    else:
        summary(job, done, seconds=time.monotonic() - began, loading=loading)
    return done.exit_code
