"""The event log of a run: one JSON object per line, stored with the other records of the run."""

import json
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from maskfleet.jobs.errors import MaskfleetError, redacted
from maskfleet.jobs.run.begin import Run

_FLUSH_SECONDS = 30.0
"""Seconds between two log files written to the output."""

_log = logging.getLogger("maskfleet")


class EventLog:
    """The events of a run, in Python's logger `maskfleet` and in `runs/<run_id>/logs/`.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started = datetime.now(UTC)
        self._flushed = self._started
        self._lines: list[str] = []
        self._part = 0

    def write(self, event: str, *, level: int = logging.INFO, **fields: Any) -> None:
        """Log an event.

        Args:
            event: Name of the event, such as "shard done".
            level: Level for Python's logger.
            fields: Further fields of the line. Credentials are redacted.
        """
        now = datetime.now(UTC)
        line = {"time": now.isoformat(timespec="milliseconds"), "event": event, "run": self._run.run_id, **fields}
        text = redacted(json.dumps(line, default=str))
        _log.log(level, "%s", text)
        self._lines.append(f"{text}\n")
        if (now - self._flushed).total_seconds() > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store the events since the last flush as one more file. If storage fails, the next flush includes them."""
        if not self._lines:
            return
        self._flushed = datetime.now(UTC)
        name = f"runs/{self._run.run_id}/logs/{self._started:%Y%m%dT%H%M%S.%f}-{self._part:05}.jsonl"
        with suppress(MaskfleetError):
            self._run.output.storage.write(name, "".join(self._lines).encode())
            self._lines, self._part = [], self._part + 1
