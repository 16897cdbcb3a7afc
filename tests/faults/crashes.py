"""Death, or a long pause, before and after every call of storage, in each of two nights; then the same command again.

The next command must complete, its output must pass `verify`, and every row and mask must be those of nights without
faults. A process that was paused wakes up after another one has taken over and finished.
"""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from faults.calls import Point, die, freeze
from faults.nights import STALE, Kind, Nights, Verdict, series


@dataclass
class Tally:
    """What came of many faults.

    Attributes:
        points: Number of faults injected.
        unreached: Number of points that the run ended before.
        problems: What went wrong, one sentence each.
        seconds: Duration.
    """

    points: int = 0
    unreached: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        said = (
            f"{self.points} faults, {len(self.problems)} problems, {self.unreached} not reached, {self.seconds:.0f} s"
        )
        return "\n".join([said, *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class Sweep:
    """Which faults to inject.

    Attributes:
        kind: Kind of the nights.
        act: `die` or `freeze`.
        within: Whether calls of the operating system are counted, instead of calls of storage.
        changed: Whether the next command is another job, instead of the same one.
        every: Distance between two points; 1 for all.
        first: First point.
        only: Night to inject faults in; None for all.
    """

    kind: Kind
    act: object = die
    within: bool = False
    changed: bool = False
    every: int = 1
    first: int = 1
    only: int | None = None

    def points(self, calls: int) -> Iterator[Point]:
        """Yield the points among so many calls: before and after each of them, in turn."""
        both = (Point(n, after, self.act, self.within) for n in range(1, calls + 1) for after in (False, True))
        return islice(both, self.first - 1, None, self.every)


def swept(sweep: Sweep, bucket: str | None = None, say=lambda line: None) -> Tally:
    """Inject the faults one by one, each into the output of the nights before it.

    Args:
        sweep: The faults.
        bucket: URL of an empty bucket; None for folders.
        say: Called with a line after each fault.
    """
    tally, began = Tally(), time.monotonic()
    names = (f"out-{number}" for number in count())
    with series(sweep.kind, bucket) as nights:
        references, calls = _references(nights, sweep)
        for number in range(sweep.kind.nights) if sweep.only is None else [sweep.only]:
            before = f"reference-{number - 1}"
            for point in sweep.points(len(calls[number])):
                nights.images_of(number)
                output = next(names)
                nights.copy(before, output)
                name = calls[number][point.number - 1]
                where = f"night {number + 1}, {point} ({name})"
                inject = _frozen if sweep.act is freeze else _died
                found = inject(nights, output, point, sweep=sweep, night=number, references=references)
                if found is None:
                    tally.unreached += 1
                else:
                    tally.points += 1
                    tally.problems += (f"{where}: {problem}" for problem in found)
                nights.remove(output)
                say(f"{where}: {'not reached' if found is None else found or 'well'}")
    tally.seconds = time.monotonic() - began
    return tally


def _references(nights: Nights, sweep: Sweep) -> tuple[dict[object, Verdict], list[list[str]]]:
    """Return what nights without faults leave, by night and changes, and the calls of each."""
    found: dict[object, Verdict] = {}
    calls = []
    for number in range(nights.kind.nights):
        nights.images_of(number)
        nights.copy(f"reference-{number - 1}", f"reference-{number}")
        ended, verdict = nights.again(f"reference-{number}", fresh=True, count=True, within=sweep.within)
        first, _ = ended.value()
        assert (first["exit_code"], verdict.problems, verdict.doubled) == (0, [], [])
        calls.append(first["calls"])
        found[number, False] = verdict
        if sweep.changed:
            nights.copy(f"reference-{number - 1}", f"changed-{number}")
            ended, verdict = nights.again(f"changed-{number}", nights.kind.changes, fresh=True)
            assert (ended.value()[0]["exit_code"], verdict.problems) == (0, [])
            found[number, True] = verdict
    return found, calls


def _died(nights: Nights, output: str, point: Point, *, sweep: Sweep, night: int, references) -> list[str] | None:
    ended = nights.run(output, point=point)
    if ended.ok:
        return None
    if ended.error:
        return [f"the run ended with {ended.error}"]
    sets = (nights.kind.changes,) if sweep.changed else ()
    return judged(*nights.again(output, *sets), references[night, sweep.changed])


def _frozen(nights: Nights, output: str, point: Point, *, sweep: Sweep, night: int, references) -> list[str] | None:
    zombie = nights.start(output, point=point)
    if not zombie.frozen():
        return None if zombie.ended().ok else ["the run failed without a fault"]
    later = night + 1 if sweep.changed and night + 1 < nights.kind.nights else night
    try:
        nights.images_of(later)
        time.sleep(2 * STALE)
        strays = later == night
        if later != night:  # the same command first finishes the plan of the night before, as it must
            nights.run(output).value()
        found = judged(*nights.again(output), references[later, False], strays=strays)
    finally:
        zombie.send(signal.SIGCONT)
        woken = zombie.ended()
    if woken.error and not woken.error.startswith("Locked"):
        found.append(f"the woken run ended with {woken.error}")
    after = judged(*nights.again(output), references[later, False], strays=strays)
    return found + [f"after it woke up: {problem}" for problem in after]


def judged(ended, verdict: Verdict | None, expected: Verdict, *, strays: bool = True) -> list[str]:
    if verdict is None:
        return [f"the next command ended with {ended.error or f'signal {ended.signal}'}"]
    first, _ = ended.result
    wrong = [f"the next command exits with {first['exit_code']}"] if first["exit_code"] else []
    return wrong + verdict.faults(expected, strays=strays)
