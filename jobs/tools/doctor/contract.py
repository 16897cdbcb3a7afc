"""What a check is, and how all of them run, each with a deadline. Knows no particular check.

A new check is one function and one line in a table. It gets the subject and returns what it found, or None if it does
not apply. It need not handle errors: an exception becomes a problem.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from maskfleet.jobs.errors import MaskfleetError, redacted
from maskfleet.jobs.job.schema import Job

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        job: The job; None to examine the machine only.
        address: Ray cluster, or its dashboard; None for RAY_ADDRESS, else a local Ray.
    """

    job: Job | None = None
    address: str | None = None


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        verdict: `ok`; `warning` if a run works, but worse than it could; `problem` if it fails or is unsafe.
        text: What was found, in words.
        remedy: What to do about it. Not empty unless the verdict is `ok`.
    """

    verdict: Verdict
    text: str
    remedy: str = ""


class Check(NamedTuple):
    """A check.

    Attributes:
        find: The check itself.
        seconds: Deadline. A check without an answer by then is a problem.
        stuck: Remedy if it does not answer.
    """

    find: Callable[[Subject], Finding | None]
    seconds: float = 20
    stuck: str = "try again; if it happens again, report it with the output of `maskfleet doctor --json`"


def examined(checks: Mapping[str, Check], subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Run all checks at once and yield what they found, in the order of the table, without credentials.

    Args:
        checks: Checks by name.
        subject: What to examine.
    """
    running = {name: _Running(check, subject) for name, check in checks.items()}
    for name, check in running.items():
        if (found := check.result()) is not None:
            yield name, Finding(found.verdict, redacted(found.text), redacted(found.remedy))


class _Running:
    """A check in a thread of its own, which dies with the process if the check hangs."""

    def __init__(self, check: Check, subject: Subject) -> None:
        self._check, self._subject = check, subject
        self._found: Finding | None = None
        self._end = time.monotonic() + check.seconds
        self._thread = threading.Thread(target=self._find, name="doctor", daemon=True)
        self._thread.start()

    def _find(self) -> None:
        try:
            self._found = self._check.find(self._subject)
        except MaskfleetError as error:
            self._found = _as_problem(str(error))
        except Exception as error:  # a check that fails must not hide the others
            first = (str(error).strip().splitlines() or [""])[0]
            self._found = _as_problem(f"{type(error).__name__}: {first}; report this")

    def result(self) -> Finding | None:
        self._thread.join(max(0.0, self._end - time.monotonic()))
        if self._thread.is_alive():
            return Finding("problem", f"no answer within {self._check.seconds:g} s", self._check.stuck)
        return self._found


def _as_problem(message: str) -> Finding:
    """Split the one line of an error: what is wrong, then the remedy."""
    text, _, remedy = message.rpartition("; ")
    return Finding("problem", text or message, remedy if text else "see docs/command-line.md")
