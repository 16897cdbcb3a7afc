"""The rate of a run over time, from the times at which the files of its attempts were written."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.storage.contract import Storage

_SLACK = 120.0
"""Seconds by which the clock of a storage may differ from the driver's."""

_MOST = 60
"""Most intervals."""


@dataclass(frozen=True)
class Pace:
    """Images over time.

    Attributes:
        edges: Edges of the intervals in seconds since the start of the run, (intervals + 1,).
        rates: Images per second in each, (intervals,).
    """

    edges: NDArray[np.float64]
    rates: NDArray[np.float64]


def pace(
    storage: Storage, run_id: str, attempts: Mapping[str, tuple[str, int]], *, created: str, finished: str
) -> Pace | None:
    """Return the rate of a run over time.

    The images of a shard are spread evenly over the time since its worker's previous shard.

    Args:
        storage: Output storage.
        run_id: The run.
        attempts: Worker and number of images of each committed attempt.
        created: Start of the run, ISO 8601.
        finished: End of the run, ISO 8601; "" if it is unfinished.

    Returns:
        The rate; None if there are too few shards, or if the files have other times than the run: the output was
        copied.
    """
    start = datetime.fromisoformat(created).timestamp()
    end = datetime.fromisoformat(finished).timestamp() if finished else float("inf")
    shards: dict[str, list[tuple[float, int]]] = {}
    count = 0
    for entry in storage.walk(f"runs/{run_id}/shards"):
        attempt, _, name = entry.path.rpartition("/")
        found = attempts.get(attempt.rpartition("/")[2])
        if found is None or name != "stats.parquet":
            continue
        if entry.modified is None or not start - _SLACK <= entry.modified <= end + _SLACK:
            return None
        worker, images = found
        shards.setdefault(worker, []).append((entry.modified - start, images))
        count += 1
    if count < 3:
        return None
    return _pace([span for ends in shards.values() for span in _spans(sorted(ends))], count)


def _spans(ends: list[tuple[float, int]]) -> list[tuple[float, float, int]]:
    """Return beginning, end and images of each shard of a worker, given their ends."""
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(ends)]
    usual = float(np.median(gaps)) if gaps else ends[0][0]
    first = max(0.0, ends[0][0] - usual)
    begins = [first, *(end for end, _ in ends[:-1])]
    return [(min(begin, end - 1e-3), end, images) for begin, (end, images) in zip(begins, ends, strict=True)]


def _pace(spans: list[tuple[float, float, int]], shards: int) -> Pace:
    last = max(end for _, end, _ in spans)
    edges = np.linspace(0, max(last, 1e-3), int(np.clip(shards // 2, 6, _MOST)) + 1)
    images = np.zeros(len(edges) - 1)
    for begin, end, count in spans:
        reached = np.clip((edges - begin) / (end - begin), 0, 1)
        images += count * np.diff(reached)
    return Pace(edges, images / np.diff(edges))
