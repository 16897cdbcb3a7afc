"""How many workers a run asks for, and what each of them needs. Pure: the nodes are given."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.job.sections import WorkerRange

Resources = Mapping[str, float]
"""What a node has, as Ray says it: "CPU", "GPU", "memory" in bytes, …"""

_WORKER_BYTES = 2 * 2**30
"""Memory of a worker that computes on CPUs, at most."""


class Needs(NamedTuple):
    """What Ray reserves for a worker.

    Attributes:
        cpus: Cores. For a worker with a GPU only one: the GPU is what decides where it fits, and it uses its share of
            the cores of whichever node it comes to (`cluster.worker`), also of one that did not exist when it was asked
            for.
        gpus: GPUs, or the share of one.
    """

    cpus: float
    gpus: float

    def fit(self, node: Resources) -> bool:
        """Whether a node that did nothing else would have room for one."""
        return self.cpus <= node.get("CPU", 0) and self.gpus <= node.get("GPU", 0)


def needs(job: Job, nodes: Sequence[Resources], threads: int) -> Needs:
    """What each worker needs, on the nodes that are there.

    Args:
        job: The job.
        nodes: Alive, and not about to leave.
        threads: That a network on a CPU has in every worker.
    """
    gpus = _gpus(job, nodes)
    if job.cluster.cpus_per_worker != "auto":
        return Needs(float(job.cluster.cpus_per_worker), gpus)
    if gpus:
        return Needs(1.0, gpus)
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    fewest = min((int(node["CPU"]) for node in able), default=1)
    if (most := _asked_for(job)) is not None:
        # Shared out so that the fullest node still fits its workers.
        return Needs(float(max(1, fewest // math.ceil(most / max(1, len(able))))), gpus)
    # More threads would wait for each other, and for Python's lock: a large node has several workers.
    return Needs(float(min(fewest, max([threads, *map(_cores_per_memory, able)]))), gpus)


def target(job: Job, nodes: Sequence[Resources], shards_left: int, threads: int) -> int:
    """Workers to have now. What exceeds the free machines stays pending, which is the request to an autoscaler.

    Args:
        job: The job.
        nodes: As in `needs`.
        shards_left: Without an outcome; more workers than that would find nothing to do.
        threads: As in `needs`.
    """
    least = job.cluster.workers.min if isinstance(job.cluster.workers, WorkerRange) else 1
    most = _asked_for(job) or _places(nodes, needs(job, nodes, threads))
    return max(least, min(most, shards_left))


def _asked_for(job: Job) -> int | None:
    """Workers at most, where the job says so."""
    workers = job.cluster.workers
    if isinstance(workers, WorkerRange):
        return workers.max
    return None if workers == "auto" else workers


def _places(nodes: Sequence[Resources], each: Needs) -> int:
    """Workers that all nodes together have a place for, at least one."""
    if each.gpus:
        # A share is of one GPU: what two of them have left over makes no worker.
        return max(1, sum(int(node.get("GPU", 0)) for node in nodes) * int(1 / each.gpus + 1e-9))
    return max(1, sum(int(node.get("CPU", 0) // each.cpus) for node in nodes))


def _cores_per_memory(node: Resources) -> int:
    """Cores that go with a worker's memory."""
    return math.ceil(node["CPU"] * _WORKER_BYTES / node["memory"]) if node.get("memory") else 1


def _gpus(job: Job, nodes: Sequence[Resources]) -> float:
    if job.cluster.gpus_per_worker != "auto":
        return float(job.cluster.gpus_per_worker)
    if job.inference.device == "cuda":
        return 1.0
    return 1.0 if job.inference.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
