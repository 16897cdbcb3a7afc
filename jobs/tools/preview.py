"""A plan for people: which images a run would process, and why. Writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import SCHEMA
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values
from maskfleet.jobs.planning.mask_checks import refuse_other_channels
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.training.finetune import apply_finished_finetuning

_COLUMNS = ["key", "url", "size", "etag", "why"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The images that a run would process.

    Attributes:
        images: Number of images to process.
        listed: Number of images found in the input.
        reasons: Number of images to process, by reason: new, changed, stale (other weights or settings), failed.
        gone: Number of images of earlier runs that the input no longer holds.
        shards: Number of shards.
        bytes: Size of the images to process, in bytes. Estimated for images in Parquet files.
        left_alone: Number of files in the input that are no images of it, by the rule that left them alone.
        fingerprint: Hash of everything that a mask depends on besides its image.
        table: One row per image to process: key, url, size in bytes, etag, and why.
    """

    images: int
    listed: int
    reasons: Mapping[str, int]
    gone: int
    shards: int
    bytes: int
    left_alone: Mapping[str, int]
    fingerprint: str
    table: pa.Table


def plan(job: Job) -> Plan:
    """List the input and compare it with the output, as `run` would. Writes nothing.

    The whole table is in memory, one row per image to process.

    Args:
        job: The job.

    Raises:
        JobError: Job, input or weights are wrong.
        StorageError: Storage keeps failing.
    """
    job = apply_finished_finetuning(job)
    weights = load_weights(job)
    mask_values(job, weights)
    fingerprint = fingerprint_of(job, weights)
    started = start_plan(job, fingerprint)
    refuse_other_channels(job, weights, started.manifest)
    schema = pa.schema([SCHEMA.field(name) for name in _COLUMNS])
    parts = list(chain([started.first], started.parts))
    table = pa.concat_tables([schema.empty_table(), *(part.table.select(_COLUMNS) for part in parts)])
    planning = started.planning
    return Plan(
        images=planning.images,
        listed=planning.listed,
        reasons=dict(planning.reasons),
        gone=planning.gone,
        shards=sum(part.shards for part in parts),
        bytes=planning.bytes,
        left_alone=planning.left_alone,
        fingerprint=fingerprint,
        table=table,
    )
