"""The pace of a run: images per second over the last minute, and the time left. Knows nothing of terminals."""

import time
from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 60.0

_LEAST_SECONDS = 2.0
"""Shards may end together; over less time than this their rate means nothing."""


class Pace:
    """Images per second between finished shards. The time before the first one does not count.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, done: int) -> None:
        """Note the number of images with an outcome. The first number is that of earlier commands."""
        now = self._clock()
        if self._start is None:
            self._start = done
        elif done > (self._seen[-1][1] if self._seen else self._start):
            self._seen.append((now, done))
        while len(self._seen) > 1 and now - self._seen[1][0] > _WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Images per second; None while it is unknown."""
        if len(self._seen) < 2:
            return None
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        passed = self._clock() - began
        return (last - first) / passed if passed >= _LEAST_SECONDS else None

    def seconds_left(self, images: int) -> float | None:
        """Return the seconds until this number of images is done; None while the rate is unknown."""
        rate = self.rate
        return (images - self._seen[-1][1]) / rate if rate else None
