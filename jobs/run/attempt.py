"""One attempt at a shard: fetch → decode → segment → encode → write → commit. All data takes this path."""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.images.contract import Failure
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.ledger import statistics
from maskfleet.jobs.ledger.catalog import UNNAMED
from maskfleet.jobs.ledger.commit import Commit, Object, nonce, put
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.ledger.run_output import RunOutput, refused_name
from maskfleet.jobs.ledger.shard_files import STATISTICS
from maskfleet.jobs.masks.formats import EncodedMask
from maskfleet.jobs.run.pipeline import Pipeline
from maskfleet.jobs.run.stages.shard_pass import Outcome
from maskfleet.jobs.timing.stage_timers import StageTimers


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """The report of an attempt. Small, since it is sent between processes.

    Attributes:
        shard: The shard.
        commit: The commit of the shard; if only the driver may commit, the one to be written by the driver.
        committed: Whether the commit is already written.
        seconds: Duration of the attempt in seconds.
        errors: Failed images by error class.
        busy: Seconds of work by stage.
        starved: Seconds of waiting for input by stage.
        blocked: Seconds of waiting on a full output queue by stage.
        concurrency: Threads, processes or streams of this worker by stage.
        forward: The worker's bare forward pass; see `jobs.timing.bottleneck.Speed`.
        began: Start of the attempt in seconds, by the worker's own clock.
        short_of_memory: By image size, the batch and tile sizes tried until they fitted into memory.
        worker: Host and process id of the worker; "" if none was involved.
        pixels: Number of pixels after scaling.
        isolation: Means of the kernel that held the decoding processes; None if none was involved.
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
    isolation: Sequence[str] | None = None


def run_shard(output: RunOutput, shard: Shard, pipeline: Pipeline) -> ShardReport:
    """Attempt a shard and commit it. Safe to repeat, even concurrently: exactly one attempt counts.

    Raises:
        MaskfleetError: Storage fails or denies access, which affects every shard.
    """
    started = time.perf_counter()
    records = output.manifest.records(shard)
    timers = StageTimers()
    refused = [refused_name(output.storage, output.format, name) for _, name in records]
    wanted = [record for (record, _), reason in zip(records, refused, strict=True) if reason is None]
    outcomes = pipeline.run(wanted, timers) if wanted else []
    named = list(_named(records, refused, outcomes))
    with timers.timed("write"):
        commit = _write(output, shard, named)
        committed = output.commits.mode == "worker"
        if committed:
            commit = settle(output, commit, _masks(named))
    pixels = sum(height * width for height, width in (outcome.size or (0, 0) for outcome in outcomes))
    return ShardReport(
        shard=shard,
        commit=commit,
        committed=committed,
        seconds=time.perf_counter() - started,
        errors=Counter(outcome.failure.error_class for _, outcome in named if outcome.failure),
        busy=dict(timers.busy),
        starved=dict(timers.starved),
        blocked=dict(timers.blocked),
        concurrency=pipeline.concurrency,
        forward=pipeline.forward,
        began=started,
        short_of_memory=pipeline.short_of_memory(),
        worker=worker_name(),
        pixels=pixels * pipeline.decoders.limits.scale**2,
        isolation=pipeline.decoders.means,
    )


def fail_shard(output: RunOutput, shard: Shard, failure: Failure) -> ShardReport:
    """Commit a shard of one image as failed. The driver does this for an image that crashes every worker."""
    named = [Named(name, Outcome(record, failure=failure)) for record, name in output.manifest.records(shard)]
    commit = settle(output, _write(output, shard, named), {})
    return ShardReport(shard=shard, commit=commit, committed=True, errors={failure.error_class: len(named)})


def settle(output: RunOutput, commit: Commit, masks: Mapping[str, EncodedMask] | None = None) -> Commit:
    """Commit a fully written attempt; if it wins, export its masks.

    Args:
        output: Output of the run.
        commit: Commit of the attempt.
        masks: Encoded masks by name; None to read them back from storage.

    Returns:
        The winning commit, possibly that of an earlier attempt.
    """
    first = output.commits.commit(commit)
    if first.attempt != commit.attempt:
        for item in commit.objects.values():
            with suppress(StorageError):  # harmless leftovers: no reader uses them
                output.storage.delete(item.path)
    elif output.format.loose:
        output.export(commit, None if masks is None else masks.items())
    return first


def worker_name() -> str:
    """Return the host name and process id of this process, as "host:pid"."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Named(NamedTuple):
    """The outcome of an image and the name of its mask."""

    name: str
    outcome: Outcome


def _named(
    records: Sequence[tuple[Record, str]], refused: Sequence[str | None], outcomes: Sequence[Outcome]
) -> Iterator[Named]:
    """Yield every image of a shard: with its outcome, or failed because the output cannot hold its mask's name."""
    done = iter(outcomes)
    for (record, name), reason in zip(records, refused, strict=True):
        failure = Failure("plan", UNNAMED, reason) if reason else None
        yield Named(name, Outcome(record, failure=failure) if failure else next(done))


def _masks(named: Sequence[Named]) -> dict[str, EncodedMask]:
    return {name: outcome.mask for name, outcome in named if outcome.mask is not None}


def _write(output: RunOutput, shard: Shard, named: Sequence[Named]) -> Commit:
    """Write the files of an attempt to a folder of its own, and return the commit naming them."""
    attempt = nonce()
    folder = f"runs/{output.run_id}/shards/{shard.id}/{attempt}"
    worker = worker_name()
    rows = [_row(output, item, attempt=attempt, worker=worker, folder=folder) for item in named]
    table = statistics.table_of(rows)
    objects: dict[str, Object] = {}
    archive, masks = output.format.archive, _masks(named)
    if archive is not None and masks:
        objects[archive] = put(output.storage, f"{folder}/{archive}", output.format.pack(table, masks))
    objects[STATISTICS] = put(output.storage, f"{folder}/{STATISTICS}", statistics.table_parquet(table))
    return Commit(shard.id, attempt, objects, len(rows), sum(row["status"] == "failed" for row in rows))


def _row(output: RunOutput, item: Named, *, attempt: str, worker: str, folder: str) -> dict[str, Any]:
    name, outcome = item
    row: dict[str, Any] = {
        **outcome.record._asdict(),
        **{f"{stage}_seconds": seconds for stage, seconds in outcome.seconds.items()},
        "run_id": output.run_id,
        "fingerprint": output.fingerprint,
        "attempt": attempt,
        "worker": worker,
    }
    if outcome.size is not None:
        row |= {"height": outcome.size[0], "width": outcome.size[1]}
    if outcome.failure is None:
        row |= {"status": "ok", **outcome.columns}
    else:
        row |= {
            "status": "failed",
            "stage": outcome.failure.stage,
            "error_class": outcome.failure.error_class,
            "error_message": outcome.failure.message,
        }
    if outcome.mask is not None:
        row |= output.format.columns(outcome.mask, name=name, folder=folder)
    return row
