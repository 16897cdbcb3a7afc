"""Fuzzed files through the product: whole by a pool of decoding processes, and in rows by a process each."""

import os
import resource
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from maskfleet.jobs.images.contract import Failure, Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.images.streams import Stream, Unreadable

LIMITS = Limits(3, seconds=5, memory=2**29, min_side=8)
CLASSES = {
    "ok", "empty", "unidentified", "corrupt", "unsupported", "too_large", "too_small", "memory", "several_pages", "crash",
    "timeout",
}  # fmt: skip


@dataclass
class Outcome:
    """What became of fuzzed files.

    Attributes:
        classes: Files by class; `ok` has pixels.
        slowest: Most seconds that one file took, with its process.
        processes: Decoding processes replaced, because an image killed them.
        peak: Most memory that a decoding process held in bytes, with the pixels that it wrote.
        grown: Bytes by which this process grew.
        bad: Files of class `crash` or `timeout`, with their numbers.
    """

    classes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    processes: int = 0
    peak: int = 0
    grown: int = 0
    bad: list[tuple[int, str, bytes]] = field(default_factory=list)

    def add(self, number, format_, data, error_class):
        self.classes[error_class] += 1
        if error_class not in CLASSES - {"crash", "timeout"}:
            self.bad.append((number, format_, data))


def whole(files, *, processes=2) -> Outcome:
    """Decode files by a pool."""
    outcome, files = Outcome(), list(files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Decoders(LIMITS, processes=processes) as decoders:
        started, last = set(decoders.process_ids), time.monotonic()
        for decoded in decoders.decode((number, data) for number, (_, data) in enumerate(files)):
            now = time.monotonic()
            outcome.slowest, last = max(outcome.slowest, decoded.seconds, now - last), now
            format_, data = files[decoded.number]
            outcome.add(decoded.number, format_, data, decoded.failure.error_class if decoded.failure else "ok")
            if decoded.failure is None:
                assert decoded.pixels.shape == (*decoded.size, 3)
                int(decoded.pixels.sum())
        outcome.processes = len(started - set(decoders.process_ids))
        outcome.peak = max(map(_peak, decoders.process_ids))
    outcome.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return outcome


def in_rows(files, *, at_once=2) -> Outcome:
    """Read each file in rows, whatever its size."""
    outcome = Outcome()

    def read(data) -> tuple[str, float, int]:
        began = time.monotonic()
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            peak = 0
            try:
                with Stream(file.fileno(), LIMITS) as stream:
                    for start in range(0, min(stream.height, 400), 16):
                        int(stream.read(start, min(start + 24, stream.height)).sum())
                    peak = _peak(stream._process.pid)
            except Unreadable as error:
                assert isinstance(error.failure, Failure)
                return error.failure.error_class, time.monotonic() - began, peak
        return "ok", time.monotonic() - began, peak

    files = list(files)
    with ThreadPoolExecutor(at_once) as pool:
        for number, (error_class, seconds, peak) in enumerate(pool.map(read, (data for _, data in files))):
            outcome.add(number, *files[number], error_class)
            outcome.slowest, outcome.peak = max(outcome.slowest, seconds), max(outcome.peak, peak)
    outcome.processes = outcome.classes["crash"] + outcome.classes["timeout"]
    return outcome


def _peak(pid) -> int:
    """Return the most memory that a process held that is its own, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def keep(outcome: Outcome, folder: str) -> None:
    """Write the files that killed or held up their process into a folder."""
    os.makedirs(folder, exist_ok=True)
    for number, format_, data in outcome.bad:
        Path(folder, f"{number}-{format_.strip('.')}").write_bytes(data)
