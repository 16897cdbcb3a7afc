"""The unfinished shards, and the decision after a failed attempt. Pure: no storage, no clock.

A dying worker holds up to two shards, and at most one of them is to blame. So both become *suspects*. A suspect goes
to a worker without other shards: if that worker dies too, the suspect is to blame. After `attempts` such deaths the
shard is split in two. Each half that is to blame again is split after one more worker, and so on, down to a single
image. That image fails after `attempts` deaths.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from maskfleet.jobs.ledger.manifest import Shard

Verdict = Literal["again", "split", "give_up"]


@dataclass(frozen=True)
class Task:
    """A shard to attempt, and its history.

    Attributes:
        shard: The shard.
        alone: Whether it is a suspect and must be its worker's only shard.
        deaths: Number of workers that died with this shard as their only one.
    """

    shard: Shard
    alone: bool = False
    deaths: int = 0


class Backlog:
    """The shards of a run without a commit.

    Args:
        shards: Shards in order, consumed lazily, so there may be millions. It yields None while the next shard is not
            planned yet.
        attempts: Worker deaths tolerated per shard before it is split, and per image before it fails.
    """

    def __init__(self, shards: Iterable[Shard | None], *, attempts: int) -> None:
        self._fresh: Iterator[Shard | None] = iter(shards)
        self._again: deque[Task] = deque()
        self._attempts = attempts
        self._next: Shard | None = None
        self._suspect_last = False
        self._more = True
        """Whether `_fresh` may hold another shard."""
        self._look()

    def __bool__(self) -> bool:
        self._look()
        return bool(self._again) or self._next is not None or self._more

    def _look(self) -> None:
        if self._next is None and self._more:
            try:
                self._next = next(self._fresh)
            except StopIteration:
                self._more = False

    @property
    def waits(self) -> bool:
        """Whether the next shard is not planned yet, and nothing else is left."""
        self._look()
        return not self._again and self._next is None and self._more

    def take(self, *, idle: bool) -> Task | None:
        """Take the next task for a worker; None if there is none at the moment.

        Args:
            idle: Whether the worker has no shard and may get a suspect.
        """
        # Suspects alternate with fresh shards, so they neither delay fresh shards nor hide a job in which most shards
        # fail.
        self._look()
        held_back = self._suspect_last and self._next is not None
        if self._again and (not self._again[0].alone or (idle and not held_back)):
            task = self._again.popleft()
            self._suspect_last = task.alone
            return task
        if self._next is None:
            return None
        task, self._next = Task(self._next), None
        self._suspect_last = False
        return task

    def put_back(self, task: Task) -> None:
        """Put a task back as the next one. Its worker left for reasons unrelated to the shard."""
        self._again.appendleft(task)

    def died(self, task: Task, *, alone: bool) -> Verdict:
        """Decide what happens after a failed attempt.

        Args:
            task: The task.
            alone: Whether the worker had no other shard.

        Returns:
            "again": the task is queued again. "split": the caller commits the split, then calls `halves`.
            "give_up": the caller commits the only image of the shard as failed.
        """
        if not alone:
            self._again.append(replace(task, alone=True))
            return "again"
        deaths = task.deaths + 1
        if deaths < self._attempts:
            self._again.append(replace(task, alone=True, deaths=deaths))
            return "again"
        return "give_up" if len(task.shard) == 1 else "split"

    def halves(self, task: Task) -> None:
        """Add the halves of a shard, as suspects."""
        for half in task.shard.halves():
            # The shard is known to be at fault, so one more death splits a half. A single image gets all attempts.
            deaths = 0 if len(half) == 1 else self._attempts - 1
            self._again.append(Task(half, alone=True, deaths=deaths))
