"""Which shard goes out next, and what to do about one that kills its worker. Pure: no storage, no clock.

A worker that dies had up to two shards, and only one of them, or neither, is to blame. So both
become *suspects*, and a suspect goes to a worker alone: when that one dies too, the blame is exact.
A suspect that has cost `attempts` workers alone is cut in two, and so are its guilty halves, at one
worker each, down to a single image; that one fails after `attempts` workers.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from maskfleet.jobs.ledger.manifest import Shard

Verdict = Literal["again", "split", "give_up"]


@dataclass(frozen=True)
class Task:
    """A shard to be done.

    Attributes:
        shard: Which.
        alone: Whether its worker must have nothing else.
        deaths: Workers that it has cost alone.
    """

    shard: Shard
    alone: bool = False
    deaths: int = 0


class Backlog:
    """The shards of a run that are not done.

    Args:
        shards: In order. Taken one by one, so it may be an iterator over millions; None of it means that the next
            shard is not known yet.
        attempts: Workers that a shard may cost before it is cut, and an image before it fails.
    """

    def __init__(self, shards: Iterable[Shard | None], *, attempts: int) -> None:
        self._fresh: Iterator[Shard | None] = iter(shards)
        self._again: deque[Task] = deque()
        self._attempts = attempts
        self._next: Shard | None = None
        self._suspect_last = False
        self._more = True
        """Whether `_fresh` may have another."""
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
        """Whether there is nothing to take right now, and yet more may come."""
        self._look()
        return not self._again and self._next is None and self._more

    def take(self, *, idle: bool) -> Task | None:
        """The next task for a worker.

        Args:
            idle: Whether it has nothing else, and so may have a suspect.
        """
        # By turns with the others: a bad shard must not hold them back, and whether most are bad shows soon.
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
        """Do it again, first; nothing happened that it could be to blame for."""
        self._again.appendleft(task)

    def died(self, task: Task, *, alone: bool) -> Verdict:
        """Its worker died, or it raised an error.

        Args:
            task: What the worker had.
            alone: Whether that was all.

        Returns:
            "again": it will be taken again. "split": put its halves in with `halves`, once that is
            on record. "give_up": its one image must fail.
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
        """Put the halves of a shard in, as suspects."""
        for half in task.shard.halves():
            # The guilt of the whole is proven, so one more worker convicts a half; an image has all its chances.
            deaths = 0 if len(half) == 1 else self._attempts - 1
            self._again.append(Task(half, alone=True, deaths=deaths))
