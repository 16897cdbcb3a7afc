"""The actor: one device, one resident network, no policy."""

from dataclasses import replace

from jobs.attempt import ShardReport, run_shard, worker_name
from jobs.errors import MaskfleetError
from jobs.job import Job
from jobs.manifest import Shard
from jobs.run import OpenPipeline, Run


class Worker:
    """Serves the shards of one run. Becomes a Ray actor in `cluster.driver`.

    Args:
        job: As the command has it.
        run_id: The run to serve.
        cpus: CPU cores that this process may use.
        open_pipeline: Makes its pipeline; `jobs.run.pipeline_of_job`.
    """

    def __init__(self, job: Job, run_id: str, cpus: int, open_pipeline: OpenPipeline) -> None:
        # An error of the job's is kept and raised by `ready`: raised here, Ray would restart this actor for ever
        # and hand the driver a traceback in place of the sentence.
        self._error: MaskfleetError | None = None
        try:
            self._run = replace(Run.attach(job.output, run_id, profile=job.profile), job=job)
            self._pipeline = open_pipeline(self._run, cpus)
        except MaskfleetError as error:
            self._error = error

    def ready(self) -> str:
        """The worker's name, once it can serve.

        Raises:
            MaskfleetError: It cannot, and the sentence says why.
        """
        if self._error is not None:
            raise self._error
        return worker_name()

    def run_shard(self, shard: Shard) -> ShardReport:
        """Do a shard. Two may be in here at once."""
        return run_shard(self._run.desk, shard, self._pipeline)
