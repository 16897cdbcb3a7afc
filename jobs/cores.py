"""Processor cores of this process, and how threads share them. Imports the standard library only."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of a process that computes on a CPU, before torch is loaded: its threads sleep where they wait for
each other. By default they spin, on the very cores that decoding needs; a network of width 8 was seen to take twice as
long."""


def cores() -> int:
    """As many as its affinity and its container's limit leave it, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_limit(_CGROUP) or allowed)))


def _limit(cgroup: Path) -> float | None:
    """Processor seconds per second that the kernel grants a container (cgroups, version 2 or 1); None for any."""
    try:
        if (version_2 := cgroup / "cpu.max").exists():
            quota, period = version_2.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # none, or "max"
        return None
