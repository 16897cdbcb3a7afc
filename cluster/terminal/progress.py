"""Progress on stderr: one live line in a terminal, otherwise a plain line now and then.

The phase before the first images is shown from the first second, with the seconds it has taken.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.live import Live

from maskfleet.cluster.terminal.console import err, say
from maskfleet.cluster.terminal.live_line import Shown
from maskfleet.cluster.terminal.pace import Pace
from maskfleet.jobs.words import duration

_PLAIN_SECONDS = (15.0, 10.0, 60.0)
"""Seconds of silence before the first plain line, before those of the first minutes, and before all later ones."""

_FIRST_MINUTES = 180.0

_LONGEST_PHASE = 40
"""Characters of a phase; a longer one is a sentence and gets a line of its own."""


class ProgressView:
    """What is shown of a run while it goes on.

    Attributes:
        shown: The values shown.
    """

    def __init__(self) -> None:
        self.shown = Shown(began=time.monotonic(), pace=Pace())
        self._announced: set[str] = set()
        self._notices: set[str] = set()

    def phase(self, name: str) -> None:
        """Show that a phase begins, such as "starting Ray"."""
        if len(name) > _LONGEST_PHASE:
            say(name)
            name = "waiting for the lock"
        self.shown.enter(name)

    def progress(self, run: Any, progress: Any) -> None:
        """Show the progress of a run, and print each of its notices once."""
        if run.run_id not in self._announced:
            self._announced.add(run.run_id)
            if run.output.commits.mode == "driver":
                say(_driver_commits(run.record.get("commit_mode_reason")))
        for notice in progress.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                say(notice)
        self.shown.update(run, progress)


@contextmanager
def progress() -> Iterator[ProgressView]:
    """Show the progress of a run within this context."""
    view = ProgressView()
    # Not rich's own test: FORCE_COLOR makes it take a pipe for a terminal.
    if sys.stderr.isatty() and not err.is_dumb_terminal:
        with Live(view.shown, console=err, transient=True, refresh_per_second=5):
            yield view
        return
    ending = threading.Event()
    thread = threading.Thread(target=_plain_lines, args=(view.shown, ending), name="progress", daemon=True)
    thread.start()
    try:
        yield view
    finally:
        ending.set()
        thread.join()


def _plain_lines(shown: Shown, ending: threading.Event) -> None:
    """Print a line now and then, and only if it differs from the one before."""
    pause, before = _PLAIN_SECONDS[0], ""
    while not ending.wait(pause):
        line = shown.plain()
        if line != before:
            say(line)
        before = line
        pause = _PLAIN_SECONDS[1 if shown.seconds < _FIRST_MINUTES else 2]


def _driver_commits(reason: str | None) -> str:
    return (
        f"only the driver commits, one shard at a time, since {reason or 'the storage ignores If-None-Match'}; results "
        "are the same"
    )


def training() -> Callable[[Any], None]:
    """Return a function showing the progress of a training: one line every ten seconds and one for the last step."""
    last = 0.0

    def show(moment: Any) -> None:
        nonlocal last
        step = moment.step
        if time.monotonic() - last < _PLAIN_SECONDS[1] and step.number < moment.steps:
            return
        last = time.monotonic()
        saving = ", checkpointing" if step.checkpointing else ""
        parts = f", batches in {step.micro_batches} micro-batches" if step.micro_batches > 1 else ""
        dice = "" if moment.dice is None else f", Dice {moment.dice:.4f}"
        left = f", {duration(moment.seconds_left)} left" if moment.seconds_left > 0 else ""
        say(
            f"step {step.number}/{moment.steps}, loss {step.loss:.4f}{dice}, "
            f"{moment.images_per_second:.1f} images/s, {step.memory / 2**30:.1f} GiB{saving}{parts}{left}"
        )

    return show
