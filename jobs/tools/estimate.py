"""The estimated cost of a run: a sample is processed for real on this machine, and its time and sizes are scaled up.

The sample comes from all over the plan and runs through the job's own pipeline, so both are measured, not modelled.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.catalog import final_failures
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.planning.plan import sampled
from maskfleet.jobs.run.begin import Planned
from maskfleet.jobs.storage.schemes import is_local
from maskfleet.jobs.timing.stage_timers import busiest
from maskfleet.jobs.tools.trial import Sizes, Trial, run_trial

SAMPLE = 64
"""Number of images processed for the estimate."""

WORKERS = (1, 8, 64)
"""Numbers of workers estimated for."""

_PAGE = 1000
"""Keys per listing request."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The plan in numbers.

    Attributes:
        listed: Images in the input.
        done: Images that need no work or are not selected.
        images: Planned images.
        why: Planned images by reason.
        gone: Known images no longer in the input.
        left_alone: Files of the input that are no images of it, by the rule that left them alone.
        shards: Number of shards.
        bytes: Size of the planned images in bytes.
        listing_seconds: Time taken to list the input.
        fingerprint: Fingerprint of the job.
    """

    listed: int
    done: int
    images: int
    why: Mapping[str, int]
    gone: int
    left_alone: Mapping[str, int]
    shards: int
    bytes: int
    listing_seconds: float
    fingerprint: str

    @property
    def shard_images(self) -> int:
        """Images per shard, rounded up."""
        return -(-self.images // self.shards)


@dataclass(frozen=True, kw_only=True)
class WorkersEstimate:
    """The estimate for a number of workers.

    Attributes:
        workers: Number of workers.
        seconds: Duration of the run.
        start_share: Share of the workers' start in `seconds`.
        cost: Compute cost; None if the job states no price of an hour.
        waits_for: What the run waits for most: "listing", "start" or "work".
        hours: Worker hours, or GPU hours with one GPU per worker.
        gpu: Whether each worker has a GPU.
    """

    workers: int
    seconds: float
    start_share: float
    cost: float | None
    waits_for: str
    hours: float
    gpu: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        table = asdict(self)
        hours, gpu = table.pop("hours"), table.pop("gpu")
        return table | {"gpu_hours" if gpu else "worker_hours": hours}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The scaled-up part of an estimate.

    Attributes:
        device: Device of the sample.
        sample: Number of sampled images.
        images_per_second_of_a_worker: Throughput of one worker.
        start_seconds: Start of a worker.
        expected_failures: Expected number of failed images by error class.
        workers: Estimates for `WORKERS`.
        busiest_stage: Pipeline stage with the most seconds of work.
        requests: Number of storage requests by kind.
        output_bytes: Size of the output in bytes.
        currency: Currency of all costs.
        requests_cost: Cost of the requests; None if input and output are local.
        keeping_cost: Cost of storing the output for a month; None if it is local.
        next_night: What a second run would process.
    """

    device: str
    sample: int
    images_per_second_of_a_worker: float
    start_seconds: float
    expected_failures: Mapping[str, int]
    workers: Sequence[WorkersEstimate]
    busiest_stage: str
    requests: Mapping[str, int]
    output_bytes: int
    currency: str
    requests_cost: float | None
    keeping_cost: float | None
    next_night: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self) | {"workers": [each.to_dict() for each in self.workers]}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The result of `maskfleet plan`.

    Attributes:
        counts: The plan in numbers.
        cost: Scaled-up measurements; None if no image is planned.
    """

    counts: Counts
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as printed by `maskfleet plan --json`."""
        return asdict(self.counts) | ({} if self.cost is None else self.cost.to_dict())


def estimate(job: Job, planned: Planned, fingerprint: str, *, before: float = 0.0) -> Estimate:
    """Count the plan to its end, process a sample, and scale up.

    Args:
        job: The job.
        planned: Plan of the job, with only its first part taken.
        fingerprint: Fingerprint of the job.
        before: Seconds that the command took before it listed the input.

    Raises:
        JobError: The device is missing or cannot do what the job asks.
    """
    began = time.perf_counter()
    shards = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal shards
        for part in chain([planned.first], planned.parts):
            shards += part.shards
            yield part.table

    (sample,) = sampled(tables(), SAMPLE)
    planning = planned.planning
    counts = Counts(
        listed=planning.listed,
        done=planning.done,
        images=planning.images,
        why=dict(planning.reasons),
        gone=planning.gone,
        left_alone=planning.left_alone,
        shards=shards,
        bytes=planning.bytes,
        listing_seconds=round(planned.seconds + time.perf_counter() - began, 2),
        fingerprint=fingerprint,
    )
    if not counts.images:
        return Estimate(counts=counts, cost=None)
    trial = run_trial(job, sample, fingerprint=fingerprint, shard_images=counts.shard_images)
    return Estimate(counts=counts, cost=_cost(job, counts, trial, before))


def _cost(job: Job, counts: Counts, trial: Trial, before: float) -> Cost:
    prices = job.prices
    requests = _requests(job, counts)
    output_bytes = _output_bytes(job, counts, trial)
    requests_cost = (
        requests["get"] * prices.get_1000 / 1000 + (requests["put"] + requests["list"]) * prices.put_1000 / 1000
    )
    failures = {name: round(count * counts.images / trial.images) for name, count in trial.errors.items()}
    retries = sum(count for name, count in failures.items() if name not in final_failures())
    return Cost(
        device=trial.device,
        sample=trial.images,
        images_per_second_of_a_worker=round(trial.images / trial.seconds, 2),
        start_seconds=round(trial.start_seconds, 1),
        expected_failures=failures,
        workers=[_with_workers(job, count, counts, trial, before) for count in WORKERS],
        busiest_stage=busiest(trial.busy),
        requests=requests,
        output_bytes=output_bytes,
        currency=prices.currency,
        requests_cost=None if is_local(job.input) and is_local(job.output) else round(requests_cost, 4),
        keeping_cost=None if is_local(job.output) else round(output_bytes / 1e9 * prices.gb_month, 4),
        next_night=f"new or changed images; {retries} {'retry' if retries == 1 else 'retries'}",
    )


def _requests(job: Job, counts: Counts) -> dict[str, int]:
    # Per shard: mask archive, statistics, commit, and the mark of its export.
    loose = counts.images if mask_format(job.masks.format).loose else 0
    return {
        "list": -(-counts.listed // _PAGE),
        "get": counts.images + 3 * counts.shards,
        "put": 4 * counts.shards + loose,
    }


def _output_bytes(job: Job, counts: Counts, trial: Trial) -> int:
    rows_image, rows_shard = _per_image_and_shard(trial.warm_up, trial.sample, "rows")
    containers_image, containers_shard = _per_image_and_shard(trial.warm_up, trial.sample, "containers")
    copies = 2 if mask_format(job.masks.format).loose else 1
    # Rows are stored twice: with their shard, and compacted.
    per_image = copies * trial.sample.masks / trial.images + containers_image + 2 * rows_image
    return round(counts.images * per_image + counts.shards * (rows_shard + containers_shard))


def _per_image_and_shard(small: Sizes, large: Sizes, name: str) -> tuple[float, float]:
    """Split a size into bytes per image and constant bytes per shard, from measurements with few and many images."""
    less, more = (getattr(sizes, name) / sizes.shards for sizes in (small, large))
    images = large.images / large.shards - small.images / small.shards
    per_image = max(0.0, (more - less) / images) if images > 0 else 0.0
    return per_image, less - per_image * small.images / small.shards


def _with_workers(job: Job, workers: int, counts: Counts, trial: Trial, before: float) -> WorkersEstimate:
    rounds = counts.images / (workers * counts.shard_images)
    if counts.shards <= workers:
        rounds = 1.0
    elif workers > 1:
        # Shards are not divided, so the last round lasts as long as any: half a shard per worker is lost on average.
        rounds = max(rounds + 0.5, 1.0)
    work = rounds * counts.shard_images * trial.seconds / trial.images
    seconds = before + max(trial.start_seconds + work, counts.listing_seconds)
    hours = workers * seconds / 3600
    gpu = trial.device.startswith("cuda")
    waits_for = "start" if before + trial.start_seconds > work else "work"
    price = job.prices.gpu_hour if gpu else job.prices.worker_hour
    return WorkersEstimate(
        workers=workers,
        seconds=round(seconds, 1),
        start_share=round(trial.start_seconds / seconds, 3),
        cost=round(hours * price, 4) if price else None,
        waits_for="listing" if trial.start_seconds + work <= counts.listing_seconds else waits_for,
        hours=round(hours, 3),
        gpu=gpu,
    )
