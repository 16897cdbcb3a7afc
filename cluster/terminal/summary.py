"""Outcomes on stdout: the summary of a run, and the scores of a training."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import typer

from maskfleet.cluster.terminal import console
from maskfleet.cluster.terminal.console import wrapped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.words import counted, duration

if TYPE_CHECKING:
    from maskfleet.jobs.run.summary import RunSummary
    from maskfleet.jobs.training.record import Evaluation  # imports torch

_STEPS = {"plan": "plan", "ray": "Ray", "worker": "worker", "shard": "first shard"}


def summary(job: Job, run: "RunSummary", *, seconds: float, loading: float) -> None:
    """Print the outcome of a run.

    Args:
        job: The job.
        run: The outcome.
        seconds: Seconds since the start of the command.
        loading: Seconds until PyTorch was loaded.
    """
    if not run.images:
        typer.echo(f"nothing to do: every image is up to date (run {run.run_id})")
        lines = chain(_left_alone(run), _warnings(run))
    else:
        lines = chain(
            _counts(run),
            _left_alone(run),
            _speed(run, seconds, loading),
            _isolation(run),
            _warnings(run),
            _places(job, run),
        )
    for line in lines:
        typer.echo(line)
    for problem in _problems(job, run) if run.exit_code else ():
        console.complain(problem)


def _problems(job: Job, run: "RunSummary") -> Iterator[str]:
    if run.damaged_containers:
        files = counted(run.damaged_containers, "tar or Parquet file")
        have = "is" if run.damaged_containers == 1 else "are"
        yield f"{files} {have} damaged, and some of the images in there are missing; the statistics table names them"
    if run.images and run.failed / run.images > job.run.max_error_rate:
        share = "every image" if not run.ok else f"{run.failed / run.images:.1%} of the images"
        yield (
            f"{share} failed, and run.max_error_rate allows {job.run.max_error_rate:.1%}; {_most_frequent(job, run)}"
            "the report and the table have the reasons"
        )
    if run.exports_failed:
        yield (
            f"{counted(run.exports_failed, 'mask')} could not be exported, such as {run.export_failure}; correct this, "
            "and the next run exports them"
        )


def _most_frequent(job: Job, run: "RunSummary") -> str:
    """Return the most frequent kind of failure, with an example and its message."""
    from maskfleet.jobs.ledger import compacted
    from maskfleet.jobs.storage.schemes import open_storage

    columns = ["key", "error_class", "error_message"]
    for kind in [*run.errors][:1]:
        for table in compacted.row_groups(open_storage(job.output, profile=job.profile), run.run_id, columns):
            for row in table.to_pylist():
                if row["error_class"] == kind:
                    return f"mostly {kind}, such as {row['key']} ({row['error_message']}); "
    return ""


def _counts(run: "RunSummary") -> Iterator[str]:
    errors = ", ".join(f"{count:,} {name}" for name, count in run.errors.items())
    yield f"run      {run.run_id}: {run.status}"
    yield f"images   {run.images:,}: {run.ok:,} ok, {run.failed:,} failed{f' ({errors})' if errors else ''}"


def _left_alone(run: "RunSummary") -> Iterator[str]:
    if run.left_alone:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in run.left_alone.items())
        yield from wrapped("left", f"{counted(sum(run.left_alone.values()), 'file')} alone: {reasons}")


def _isolation(run: "RunSummary") -> Iterator[str]:
    from maskfleet.jobs.isolation.confinement import MEANS

    if run.decoder_isolation is not None and (missing := [name for name in MEANS if name not in run.decoder_isolation]):
        yield (
            f"safety   decoded without {' and '.join(missing)}, which the kernel or its container withholds: a hostile "
            "image might reach what this user can; see docs/security.md"
        )


def _warnings(run: "RunSummary") -> Iterator[str]:
    for warning in run.warnings:
        yield from wrapped("warning", warning["message"])


def _speed(run: "RunSummary", seconds: float, loading: float) -> Iterator[str]:
    from maskfleet.jobs.network.tuning import Tuning

    if run.start_seconds:
        steps = {"PyTorch": loading}
        steps |= {_STEPS[step]: passed for step, passed in run.start_seconds.items()}
        parts = ", ".join(f"{step} {passed:.1f}" for step, passed in steps.items() if passed >= 0.05)
        yield from wrapped("time", f"{duration(seconds)}; first masks after {duration(sum(steps.values()))} ({parts})")
    else:
        yield from wrapped("time", duration(seconds))
    yield from wrapped("speed", f"{run.images_per_second:.1f} images/s, from the start of the workers to the end")
    yield from _forward_share(run)
    if run.speed.limit:
        yield from wrapped("limit", run.speed.limit)
    if run.tuning and (sentence := Tuning(**run.tuning).sentence):
        yield from wrapped("exact", sentence)
    for shape, tried in run.short_of_memory.items():
        yield from wrapped("memory", f"{shape} px: {', then '.join(tried)}")


def _forward_share(run: "RunSummary") -> Iterator[str]:
    share, forward = run.speed.forward_share, run.speed.forward
    if not share or not forward:
        return
    how = f"{forward['width']}×{forward['height']} px in {forward['precision']}"
    if share > 1:
        slower = f"it was timed at the start, at {how}, and was slower then"
        yield from wrapped("network", f"100% of the bare forward pass; {slower}")
    else:
        yield from wrapped("network", f"{share:.0%} of the bare forward pass ({how}) while the workers had images")


def _places(job: Job, run: "RunSummary") -> Iterator[str]:
    from maskfleet.jobs.ledger import compacted
    from maskfleet.jobs.outputs.report.write import REPORT
    from maskfleet.jobs.storage.schemes import open_storage

    output = job.output.rstrip("/")
    for label, place in mask_format(job.masks.format).locations(output, run.run_id):
        yield f"{label:<8} {place}"
    report = f"runs/{run.run_id}/{REPORT}"
    if open_storage(output, profile=job.profile).exists(report):  # it is the one thing that may fail
        yield f"report   {output}/{report}"
    yield f"table    {output}/{compacted.folder_of(run.run_id)}/"
    query = f"SELECT status, count(*) FROM '{output}/{compacted.folder_of(run.run_id)}/*.parquet' GROUP BY status"
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
