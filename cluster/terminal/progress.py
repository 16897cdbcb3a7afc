"""Progress on stderr: a live line in a terminal, otherwise a plain line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from maskfleet.cluster.terminal.console import counted, err, say

_SECONDS_BETWEEN_LINES = 10


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Yield a function showing the progress of a run, given the run and its progress."""
    with _shown() as show:
        announced: set[str] = set()

        def announce_and_show(run: Any, progress: Any) -> None:
            if run.run_id not in announced:
                announced.add(run.run_id)
                if run.output.commits.mode == "driver":
                    say(_driver_commits(run.record.get("commit_mode_reason")))
            show(run, progress)

        yield announce_and_show


def _driver_commits(reason: str | None) -> str:
    return (
        f"only the driver commits, one shard at a time, since {reason or 'the storage ignores If-None-Match'}; results "
        "are the same"
    )


@contextmanager
def _shown() -> Iterator[Callable[..., None]]:
    if not err.is_terminal:
        yield _with_notices(_plain_progress())
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
                busiest=f"busiest stage: {run.busiest}" if run.busiest else "",
            )

        yield _with_notices(show)


def _with_notices(show: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Also print each notice of the run once, as soon as it is there."""
    printed = 0

    def noticing(run: Any, progress: Any) -> None:
        nonlocal printed
        for notice in progress.notices[printed:]:
            say(notice)
        printed = len(progress.notices)
        show(run, progress)

    return noticing


def _plain_progress() -> Callable[..., None]:
    last = 0.0

    def show(_: Any, run: Any) -> None:
        nonlocal last
        if time.monotonic() - last < _SECONDS_BETWEEN_LINES and run.done < run.images:
            return
        last = time.monotonic()
        left = (run.images - run.done) / run.rate if run.rate else 0.0
        busiest = f", busiest stage: {run.busiest}" if run.busiest else ""
        say(
            f"{run.done}/{counted(run.images, 'image')}, {run.rate:.1f} images/s, {left:.0f} s left, "
            f"{run.failed} failed{busiest}"
        )

    return show


def training() -> Callable[[Any], None]:
    """Return a function showing the progress of a training: one line every ten seconds and one for the last step."""
    last = 0.0

    def show(moment: Any) -> None:
        nonlocal last
        step = moment.step
        if time.monotonic() - last < _SECONDS_BETWEEN_LINES and step.number < moment.steps:
            return
        last = time.monotonic()
        saving = ", checkpointing" if step.checkpointing else ""
        parts = f", batches in {step.micro_batches} micro-batches" if step.micro_batches > 1 else ""
        say(
            f"step {step.number}/{moment.steps}, loss {step.loss:.4f}, "
            f"Dice {'not yet known' if moment.dice is None else f'{moment.dice:.4f}'}, "
            f"{moment.images_per_second:.1f} images/s, {step.memory / 2**30:.1f} GiB{saving}{parts}, "
            f"{moment.seconds_left:.0f} s left"
        )

    return show
