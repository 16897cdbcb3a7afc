"""Outcomes on stdout: the summary of a run, and the scores of a training."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import typer

from maskfleet.cluster.terminal.console import counted, err
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.formats import mask_format

if TYPE_CHECKING:
    from maskfleet.jobs.run.summary import RunSummary
    from maskfleet.jobs.training.record import Evaluation  # imports torch

_STEPS = {"plan": "plan", "ray": "Ray", "worker": "first worker", "shard": "first shard"}


def summary(job: Job, run: "RunSummary") -> None:
    """Print the outcome of a run."""
    if not run.images:
        typer.echo(f"nothing to do: every image is up to date (run {run.run_id})")
        lines = _left_alone(run)
    else:
        lines = chain(_counts(run), _left_alone(run), _speed(run), _isolation(run), _places(job, run))
    for line in lines:
        typer.echo(line)
    for problem in _problems(job, run) if run.exit_code else ():
        err.print(f"maskfleet: {problem}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def _problems(job: Job, run: "RunSummary") -> Iterator[str]:
    if run.damaged_containers:
        files = counted(run.damaged_containers, "tar or Parquet file")
        have = "is" if run.damaged_containers == 1 else "are"
        yield f"{files} {have} damaged, and some of the images in there are missing; the statistics table names them"
    if run.images and run.failed / run.images > job.run.max_error_rate:
        yield (
            f"{run.failed / run.images:.1%} of the images failed and run.max_error_rate allows "
            f"{job.run.max_error_rate:.1%}; the statistics table has the reason for each image"
        )
    if run.exports_failed:
        yield (
            f"{counted(run.exports_failed, 'mask')} could not be exported, such as {run.export_failure}; correct this, "
            "and the next run exports them"
        )


def _counts(run: "RunSummary") -> Iterator[str]:
    errors = ", ".join(f"{count} {name}" for name, count in run.errors.items())
    yield f"run      {run.run_id}, {run.status} in {run.seconds:.1f} s"
    yield f"images   {run.images}: {run.ok} ok, {run.failed} failed{f' ({errors})' if errors else ''}"


def _left_alone(run: "RunSummary") -> Iterator[str]:
    if run.left_alone:
        reasons = ", ".join(f"{count} {reason}" for reason, count in run.left_alone.items())
        yield f"left     {counted(sum(run.left_alone.values()), 'file')} alone: {reasons}"


def _isolation(run: "RunSummary") -> Iterator[str]:
    from maskfleet.jobs.isolation.confinement import MEANS

    if run.decoder_isolation is not None and (missing := [name for name in MEANS if name not in run.decoder_isolation]):
        yield (
            f"safety   decoded without {' and '.join(missing)}, which the kernel or its container withholds: a hostile "
            "image might reach what this user can; see docs/security.md"
        )


def _speed(run: "RunSummary") -> Iterator[str]:
    from maskfleet.jobs.network.tuning import Tuning

    yield f"speed    {run.images_per_second:.1f} images/s{_forward_share(run)}"
    if steps := run.start_seconds:
        parts = ", ".join(f"{_STEPS[step]} {seconds:.1f}" for step, seconds in steps.items())
        yield f"start    {sum(steps.values()):.1f} s to the first masks: {parts}"
    if run.speed.limit:
        yield f"limit    {run.speed.limit}"
    if run.tuning and (sentence := Tuning(**run.tuning).sentence):
        yield f"exact    {sentence}"
    for shape, tried in run.short_of_memory.items():
        yield f"memory   {shape} px: {', then '.join(tried)}"


def _forward_share(run: "RunSummary") -> str:
    share, forward = run.speed.forward_share, run.speed.forward
    if not share or not forward:
        return ""
    return (
        f"; {share:.0%} of the bare forward pass ({1 / forward['seconds_per_image']:.1f} at "
        f"{forward['width']}×{forward['height']} px in {forward['precision']})"
    )


def _places(job: Job, run: "RunSummary") -> Iterator[str]:
    from maskfleet.jobs.ledger import compacted

    output = job.output.rstrip("/")
    for label, place in mask_format(job.masks.format).locations(output, run.run_id):
        yield f"{label:<8} {place}"
    yield f"table    {output}/{compacted.folder_of(run.run_id)}/"
    query = f"SELECT status, count(*) FROM '{output}/stats/**/*.parquet' GROUP BY status"
    yield f'DuckDB   duckdb -c "{query}"'


def scores(name: str, evaluation: "Evaluation | None") -> None:
    """Print the scores of weights on the validation images: one line per class, with 95 % intervals.

    Args:
        name: First word of each line.
        evaluation: The scores; None prints nothing.
    """
    if evaluation is None:
        return
    for row in evaluation.classes:
        shown = ", ".join(f"{kind} {interval}" for kind, interval in row.intervals.items())
        typer.echo(f"{name:<8} class {row.number} on {counted(evaluation.images, 'validation image')}: {shown}")
