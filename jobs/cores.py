"""CPU cores of this process, and how threads share them. Imports only the standard library."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of a process computing on a CPU, set before torch is loaded. Idle threads then sleep. By default they
spin on the cores needed for decoding: a network of width 8 took twice as long."""


def cores() -> int:
    """Return the number of usable cores, given CPU affinity and the container's limit; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_limit(_CGROUP) or allowed)))


def _limit(cgroup: Path) -> float | None:
    """Return the CPU limit of the container in cores (cgroups, version 2 or 1), or None if unlimited."""
    try:
        if (version_2 := cgroup / "cpu.max").exists():
            quota, period = version_2.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no limit, or "max"
        return None
