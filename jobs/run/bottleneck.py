"""What held a run back, and what to do about it, from its meters. Takes and gives plain numbers and sentences."""

import math
from collections.abc import Mapping
from typing import Any

from maskfleet.jobs.stage_timers import DEVICE

_GOOD = 0.97
"""Busy for this share of its time, the device is the limit."""


def share_of_forward(record: Mapping[str, Any]) -> float | None:
    """Pixels per second of worker time as a share of the bare forward pass; None where that is not known.

    Pixels, since images may have many sizes, and the pass was measured at one.

    Args:
        record: What run.json says.
    """
    forward = record["forward"]
    if not forward or not record["worker_seconds"] or not record["measured_pixels"]:
        return None
    seconds_per_pixel = forward["seconds_per_image"] / (forward["height"] * forward["width"])
    return float(record["measured_pixels"] / record["worker_seconds"] * seconds_per_pixel)


def idle_share(record: Mapping[str, Any]) -> float | None:
    """Share of the workers' time in which their devices had nothing to do; None where nothing ran."""
    if not record["worker_seconds"] or "segment" not in record["stages"]:
        return None
    if record["device"] == "cuda" and DEVICE in record["stages"]:
        # Its lanes wait for each other on the device, which idles only while none works.
        return float(max(0.0, 1 - record["stages"][DEVICE]["busy_seconds"] / record["worker_seconds"]))
    return _idle_lanes(record)


def _idle_lanes(record: Mapping[str, Any]) -> float:
    return float(max(0.0, 1 - record["stages"]["segment"]["busy_seconds"] / _lane_seconds(record)))


def limit(record: Mapping[str, Any]) -> str | None:
    """One sentence: how long the device was idle, for what, and the remedy. None where nothing ran.

    Args:
        record: What run.json says.
    """
    idle = idle_share(record)
    if idle is None:
        return None
    device = "GPU" if record["device"] == "cuda" else "network"
    if 1 - idle >= _GOOD:
        return f"{device} busy {1 - idle:.0%} of the time: it is the limit, and more of them would be faster"
    return f"{device} idle {idle:.0%}: {_cause(record, idle)}"


def _cause(record: Mapping[str, Any], idle: float) -> str:
    stages = record["stages"]
    seconds = _lane_seconds(record)
    segment = stages["segment"]
    starved, blocked = segment["starved_seconds"], segment["blocked_seconds"]
    between = max(0.0, _idle_lanes(record) * seconds - starved - blocked)
    if blocked >= max(starved, between):
        more = _more("encode", stages, idle)
        return f"PNG encoding; give the worker {more}, or set masks.format = 'none'"
    if starved >= between:
        decode = stages["decode"]
        # Decoding that works is the limit; decoding that waits for bytes is not.
        if decode["starved_seconds"] > decode["busy_seconds"]:
            return "reading the images; move them nearer to the workers, or into faster storage"
        return f"decoding the images; give the worker {_more('decode', stages, idle)}"
    if stages.get("write", {}).get("busy_seconds", 0.0) >= between / 2:
        remedy = "set masks.format = 'tar'" if record["loose"] else "write to faster storage"
        return f"writing the masks; {remedy}"
    return "beginning and ending shards; the run is short, or set a larger run.shard_size"


def _lane_seconds(record: Mapping[str, Any]) -> float:
    """That the workers' devices had for batches, each of as many at once as it has lanes."""
    return float(record["worker_seconds"] * record["stages"]["segment"]["lanes"])


def _more(stage: str, stages: Mapping[str, Any], idle: float) -> str:
    """CPU cores to add so that the stage keeps up with a device that is never idle."""
    lanes = stages[stage]["lanes"]
    cores = max(1, math.ceil(lanes * idle / (1 - idle))) if idle < 1 else lanes
    return f"{cores} more CPU{'s' if cores > 1 else ''} (cluster.cpus_per_worker)"
