"""The worker: a Ray actor with one network on one device. It makes no decisions."""

from dataclasses import replace

import ray

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.run.attempt import ShardReport, run_shard
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.executor import OpenPipeline


class Worker:
    """Processes shards of one run. `cluster.workers` starts it as a Ray actor.

    Args:
        job: Job of the current command.
        run_id: The run.
        cpus: Number of CPU cores for this process.
        gpu_share: Number of GPUs of this worker, or a share of one. If not 0, the worker uses its node's cores per GPU
            instead of `cpus`.
        open_pipeline: Opens the pipeline; see `jobs.run.open_pipeline`.
        generation: Generation of the driver's lock.
    """

    def __init__(
        self, job: Job, run_id: str, *, cpus: int, gpu_share: float, open_pipeline: OpenPipeline, generation: int
    ) -> None:
        # Job errors are raised by `ready`. Raised here, they would reach the driver as the death of an actor, with a
        # traceback instead of the message.
        self._error: MaskfleetError | None = None
        try:
            self._run = replace(Run.attach(job.output, run_id, profile=job.profile, generation=generation), job=job)
            self._pipeline = open_pipeline(self._run, _cores_with(gpu_share) if gpu_share else cpus)
        except MaskfleetError as error:
            self._error = error

    def ready(self) -> str:
        """Return the id of this worker's node once it can serve.

        Raises:
            MaskfleetError: It cannot serve; the message names the cause.
        """
        if self._error is not None:
            raise self._error
        return str(ray.get_runtime_context().get_node_id())

    def run_shard(self, shard: Shard) -> ShardReport:
        """Attempt a shard. Two calls may run at once."""
        return run_shard(self._run.output, shard, self._pipeline)

    @ray.method(concurrency_group="heartbeat")
    def still_for(self) -> float:
        """Return the seconds since one of its images last made progress."""
        return self._pipeline.still_for()


def _cores_with(gpus: float) -> int:
    """Return the number of CPU cores for a number of GPUs, in proportion to those of this node."""
    node_id = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1) * gpus / max(1.0, resources.get("GPU", 1))))
