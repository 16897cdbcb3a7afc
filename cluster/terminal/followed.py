"""The log of a submission as people follow it: progress and troubles, without the events that are for programs."""

import json
from collections.abc import Callable

_ROUTINE = ("started", "ended", "worker ready", "shard done")


class Followed:
    """Passes on the lines of a log that people want to see.

    Args:
        write: Called with each such line.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rest = ""

    def __call__(self, text: str) -> None:
        """Take the next piece of the log. A piece may end within a line."""
        *lines, self._rest = f"{self._rest}{text}".split("\n")
        for line in lines:
            self._pass_on(line)

    def close(self) -> None:
        """Pass on the last line, if it has no end."""
        if self._rest:
            self._pass_on(self._rest)
            self._rest = ""

    def _pass_on(self, line: str) -> None:
        event = _event(line)
        if event is None:
            self._write(f"{line}\n")
        elif event["event"] not in _ROUTINE:
            why = f": {event['why']}" if event.get("why") else ""
            self._write(f"{event['event']}{why}\n")


def _event(line: str) -> dict[str, object] | None:
    """Return the event in a line of the log, or None if it is a line for people."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
