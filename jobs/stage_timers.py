"""Where a run's time goes: of each stage the seconds that it worked, waited for input, and waited for room.

Counted where work is handed on, by batches and groups, never by pixel: an event costs about a
microsecond.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Literal

State = Literal["busy", "starved", "blocked"]

DEVICE = "device"
"""In place of a stage: that any lane of the device worked. A GPU's lanes share it: it idles only with all of them."""


def busiest(busy: Mapping[str, float]) -> str:
    """The stage with most seconds of work; "" where there was none."""
    stages = [stage for stage in busy if stage != DEVICE]
    return max(stages, key=lambda stage: busy[stage], default="")


class Meters:
    """Seconds by state and stage, of one shard. Safe from several threads."""

    def __init__(self) -> None:
        self.busy: dict[str, float] = defaultdict(float)
        self.starved: dict[str, float] = defaultdict(float)
        self.blocked: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, stage: str, *, busy: float = 0.0, starved: float = 0.0, blocked: float = 0.0) -> None:
        """Count seconds of a stage."""
        with self._lock:
            self.busy[stage] += busy
            self.starved[stage] += starved
            self.blocked[stage] += blocked

    @contextmanager
    def timed(self, stage: str, state: State = "busy") -> Iterator[None]:
        """Count what happens meanwhile."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, **{state: time.perf_counter() - started})


class Wait:
    """What the feeder of a lane waited since it last brought something. For one thread at a time.

    Attributes:
        starved: Seconds for input.
        blocked: Seconds for room behind the lane.
        since: When it last brought something, or began, by `time.perf_counter`.
    """

    def __init__(self, *, starved: float = 0.0, since: float | None = None) -> None:
        self.starved = starved
        self.blocked = 0.0
        self.since = time.perf_counter() if since is None else since

    @contextmanager
    def for_input(self) -> Iterator[None]:
        """It waits for input meanwhile."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.starved += time.perf_counter() - started

    @contextmanager
    def for_room(self) -> Iterator[None]:
        """It waits for room meanwhile."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.blocked += time.perf_counter() - started


class Lane:
    """One device, process or thread that does one piece of work after another, maybe for several shards.

    What lies between two pieces is idle time, and whoever brings the next piece knows what it waited
    for. So no second counts twice, however many feeders wait at the same time.

    Args:
        stage: Whose lane.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._free = time.perf_counter()

    @contextmanager
    def work(self, meters: Meters, wait: Wait) -> Iterator[None]:
        """A piece of work. At most one at a time.

        Args:
            meters: Of the shard that it belongs to.
            wait: Of its feeder; it begins anew.
        """
        started = time.perf_counter()
        # Before the feeder began nobody was there to feed it: that is no waiting of this stage.
        idle = max(0.0, started - max(self._free, wait.since))
        starved = min(idle, wait.starved)
        blocked = min(idle - starved, wait.blocked)
        try:
            yield
        finally:
            self._free = time.perf_counter()
            meters.add(self.stage, busy=self._free - started, starved=starved, blocked=blocked)
            wait.starved = wait.blocked = 0.0
            wait.since = self._free


class Lanes:
    """Lanes of one device, for whoever comes first. What they do together counts as `DEVICE`.

    Args:
        stage: Whose.
        count: How many.
    """

    def __init__(self, stage: str, count: int) -> None:
        self._count = count
        self._working, self._since = 0, 0.0
        self._counting = threading.Lock()
        self._idle: SimpleQueue[Lane] = SimpleQueue()
        self._gathering = threading.Lock()
        for _ in range(count):
            self._idle.put(Lane(stage))

    @contextmanager
    def work(self, meters: Meters, wait: Wait, *, alone: bool = False) -> Iterator[None]:
        """A piece of work on a lane, when one is free. What is waited for it is none of the stage's own waiting.

        Args:
            meters: Of the shard that it belongs to.
            wait: Of its feeder; it begins anew.
            alone: On all lanes at once.
        """
        with self._gathering:  # one after the other, or two that want all would each hold some
            lanes = [self._idle.get() for _ in range(self._count if alone else 1)]
        try:
            with ExitStack() as stack:
                for lane in lanes:
                    stack.enter_context(lane.work(meters, wait))
                self._moved(meters, +1)
                try:
                    yield
                finally:
                    self._moved(meters, -1)
        finally:
            for lane in lanes:
                self._idle.put(lane)

    def _moved(self, meters: Meters, change: int) -> None:
        """One more works, or one fewer."""
        with self._counting:
            now = time.perf_counter()
            if self._working:
                meters.add(DEVICE, busy=now - self._since)
            self._working += change
            self._since = now
