"""The actor: one device, one resident network, no policy."""

from dataclasses import replace

import ray

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.run.attempt import ShardReport, run_shard
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.execute import OpenPipeline


class Worker:
    """Serves the shards of one run. Becomes a Ray actor in `cluster.driver`.

    Args:
        job: As the command has it.
        run_id: The run to serve.
        cpus: CPU cores that this process may use.
        gpu_share: GPUs of this worker; where it is not 0, the cores that go with them on this node count, not `cpus`.
        open_pipeline: Makes its pipeline; `jobs.run.execute.pipeline_of_job`.
        generation: Of the lock that the driver holds.
    """

    def __init__(
        self, job: Job, run_id: str, cpus: int, gpu_share: float, open_pipeline: OpenPipeline, generation: int
    ) -> None:
        # An error of the job's is kept and raised by `ready`: raised here, it would reach the driver as the death of
        # an actor, with a traceback in place of the sentence.
        self._error: MaskfleetError | None = None
        try:
            self._run = replace(Run.attach(job.output, run_id, profile=job.profile, generation=generation), job=job)
            self._pipeline = open_pipeline(self._run, _cores_with(gpu_share) if gpu_share else cpus)
        except MaskfleetError as error:
            self._error = error

    def ready(self) -> str:
        """The id of the node that it is on, once it can serve.

        Raises:
            MaskfleetError: It cannot, and the sentence says why.
        """
        if self._error is not None:
            raise self._error
        return str(ray.get_runtime_context().get_node_id())

    def run_shard(self, shard: Shard) -> ShardReport:
        """Do a shard. Two may be in here at once."""
        return run_shard(self._run.desk, shard, self._pipeline)

    @ray.method(concurrency_group="pulse")
    def still_for(self) -> float:
        """Seconds since an image last moved on."""
        return self._pipeline.still_for()


def _cores_with(gpus: float) -> int:
    """Cores that go with so many of this node's GPUs."""
    here = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1) * gpus / max(1.0, resources.get("GPU", 1))))
