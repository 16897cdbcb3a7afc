"""The soak: each seed draws a job and faults, runs nights until they are done, and looks for anything wrong.

A seed draws mask format, input, shard size and storage; then, for each of three nights, up to four faults: death at a
call of storage or of the operating system, death at any moment, a process that is paused and wakes up later, two
processes at once, a wrong clock, another job in between, and for a bucket a bad line (resets, lost answers, 503, cut
uploads, truncated answers). After each night the same command must complete, and leave what nights without faults leave.
"""

import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from faults.calls import Point, die, freeze
from faults.children import Child, Ended, forked
from faults.crashes import judged
from faults.nights import CONTAINERS, FORMATS, STALE, Kind, Nights, leftovers, series
from faults.proxy import Proxy, Rule

from maskfleet.jobs.outputs.gc import collect

NIGHTS = 3
_EXPECTED = ("Locked", "StorageError", "NotFound", "JobError: ")
_CALLS = 130
"""About the number of calls of a night; a point beyond its end injects nothing."""


def in_bucket(seed: int) -> bool:
    """Return whether the nights of a seed are in a bucket: one in five, for they take longest."""
    return seed % 5 == 4


def weather(draw: random.Random) -> list[Rule]:
    """Draw the faults of a line to a bucket."""
    return [
        Rule("reset", share=draw.choice((0, 0.05, 0.1))),
        Rule("answer", share=draw.choice((0, 0.1, 0.3))),
        Rule("answer", status=500, code="InternalError", share=draw.choice((0, 0.05))),
        Rule("lost", method="PUT|DELETE", share=draw.choice((0, 0.1, 0.25))),
        Rule("cut", method="PUT", share=draw.choice((0, 0.05))),
        Rule("truncate", method="GET", share=draw.choice((0, 0.1))),
    ]


@dataclass
class Soak:
    """One seed.

    Args:
        seed: The seed.
        bucket: URL of an empty bucket; None for folders.

    Attributes:
        story: What happened, in order.
        problems: What was wrong.
        injected: Number of faults.
    """

    seed: int
    bucket: str | None = None
    story: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    injected: int = 0

    def __post_init__(self):
        self._draw = random.Random(self.seed)
        self._zombies: list[Child] = []
        self._same_job = True

    def run(self) -> "Soak":
        """Run all nights."""
        draw = self._draw
        kind = Kind(
            draw.choice(FORMATS), draw.choice(CONTAINERS), draw.choice((1, 2, 3, 7)), seed=self.seed, nights=NIGHTS
        )
        self.story.append(f"{kind}, {kind.shard_size} a shard, {'bucket' if self.bucket else 'folder'}")
        with ExitStack() as stack:
            nights = stack.enter_context(series(kind, self.bucket))
            proxy = self._proxy(stack)
            for number in range(NIGHTS):
                self._night(nights, number, proxy)
            self._cleaned(nights)
        return self

    def _proxy(self, stack: ExitStack) -> Proxy | None:
        if self.bucket is None:
            return None
        from os import environ

        return stack.enter_context(Proxy(environ["AWS_ENDPOINT_URL_S3"], seed=self.seed))

    def _night(self, nights: Nights, number: int, proxy: Proxy | None) -> None:
        nights.images_of(number)
        nights.copy(f"reference-{number - 1}", f"reference-{number}")
        ended, self._expected = nights.again(f"reference-{number}", fresh=True)
        if not ended.ok:
            raise RuntimeError(f"seed {self.seed}: the nights without faults fail: {ended}")
        for _ in range(self._draw.randint(0 if number else 1, 4)):
            endpoint = self._weather(proxy)
            name = self._draw.choice(("death", "death", "death", "moment", "zombie", "two", "clock", "other job"))
            self.story.append(f"night {number + 1}: {name}{' in bad weather' if endpoint else ''}")
            getattr(self, f"_{name.replace(' ', '_')}")(nights, endpoint)
            self._wake(sometimes=True)
        if proxy:
            self.injected += sum(proxy.injected().values())
            proxy.set()
        self._settle(nights, number)
        if self._zombies:
            self._wake()
            self._settle(nights, number, after=", after the last woke up")

    def _settle(self, nights: Nights, number: int, after: str = "") -> None:
        time.sleep(2 * STALE)
        ended, verdict = nights.again("out")
        if verdict is not None and not self._same_job:
            verdict.doubled.clear()  # each job did the images again, as it must
        found = judged(ended, verdict, self._expected, strays=False)
        self.problems += (f"night {number + 1}{after}: {problem}" for problem in found)

    def _weather(self, proxy: Proxy | None) -> str | None:
        if proxy is None or self._draw.random() < 0.4:
            return None
        self.injected += sum(proxy.injected().values())
        proxy.set(*weather(self._draw))
        return proxy.url

    def _ended(self, ended: Ended, *, may: bool = True) -> None:
        self.story.append(f"  ended with {ended.error or ended.signal or 'success'}")
        if ended.error and not ended.error.startswith(_EXPECTED):
            self.problems.append(f"a run raised {ended.error}\n{ended.trace}")

    def _point(self, act) -> Point:
        within = self.bucket is None and self._draw.random() < 0.5
        number = self._draw.randint(1, _CALLS * (4 if within else 1))
        return Point(number, self._draw.random() < 0.5, act, within)

    # Faults --------------------------------------------------------------------------------------

    def _death(self, nights, endpoint):
        self.injected += 1
        self._ended(nights.run("out", point=self._point(die), endpoint=endpoint))

    def _moment(self, nights, endpoint):
        child = nights.start("out", pause=0.01, endpoint=endpoint)
        time.sleep(self._draw.uniform(0, 0.6))
        self.injected += 1
        child.send(signal.SIGKILL)
        self._ended(child.ended())

    def _zombie(self, nights, endpoint):
        child = nights.start("out", point=self._point(freeze), endpoint=endpoint)
        if child.frozen():
            self.injected += 1
            self._zombies.append(child)
            time.sleep(2 * STALE)
        else:
            self._ended(child.ended())

    def _two(self, nights, endpoint):
        self.injected += 1
        two = [nights.start("out", pause=0.005, endpoint=endpoint) for _ in range(2)]
        for child in two:
            self._ended(child.ended())

    def _clock(self, nights, endpoint):
        self.injected += 1
        wrong = self._draw.choice((-86400.0, -3600.0, 3600.0))
        point = self._point(die) if self._draw.random() < 0.5 else None
        self._ended(nights.run("out", clock=wrong, point=point, endpoint=endpoint))

    def _other_job(self, nights, endpoint):
        self.injected += 1
        self._same_job = False
        self._ended(nights.run("out", nights.kind.changes, point=self._point(die), endpoint=endpoint))

    def _wake(self, *, sometimes: bool = False) -> None:
        for child in list(self._zombies):
            if not sometimes or self._draw.random() < 0.3:
                self._zombies.remove(child)
                child.send(signal.SIGCONT)
                self._ended(child.ended())

    def _cleaned(self, nights: Nights) -> None:
        """Collect the garbage: what remains must be what was there, and no temporary file."""
        before = nights.verdict("out")
        url = nights.output("out")
        forked(lambda: collect(url, grace=0.0, delete=True) and None).value()
        after = nights.verdict("out")
        if (after.rows, after.masks, after.problems) != (before.rows, before.masks, before.problems):
            self.problems.append(f"gc changed the output: {after.problems}")
        if self.bucket is None and (left := leftovers(nights.root / "out")):
            self.problems.append(f"gc left {len(left)} temporary files, such as {left[0]}")


def soaked(seed: int, bucket: str | None = None) -> Soak:
    """Run one seed; a seed that fails a child of its own counts as a problem too."""
    soak = Soak(seed, bucket)
    try:
        return soak.run()
    except RuntimeError as error:
        soak.problems.append(str(error))
        return soak
