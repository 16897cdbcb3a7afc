"""The sections of a job file on workers, their machines, and the times of runs, as frozen and validated values.

The docstring below each key is its entry in the reference (`jobs.job.reference`). Never part of the fingerprint.
"""

from typing import Annotated, Literal, Self
from zoneinfo import available_timezones

from pydantic import Field, field_validator, model_validator

from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.section import Section
from maskfleet.jobs.job.values import Form

_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_DNS_WORDS = "a name of lower-case letters, digits and -"


class WorkerRange(Section):
    """Smallest and largest number of workers."""

    min: int = Field(default=1, ge=1)
    """Workers requested at the start and kept until the end."""
    max: int = Field(ge=1, examples=[64])
    """Workers requested while there is work for them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not exceed max; set max to at least min")
        return self


class Cluster(Section):
    """Workers, and the machines of generated clusters. Never part of the fingerprint."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | WorkerRange = Field(default="auto", examples=[4])
    """Worker processes: a number, or {min = 1, max = 64}. Missing workers are requested from the autoscaler. "auto" is
    one per GPU; without GPUs, one per `threads` cores and 2 GiB of memory."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(default="auto", examples=[0.5])
    """GPUs of a worker: 1, a share such as 0.5, or 0. "auto" is 1 if there are GPUs, otherwise 0."""
    stall_seconds: float = Field(default=900, gt=0)
    """A worker without progress on any image for this many seconds is replaced."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(default="auto", examples=[4])
    """CPU cores of a worker, for its decoding processes and threads. "auto" divides the machine among its workers."""
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[8])
    """Threads of a network on a CPU. Equal in all workers, since the last bits of fp32 depend on it. "auto" is the
    cores of the machine that starts the run, at most 8; training uses all of them."""
    decoders: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[4])
    """Decoding processes of a worker. "auto" is one per core, minus one if the network runs on the CPU."""
    image: Annotated[str, Form("the name of a container image")] = Field(
        default="maskfleet:0.1.0", pattern=r"^[a-zA-Z0-9][\w./:@-]*$"
    )
    """Container image of generated clusters. `maskfleet cluster-config --for docker` writes its Dockerfile."""
    namespace: Annotated[str, Form(_DNS_WORDS)] = Field(default="default", pattern=_DNS_LABEL)
    """Kubernetes namespace."""
    queue: Annotated[str | None, Form(_DNS_WORDS)] = Field(default=None, pattern=_DNS_LABEL, examples=["gpu-team"])
    """Local queue of Kueue for generated RayJobs and RayClusters. They start suspended, with their largest number of
    nodes and without an autoscaler, which Kueue does not admit. Without it: no queue."""
    service_account: Annotated[str, Form(_DNS_WORDS)] = Field(default="maskfleet", pattern=_DNS_LABEL)
    """Identity of the workers, instead of keys: a Kubernetes service account or an AWS instance profile."""
    spot: bool = True
    """Whether workers may run on spot machines, which can be withdrawn at any time."""
    node_cpus: int = Field(default=8, ge=1)
    """CPU cores of one worker node in a generated cluster."""
    node_memory_gib: int = Field(default=30, ge=1)
    """Memory of one worker node in a generated cluster, in GiB."""
    node_gpus: int = Field(default=1, ge=0)
    """GPUs of one worker node in a generated cluster."""
    instance: Annotated[str, Form("an EC2 instance type")] = Field(default="g6.2xlarge", pattern=r"^[a-z0-9.-]+$")
    """AWS instance type of the workers."""
    region: Annotated[str, Form("an AWS region")] = Field(default="us-east-1", pattern=r"^[a-z0-9-]+$")
    """AWS region."""
    ami: Annotated[str | None, Form("the id of an AWS machine image")] = Field(
        default=None, pattern=r"^ami-[0-9a-f]+$", examples=["ami-0abc1234"]
    )
    """AWS machine image with the NVIDIA driver and Docker. Without it: Ray's default for the region."""


class Schedule(Section):
    """When the job runs, for `maskfleet schedule`."""

    cron: str | None = Field(default=None, examples=["30 2 * * *"])
    """The five fields of cron: minute hour day month weekday, such as "30 2 * * *"."""
    timezone: str = "UTC"
    """Time zone of `cron`, as an IANA name such as "Europe/Berlin"."""
    start_within: int = Field(default=3600, ge=60)
    """Seconds after which a run that could not start is skipped (Kubernetes)."""
    hours: int = Field(default=24, ge=1)
    """Hours after which a run is stopped (Kubernetes). The next run resumes it."""

    @field_validator("cron")
    @classmethod
    def _understood(cls, value: str | None) -> str | None:
        if value is not None:
            Crontab.parse(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("is not a time zone; give an IANA name such as Europe/Berlin or UTC")
        return value
