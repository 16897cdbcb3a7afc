"""The number of workers and the resources of each. Pure: the caller passes the nodes."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskfleet.jobs.job.machines import WorkerRange
from maskfleet.jobs.job.schema import Job

Resources = Mapping[str, float]
"""Resources of a node under Ray's names: "CPU", "GPU", "memory" in bytes, …"""

OBJECT_STORE_BYTES = 128 * 2**20
"""Object store of a local Ray. No pixel enters it."""

_WORKER_BYTES = 2 * 2**30
"""Memory assumed per worker without a GPU, in bytes."""


class Needs(NamedTuple):
    """The resources reserved by Ray for a worker.

    Attributes:
        cpus: CPU cores. With "auto", a worker with a GPU reserves one core, so only GPUs limit the number of workers.
            It then uses its share of the cores of its node (`cluster.worker`), even if that node joined later.
        gpus: Number of GPUs, or a share of one.
    """

    cpus: float
    gpus: float

    def fit(self, node: Resources) -> bool:
        """Return whether an otherwise empty node has room for a worker."""
        return self.cpus <= node.get("CPU", 0) and self.gpus <= node.get("GPU", 0)


def needs(job: Job, nodes: Sequence[Resources], threads: int) -> Needs:
    """Return the resources of each worker.

    Args:
        job: The job.
        nodes: Resources of all nodes alive and not leaving.
        threads: CPU threads of the network in every worker.
    """
    gpus = _gpus(job, nodes)
    if job.cluster.cpus_per_worker != "auto":
        return Needs(float(job.cluster.cpus_per_worker), gpus)
    if gpus:
        return Needs(1.0, gpus)
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    fewest = min((int(node["CPU"]) for node in able), default=1)
    if (most := _asked_for(job)) is not None:
        # Divide the cores so that even the node with the most workers has room for them.
        return Needs(float(max(1, fewest // math.ceil(most / max(1, len(able))))), gpus)
    # More threads per worker would wait for each other and for the GIL, so a large node gets several workers.
    return Needs(float(min(fewest, max([threads, *map(_cores_per_memory, able)]))), gpus)


def target(job: Job, nodes: Sequence[Resources], shards_left: int, threads: int) -> int:
    """Return the current target number of workers. Workers without room stay pending; an autoscaler then adds nodes.

    Args:
        job: The job.
        nodes: See `needs`.
        shards_left: Number of shards without a commit; further workers would be idle.
        threads: See `needs`.
    """
    least = job.cluster.workers.min if isinstance(job.cluster.workers, WorkerRange) else 1
    most = _asked_for(job) or _places(nodes, needs(job, nodes, threads))
    return max(least, min(most, shards_left))


def _asked_for(job: Job) -> int | None:
    """Return the largest number of workers if the job states it, else None."""
    workers = job.cluster.workers
    if isinstance(workers, WorkerRange):
        return workers.max
    return None if workers == "auto" else workers


def _places(nodes: Sequence[Resources], each: Needs) -> int:
    """Return the number of workers with room on all nodes together, at least one."""
    if each.gpus:
        # A GPU share cannot span two GPUs.
        return max(1, sum(int(node.get("GPU", 0)) for node in nodes) * int(1 / each.gpus + 1e-9))
    return max(1, sum(int(node.get("CPU", 0) // each.cpus) for node in nodes))


def _cores_per_memory(node: Resources) -> int:
    """Return the number of cores per `_WORKER_BYTES` of the node's memory, rounded up."""
    return math.ceil(node["CPU"] * _WORKER_BYTES / node["memory"]) if node.get("memory") else 1


def _gpus(job: Job, nodes: Sequence[Resources]) -> float:
    if job.cluster.gpus_per_worker != "auto":
        return float(job.cluster.gpus_per_worker)
    if job.inference.device == "cuda":
        return 1.0
    return 1.0 if job.inference.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
