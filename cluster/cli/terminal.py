"""What a person sees in a terminal: progress on stderr, the outcome on stdout; and how Ctrl-C is heard."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from maskfleet.cluster.cli import table
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.formats import mask_format

if TYPE_CHECKING:
    from maskfleet.jobs.run.summary import RunSummary
    from maskfleet.jobs.training.record import Evaluation  # imports torch

err = Console(stderr=True)

_STEPS = {"plan": "plan", "ray": "Ray", "worker": "first worker", "shard": "first shard"}


def summary(job: Job, run: "RunSummary") -> None:
    """Print the outcome of a run."""
    from maskfleet.jobs.ledger import compacted
    from maskfleet.jobs.network.tuning import Tuning

    output = job.output.rstrip("/")
    if not run.images:
        typer.echo(f"nothing to do: every image is done (run {run.run_id})")
        return
    errors = ", ".join(f"{count} {name}" for name, count in run.errors.items())
    typer.echo(f"run      {run.run_id}, {run.status} in {run.seconds:.1f} s")
    typer.echo(f"images   {run.images}: {run.ok} ok, {run.failed} failed{f' ({errors})' if errors else ''}")
    typer.echo(f"speed    {run.images_per_second:.1f} images/s{_forward_share(run)}")
    if steps := run.start_seconds:
        parts = ", ".join(f"{_STEPS[step]} {seconds:.1f}" for step, seconds in steps.items())
        typer.echo(f"start    {sum(steps.values()):.1f} s to the first masks: {parts}")
    if run.speed.limit:
        typer.echo(f"limit    {run.speed.limit}")
    if run.tuning and (sentence := Tuning(**run.tuning).sentence):
        typer.echo(f"exact    {sentence}")
    for shape, tried in run.short_of_memory.items():
        typer.echo(f"memory   {shape} px: {', then '.join(tried)}")
    for label, place in mask_format(job.masks.format).locations(output, run.run_id):
        typer.echo(f"{label:<8} {place}")
    typer.echo(f"table    {output}/{compacted.folder_of(run.run_id)}/")
    typer.echo(
        f"""DuckDB   duckdb -c "SELECT status, count(*) FROM '{output}/stats/**/*.parquet' GROUP BY status" """.rstrip()
    )
    if run.exit_code:
        rate = run.failed / run.images
        err.print(
            f"maskfleet: {rate:.1%} of the images failed and run.max_error_rate allows {job.run.max_error_rate:.1%}; "
            "the table says why, image by image",
            style="bold red",
            highlight=False,
            soft_wrap=True,
        )


def _forward_share(run: "RunSummary") -> str:
    share, forward = run.speed.forward_share, run.speed.forward
    if not share or not forward:
        return ""
    return (
        f"; {share:.0%} of the bare forward pass ({1 / forward['seconds_per_image']:.1f} at "
        f"{forward['width']}×{forward['height']} px in {forward['precision']})"
    )


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """A command's result, for a person or for a program."""
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for line in table.lines(result):
        typer.echo(line)


def tell_scores(name: str, scored: "Evaluation | None") -> None:
    """Print the scores of weights on the validation images: one line per class, with 95 % intervals."""
    if scored is None:
        return
    for row in scored.classes:
        shown = ", ".join(f"{kind} {interval}" for kind, interval in row.intervals.items())
        typer.echo(f"{name:<8} class {row.number} on {scored.images} validation images: {shown}")


@contextmanager
def draining() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the run to stop after what is in work; a second one ends it at once."""
    asked = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        os.write(2, b"\nstopping after the shards in work; once more to stop at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """A live line in a terminal; elsewhere a plain line every ten seconds."""
    if not err.is_terminal:
        yield _plainprogress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed · {task.fields[busiest]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate=0.0, failed=0, busiest="")

        def show(_: Any, run: Any) -> None:
            bar.update(
                task,
                description="segmenting" if run.shards else "starting",
                total=run.images,
                completed=run.done,
                rate=run.rate,
                failed=run.failed,
                busiest=f"most work in {run.busiest}" if run.busiest else "",
            )

        yield show


def _plainprogress() -> Callable[..., None]:
    last = [0.0]

    def show(_: Any, run: Any) -> None:
        if time.monotonic() - last[0] < 10 and run.done < run.images:
            return
        last[0] = time.monotonic()
        left = (run.images - run.done) / run.rate if run.rate else 0.0
        err.print(
            f"{run.done}/{run.images} images, {run.rate:.1f} images/s, {left:.0f} s left, {run.failed} failed"
            + (f", most work in {run.busiest}" if run.busiest else ""),
            highlight=False,
        )

    return show


def training() -> Callable[[Any], None]:
    """A line every ten seconds, and the last."""
    last = [0.0]

    def show(moment: Any) -> None:
        step = moment.step
        if time.monotonic() - last[0] < 10 and step.number < moment.steps:
            return
        last[0] = time.monotonic()
        saving = ", checkpointing" if step.checkpointing else ""
        parts = f", in {step.parts} parts" if step.parts > 1 else ""
        err.print(
            f"step {step.number}/{moment.steps}, loss {step.loss:.4f}, "
            f"Dice {'not yet known' if moment.dice is None else f'{moment.dice:.4f}'}, "
            f"{moment.images_per_second:.1f} images/s, {step.memory / 2**30:.1f} GiB{saving}{parts}, "
            f"{moment.seconds_left:.0f} s left",
            highlight=False,
        )

    return show
