"""How many processor cores there are for this process. Loads nothing."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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
