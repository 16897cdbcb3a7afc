"""One line of the table in docs/guarantees.md."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Figure:
    """What came of one kind of fault.

    Attributes:
        number: Number of the fault, as in F1.
        fault: The fault.
        times: Times injected.
        lost: Images without a row.
        doubled: Images with two rows of one run, or done twice.
        repeated: Work done again, in words.
        recover: Seconds until work went on, as measured; None if there is nothing to recover.
        seconds: Duration in all.
        notes: Further figures, in words.
        problems: What went wrong.
    """

    number: str
    fault: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: str = "none"
    recover: float | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        recovered = "" if self.recover is None else f", {self.recover:.1f} s to recover"
        said = (
            f"{self.number} {self.fault}: {self.times} times, {self.lost} lost, {self.doubled} doubled, "
            f"repeated work: {self.repeated}{recovered}; {self.seconds:.0f} s"
        )
        return "\n".join([said, *(f"  {note}" for note in self.notes), *(f"  WRONG: {item}" for item in self.problems)])

    def judge(self, found: list[str]) -> None:
        """Take in what a verdict found; see `faults.nights.Verdict.faults`."""
        self.lost += sum(item.startswith("lost: ") for item in found)
        self.doubled += sum(item.startswith(("doubled: ", "too many: ")) for item in found)
        self.problems += found

    def write(self, path: str) -> None:
        """Append the figure to a file of JSON lines."""
        with open(path, "a") as file:
            print(json.dumps(asdict(self)), file=file)


@contextmanager
def figure(number: str, fault: str) -> Iterator[Figure]:
    """A figure, with its duration measured."""
    it, began = Figure(number, fault), time.monotonic()
    try:
        yield it
    finally:
        it.seconds = round(time.monotonic() - began, 1)
