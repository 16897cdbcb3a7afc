"""How many workers a run asks for, and what each of them needs. Pure: the nodes are given."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jobs.job import Job, WorkerRange

Resources = Mapping[str, float]
"""What a node has, as Ray says it: "CPU", "GPU", …"""


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


def needs(job: Job, nodes: Sequence[Resources]) -> Needs:
    """What each worker needs, on the nodes that are there."""
    gpus = _gpus(job, nodes)
    if job.cluster.cpus_per_worker != "auto":
        return Needs(float(job.cluster.cpus_per_worker), gpus)
    if gpus:
        return Needs(1.0, gpus)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    # Shared out so that the fullest node still fits its workers.
    each = math.ceil(_most(job, nodes, gpus) / max(1, len(cores)))
    return Needs(float(max(1, min(cores, default=1) // max(1, each))), gpus)


def target(job: Job, nodes: Sequence[Resources], shards_left: int) -> int:
    """Workers to have now. What exceeds the free machines stays pending, which is the request to an autoscaler.

    Args:
        job: The job.
        nodes: Alive, and not about to leave.
        shards_left: Without an outcome; more workers than that would find nothing to do.
    """
    least = job.cluster.workers.min if isinstance(job.cluster.workers, WorkerRange) else 1
    return max(least, min(_most(job, nodes, _gpus(job, nodes)), shards_left))


def _most(job: Job, nodes: Sequence[Resources], gpus: float) -> int:
    match job.cluster.workers:
        case WorkerRange(max=most):
            return most
        case int(most):
            return most
    if gpus:
        # A share is of one GPU: what two of them have left over makes no worker.
        return max(1, sum(int(node.get("GPU", 0)) for node in nodes) * int(1 / gpus + 1e-9))
    return max(1, sum(1 for node in nodes if node.get("CPU", 0) >= 1))


def _gpus(job: Job, nodes: Sequence[Resources]) -> float:
    if job.cluster.gpus_per_worker != "auto":
        return float(job.cluster.gpus_per_worker)
    if job.inference.device == "cuda":
        return 1.0
    return 1.0 if job.inference.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
