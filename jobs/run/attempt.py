"""One attempt at a shard: fetch → decode → segment → encode → write → commit. The way of all data."""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.images.decoders import Failure
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.commit import Commit, Commits, Object, checked, nonce, put
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.masks.formats import EncodedMask, MaskFormat
from maskfleet.jobs.run.pipeline import Outcome, Pipeline
from maskfleet.jobs.stage_timers import StageTimers
from maskfleet.jobs.storage.contract import Storage

STATS = "stats.parquet"


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """The report of an attempt. Small, since it crosses processes.

    Attributes:
        shard: The shard.
        commit: The commit of the shard; if only the driver may commit, the one for it to write.
        committed: Whether that commit is written.
        seconds: Duration of the attempt, in seconds.
        errors: Failed images by error class.
        busy: Seconds of work by stage.
        starved: Seconds without input by stage.
        blocked: Seconds waiting for the next stage, by stage.
        concurrency: Threads, processes or streams of this worker by stage.
        forward: The worker's bare forward pass; see `jobs.run.bottleneck.Speed`.
        began: Start of the attempt by the worker's own clock, in seconds.
        short_of_memory: By image size, the batch and tile sizes tried until they fitted into memory.
        worker: Host and process of the worker; "" if there was none.
        pixels: Pixels of the images at the size that the network saw.
    """

    shard: Shard
    commit: Commit
    committed: bool
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    busy: Mapping[str, float] = field(default_factory=dict)
    starved: Mapping[str, float] = field(default_factory=dict)
    blocked: Mapping[str, float] = field(default_factory=dict)
    concurrency: Mapping[str, int] = field(default_factory=dict)
    forward: Mapping[str, Any] | None = None
    began: float = 0.0
    short_of_memory: Mapping[str, list[str]] = field(default_factory=dict)
    worker: str = ""
    pixels: float = 0.0


@dataclass(frozen=True)
class RunOutput:
    """Where attempts of a run write: what each of them needs to know of it.

    Attributes:
        storage: The output.
        run_id: The run.
        fingerprint: Of the run.
        manifest: Its plan.
        commits: Its commits.
        format: Format of the masks.
    """

    storage: Storage
    run_id: str
    fingerprint: str
    manifest: Manifest
    commits: Commits
    format: MaskFormat


def run_shard(output: RunOutput, shard: Shard, pipeline: Pipeline) -> ShardReport:
    """Do a shard and commit it. Safe to do twice, at once or again: one attempt counts.

    Raises:
        MaskfleetError: Storage, or the right to use it, is gone; other shards would fare the same.
    """
    started = time.perf_counter()
    records = output.manifest.records(shard)
    meters = StageTimers()
    outcomes = pipeline.run([record for record, _ in records], meters)
    with meters.timed("write"):
        commit = _written(output, shard, list(zip(records, outcomes, strict=True)))
        committed = output.commits.mode == "worker"
        if committed:
            masks = _masks((name, outcome) for (_, name), outcome in zip(records, outcomes, strict=True))
            commit = settle(output, commit, masks)
    pixels = sum(height * width for height, width in (outcome.size or (0, 0) for outcome in outcomes))
    return ShardReport(
        shard=shard,
        commit=commit,
        committed=committed,
        seconds=time.perf_counter() - started,
        errors=Counter(outcome.failure.error_class for outcome in outcomes if outcome.failure),
        busy=dict(meters.busy),
        starved=dict(meters.starved),
        blocked=dict(meters.blocked),
        concurrency=pipeline.concurrency,
        forward=pipeline.forward,
        began=started,
        short_of_memory=pipeline.short_of_memory(),
        worker=worker_name(),
        pixels=pixels * pipeline.decoders.limits.scale**2,
    )


def fail_shard(output: RunOutput, shard: Shard, failure: Failure) -> ShardReport:
    """Commit a shard of one image as failed, by the driver, when it cannot be done at all."""
    outcomes = [(record, Outcome(failure=failure)) for record in output.manifest.records(shard)]
    commit = settle(output, _written(output, shard, outcomes), {})
    return ShardReport(shard=shard, commit=commit, committed=True, errors={failure.error_class: len(outcomes)})


def settle(output: RunOutput, commit: Commit, masks: Mapping[str, EncodedMask] | None = None) -> Commit:
    """Commit an attempt that is written, and export its masks if it is the one that counts.

    Args:
        output: The run.
        commit: The attempt's record.
        masks: Encoded masks by name; None to read them back.

    Returns:
        The commit that counts.
    """
    first = output.commits.commit(commit)
    if first.attempt != commit.attempt:
        for item in commit.objects.values():
            with suppress(StorageError):  # nothing reads it, so it may as well stay
                output.storage.delete(item.path)
    elif output.format.loose:
        export(output, commit, None if masks is None else masks.items())
    return first


def export(output: RunOutput, commit: Commit, masks: Iterable[tuple[str, bytes]] | None = None) -> None:
    """Write a committed shard's masks as loose files, and then note that it was done.

    Args:
        output: The run.
        commit: The shard's commit.
        masks: Files by name; None to read them from the shard's archive.
    """
    if masks is None:
        masks = masks_of(output.storage, commit, output.format)
    output.storage.export_all((f"masks/{name}", data) for name, data in masks)
    output.storage.write(f"runs/{output.run_id}/exports/{commit.shard}", b"")


def masks_of(storage: Storage, commit: Commit, format_: MaskFormat) -> Iterator[tuple[str, bytes]]:
    """Yield name and file of each mask in a committed shard's archive, in the order of its rows.

    Raises:
        StorageError: The archive is missing or damaged.
    """
    if format_.archive is not None and format_.archive in commit.objects:
        yield from format_.unpack(checked(storage, commit.objects[format_.archive]))


def worker_name() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _written(output: RunOutput, shard: Shard, done: list[tuple[tuple[Record, str], Outcome]]) -> Commit:
    attempt = nonce()
    folder = f"runs/{output.run_id}/shards/{shard.id}/{attempt}"
    objects: dict[str, Object] = {}
    masks = _masks((name, outcome) for (_, name), outcome in done)
    archive = output.format.archive
    rows = list(_rows(output, attempt, folder, done))
    table = statistics.table_of(rows)
    if archive is not None and masks:
        objects[archive] = put(output.storage, f"{folder}/{archive}", output.format.pack(table, masks))
    objects[STATS] = put(output.storage, f"{folder}/{STATS}", statistics.table_parquet(table))
    return Commit(shard.id, attempt, objects, len(rows), sum(row["status"] == "failed" for row in rows))


def _masks(named: Iterable[tuple[str, Outcome]]) -> dict[str, EncodedMask]:
    return {name: outcome.mask for name, outcome in named if outcome.mask is not None}


def _rows(
    output: RunOutput, attempt: str, folder: str, done: list[tuple[tuple[Record, str], Outcome]]
) -> Iterator[dict[str, Any]]:
    worker = worker_name()
    for (record, name), outcome in done:
        row: dict[str, Any] = {
            **record._asdict(),
            **{f"{stage}_seconds": seconds for stage, seconds in outcome.seconds.items()},
            "run_id": output.run_id,
            "fingerprint": output.fingerprint,
            "attempt": attempt,
            "worker": worker,
        }
        if outcome.size is not None:
            row |= {"height": outcome.size[0], "width": outcome.size[1]}
        if outcome.failure is not None:
            row |= {
                "status": "failed",
                "stage": outcome.failure.stage,
                "error_class": outcome.failure.error_class,
                "error_message": outcome.failure.message,
            }
        else:
            row |= {"status": "ok", **outcome.columns}
        if outcome.mask is not None:
            row |= output.format.columns(outcome.mask, name=name, folder=folder)
        yield row


def rows_of(storage: Storage, commit: Commit) -> pa.Table:
    """A committed shard's statistics."""
    return statistics.read(checked(storage, commit.objects[STATS]))
