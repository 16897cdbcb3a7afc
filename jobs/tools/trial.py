"""A trial: real attempts at a sample of a plan, in a temporary folder, with their time and sizes measured."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.network.inference_config import threads_of
from maskfleet.jobs.planning.live_plan import manifest_of
from maskfleet.jobs.planning.plan import PlanPart
from maskfleet.jobs.run.attempt import ShardReport, run_shard
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.open_pipeline import open_pipeline
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT, Pipeline
from maskfleet.jobs.storage.local import LocalStorage

_WARM_UP = 8
"""Images of the warm-up shard, at most."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes written for some shards.

    Attributes:
        images: Number of images.
        shards: Number of shards.
        masks: Encoded masks, each counted once.
        containers: Mask archives without the masks themselves: headers, schema, padding.
        rows: Statistics, commits and notes.
    """

    images: int
    shards: int
    masks: int
    containers: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A measured sample.

    Attributes:
        device: Device of the segmenter.
        start_seconds: Time from opening the pipeline to the end of the warm-up shard.
        images: Number of sampled images.
        seconds: Time from the start of the first shard to the end of the last.
        errors: Number of failed images by error class.
        busy: Busy seconds by pipeline stage.
        warm_up: Sizes of the warm-up shard.
        sample: Sizes of the sample.
    """

    device: str
    start_seconds: float
    images: int
    seconds: float
    errors: Mapping[str, float]
    busy: Mapping[str, float]
    warm_up: Sizes
    sample: Sizes


def run_trial(job: Job, sample: pa.Table, *, fingerprint: str, shard_images: int) -> Trial:
    """Process a sample with the job's own pipeline, as many shards at once as on a worker.

    Args:
        job: The job.
        sample: Planned images, at least one.
        fingerprint: Fingerprint of the job.
        shard_images: Images per shard of the plan.

    Raises:
        JobError: The device is missing or cannot do what the job asks.
    """
    with tempfile.TemporaryDirectory(prefix="maskfleet-plan-") as folder:
        storage = LocalStorage(folder)
        images = sample.num_rows
        run = _run(job, storage, fingerprint=fingerprint, manifest=manifest_of(PlanPart(sample, images)))
        began = time.perf_counter()
        with open_pipeline(run, threads_of(job)) as pipeline:
            # At most as large as a shard of the plan: a shard's size has a share independent of its images.
            warm_up = run_shard(run.output, Shard("00000", 0, min(_WARM_UP, images, shard_images)), pipeline)
            start_seconds = time.perf_counter() - began
            # Another run id keeps the files of the warm-up out of the measured sizes.
            output = replace(run.output, run_id="timed", commits=Commits(storage, "timed", "worker"))
            began = time.perf_counter()
            reports = _attempted(output, images, pipeline)
            seconds = time.perf_counter() - began
            device = str(getattr(pipeline.segmenter, "device", "cpu"))
        return Trial(
            device=device,
            start_seconds=start_seconds,
            images=images,
            seconds=seconds,
            errors=_summed([report.errors for report in reports]),
            busy=_summed([report.busy for report in reports]),
            warm_up=_sizes_of(run.output, [warm_up]),
            sample=_sizes_of(output, reports),
        )


def _run(job: Job, storage: LocalStorage, *, fingerprint: str, manifest: Manifest) -> Run:
    record = {"run_id": "warm", "threads": threads_of(job)}
    output = RunOutput(
        storage=storage,
        run_id="warm",
        fingerprint=fingerprint,
        manifest=manifest,
        commits=Commits(storage, "warm", "worker"),
        format=mask_format(job.masks.format),
    )
    return Run(job, record, output)


def _attempted(output: RunOutput, images: int, pipeline: Pipeline) -> list[ShardReport]:
    """Process all images in `SHARDS_IN_FLIGHT` concurrent shards."""
    cuts = [images * number // SHARDS_IN_FLIGHT for number in range(SHARDS_IN_FLIGHT + 1)]
    # The manifest has one shard; these are named as its splits.
    shards = [Shard(f"00000.{start}", start, stop) for start, stop in pairwise(cuts) if stop > start]
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT) as pool:
        return list(pool.map(lambda shard: run_shard(output, shard, pipeline), shards))


def _sizes_of(output: RunOutput, reports: Sequence[ShardReport]) -> Sizes:
    archives = rows = 0
    for entry in output.storage.walk(f"runs/{output.run_id}"):
        if entry.path.rsplit("/", 1)[-1] == output.format.archive:
            archives += entry.size
        else:
            rows += entry.size
    masks = sum(pc.sum(rows_of(output.storage, report.commit)["mask_bytes"]).as_py() or 0 for report in reports)
    return Sizes(
        images=sum(report.commit.images for report in reports),
        shards=len(reports),
        masks=masks,
        containers=max(0, archives - masks),
        rows=rows,
    )


def _summed(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total
