"""Seconds of each stage of a run: busy, starved (waiting for input) and blocked (on a full output queue).

Time is taken when work is handed over, per batch or group; each event costs about a microsecond.
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
"""Pseudo-stage, busy while any stream of the device is. A GPU is idle only if all its streams are."""


def busiest(busy: Mapping[str, float]) -> str:
    """Return the stage with the most busy seconds, or "" if there is none."""
    stages = [stage for stage in busy if stage != DEVICE]
    return max(stages, key=lambda stage: busy[stage], default="")


class StageTimers:
    """Seconds of one shard by stage and state. Thread-safe.

    Attributes:
        busy: Seconds of work by stage.
        starved: Seconds of waiting for input by stage.
        blocked: Seconds of waiting on a full output queue by stage.
    """

    def __init__(self) -> None:
        self.busy: dict[str, float] = defaultdict(float)
        self.starved: dict[str, float] = defaultdict(float)
        self.blocked: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, stage: str, *, busy: float = 0.0, starved: float = 0.0, blocked: float = 0.0) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self.busy[stage] += busy
            self.starved[stage] += starved
            self.blocked[stage] += blocked

    @contextmanager
    def timed(self, stage: str, state: State = "busy") -> Iterator[None]:
        """Add the duration of the context to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, **{state: time.perf_counter() - started})


class Wait:
    """Waiting time of the feeder of a resource since its last delivery. Not thread-safe.

    Args:
        starved: Seconds already waited for input.
        since: Time of the last delivery by `time.perf_counter`; now if None.

    Attributes:
        starved: Seconds of waiting for input.
        blocked: Seconds of waiting on the resource's full output queue.
        since: Time of the last delivery, or of the start, by `time.perf_counter`.
    """

    def __init__(self, *, starved: float = 0.0, since: float | None = None) -> None:
        self.starved = starved
        self.blocked = 0.0
        self.since = time.perf_counter() if since is None else since

    @contextmanager
    def for_input(self) -> Iterator[None]:
        """Count the duration of the context as waiting for input."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.starved += time.perf_counter() - started

    @contextmanager
    def for_output(self) -> Iterator[None]:
        """Count the duration of the context as waiting on a full output queue."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.blocked += time.perf_counter() - started


class Resource:
    """A device, process or thread doing one piece of work at a time, possibly for several shards.

    The gap between two pieces is idle time, and the feeder of the next piece knows the reason. So no second is counted
    twice, even with several waiting feeders.

    Args:
        stage: Stage of the resource.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._free = time.perf_counter()

    @contextmanager
    def work(self, timers: StageTimers, wait: Wait) -> Iterator[None]:
        """Time one piece of work. Not to be nested or called concurrently.

        Args:
            timers: Timers of the work's shard.
            wait: Wait of the work's feeder; it is reset.
        """
        started = time.perf_counter()
        # Idle time before the feeder existed does not count as waiting.
        idle = max(0.0, started - max(self._free, wait.since))
        starved = min(idle, wait.starved)
        blocked = min(idle - starved, wait.blocked)
        try:
            yield
        finally:
            self._free = time.perf_counter()
            timers.add(self.stage, busy=self._free - started, starved=starved, blocked=blocked)
            wait.starved = wait.blocked = 0.0
            wait.since = self._free


class ResourcePool:
    """Equal resources of one device, handed out in order of request. Time with any of them busy counts as `DEVICE`.

    Args:
        stage: Stage of the resources.
        count: Number of resources.
    """

    def __init__(self, stage: str, count: int) -> None:
        self._count = count
        self._working, self._since = 0, 0.0
        self._counting = threading.Lock()
        self._idle: SimpleQueue[Resource] = SimpleQueue()
        self._gathering = threading.Lock()
        for _ in range(count):
            self._idle.put(Resource(stage))

    @contextmanager
    def work(self, timers: StageTimers, wait: Wait, *, alone: bool = False) -> Iterator[None]:
        """Time one piece of work on the next free resource. The wait for a free one is not counted.

        Args:
            timers: Timers of the work's shard.
            wait: Wait of the work's feeder; it is reset.
            alone: Whether the work needs all resources.
        """
        with self._gathering:  # one thread at a time: two in need of all would deadlock, each holding some
            held = [self._idle.get() for _ in range(self._count if alone else 1)]
        try:
            with ExitStack() as stack:
                for resource in held:
                    stack.enter_context(resource.work(timers, wait))
                self._change(timers, +1)
                try:
                    yield
                finally:
                    self._change(timers, -1)
        finally:
            for resource in held:
                self._idle.put(resource)

    def _change(self, timers: StageTimers, change: int) -> None:
        """Adjust the number of busy resources by `change`, and count the time since the last change."""
        with self._counting:
            now = time.perf_counter()
            if self._working:
                timers.add(DEVICE, busy=now - self._since)
            self._working += change
            self._since = now
