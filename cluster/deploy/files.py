"""Tables of schedulers and of clusters, with a function for each returning its files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskfleet.cluster.deploy import aws, docker, kubernetes, timers
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job import loading
from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.schema import Job

Files = dict[str, str]
"""Contents by file name."""

_RAY_CRON_JOB = """# RayCronJob is alpha in KubeRay 1.7 and off by default (feature gate RayCronJob). It does not
# prevent overlapping runs, and after an outage of the operator it starts every missed run. The lock in the job's
# output keeps such runs apart. `--for kubernetes` has neither limitation.
"""


@dataclass(frozen=True)
class Scheduled:
    """A job to be scheduled.

    Attributes:
        job: The job.
        table: Validated job with all keys, with `{date}` left as it is in input and output.
        cron: The five cron fields.
        file: Absolute path of the job file.
        folder: Working directory of the command.
        address: Dashboard of the cluster to submit to; None to run on the scheduler's machine.
    """

    job: Job
    table: Mapping[str, Any]
    cron: str
    file: Path
    folder: Path
    address: str | None

    @classmethod
    def load(cls, file: Path, *, folder: Path, address: str | None) -> "Scheduled":
        """Read a job file.

        Raises:
            JobError: The file is missing or invalid, or has no [schedule] cron.
        """
        job = Job.load(file)
        if job.schedule.cron is None:
            raise JobError('the job has no [schedule] cron; add one such as cron = "30 2 * * *"')
        raw = loading.read(file)
        unfilled = {key: raw[key] for key in ("input", "output") if "{" in raw[key]}
        table = job.model_dump(mode="json", exclude_none=True) | unfilled
        return cls(job, table, job.schedule.cron, file.resolve(), folder, address)

    @property
    def command(self) -> list[str]:
        """The command line of a run."""
        return timers.command(self.file, self.address)


def _kubernetes(this: Scheduled) -> Files:
    objects = kubernetes.cron_job(this.job, this.table, this.cron)
    return {"schedule.yaml": as_yaml(objects)}


def _kuberay_cron(this: Scheduled) -> Files:
    if this.job.cluster.queue:
        raise JobError("a RayCronJob cannot pass cluster.queue on to its RayJobs; use --for kubernetes")
    objects = kubernetes.ray_cron_job(this.job, this.table, this.cron)
    return {"schedule.yaml": _RAY_CRON_JOB + as_yaml(objects)}


def _systemd(this: Scheduled) -> Files:
    return timers.systemd(this.job, Crontab.parse(this.cron), this.command, this.folder)


def _cron(this: Scheduled) -> Files:
    return timers.cron(this.job, this.cron, this.command, this.file, this.folder)


def _airflow(this: Scheduled) -> Files:
    return timers.airflow(this.job, this.cron, this.command, this.folder)


def _kuberay(job: Job) -> Files:
    return {"cluster.yaml": as_yaml(kubernetes.ray_cluster(job))}


def _aws(job: Job) -> Files:
    return {"cluster.yaml": as_yaml([aws.cluster_config(job)])}


def _docker(job: Job) -> Files:
    return {"Dockerfile": docker.dockerfile()}


SCHEDULERS: dict[str, Callable[[Scheduled], Files]] = {
    "kubernetes": _kubernetes,
    "kuberay-cron": _kuberay_cron,
    "systemd": _systemd,
    "cron": _cron,
    "airflow": _airflow,
}
"""Function returning the files for a scheduler, by its name in `maskfleet schedule --for`."""

CLUSTERS: dict[str, Callable[[Job], Files]] = {"kuberay": _kuberay, "aws": _aws, "docker": _docker}
"""Function returning the files for a Ray cluster or for its image, by its name in `maskfleet cluster-config --for`."""


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Return documents as YAML, without anchors for repeated values."""
    plain = json.loads(json.dumps(documents))
    return str(yaml.safe_dump_all(plain, sort_keys=False, allow_unicode=True, width=120))
