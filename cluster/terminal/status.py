"""The state of a run and of its output, as a few lines for people."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from maskfleet.jobs.words import counted

if TYPE_CHECKING:
    from maskfleet.jobs.outputs.status import Status


def lines(status: "Status") -> Iterator[str]:
    """Yield the lines of a status."""
    began = datetime.fromisoformat(status.created)
    yield f"run      {status.run_id}: {status.state.replace('_', ' ')}, begun {began:%Y-%m-%d %H:%M} UTC"
    if status.images:
        left = f"; {counted(status.shards_left, 'shard')} left" if status.shards_left else ""
        yield (f"images   {status.done:,} of {status.images:,} done: {status.ok:,} ok, {status.failed:,} failed{left}")
    else:
        yield "images   nothing to do: every image was up to date"
    if status.left_alone:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in status.left_alone.items())
        yield f"left     {counted(sum(status.left_alone.values()), 'file')} alone: {reasons}"
    if status.totals:
        outcomes = ", ".join(f"{count:,} {_OUTCOMES.get(name, name)}" for name, count in status.totals.items())
        yield f"output   {counted(sum(status.totals.values()), 'image')} over all finished runs: {outcomes}"
    yield f"weights  {status.weights[:12]}"
    if status.problem:
        yield f"problem  {status.problem}"


_OUTCOMES = {"redo": "to be done again"}
