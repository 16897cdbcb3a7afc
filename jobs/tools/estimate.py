"""What a run would cost: a few of its images go the whole way on this machine, and the rest is multiplication.

The sample goes in real attempts into a temporary folder, by the job's own pipeline, as many at once as a worker has:
what it takes and what it writes are measured, not modelled. Its images come from all over the plan.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.catalog import final_failures
from maskfleet.jobs.ledger.commit import Commits
from maskfleet.jobs.ledger.manifest import Manifest, Shard
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.ledger.shard_files import rows_of
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.network.inference_config import threads_of
from maskfleet.jobs.planning.plan import in_memory, sampled
from maskfleet.jobs.run.attempt import ShardReport, run_shard
from maskfleet.jobs.run.begin import Planned, Run
from maskfleet.jobs.run.open_pipeline import open_pipeline
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT, Pipeline
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.jobs.timing.stage_timers import busiest

SAMPLE = 64
"""Images that are timed."""

WORKERS = (1, 8, 64)
_WARM = 8
_PAGE = 1000
"""Keys of a listing request."""


def estimate(job: Job, planned: Planned, fingerprint: str) -> dict[str, Any]:
    """Count the whole plan, time a sample, and reckon.

    Args:
        job: What to do.
        planned: Its plan, of which nothing was taken yet.
        fingerprint: Of the job.

    Returns:
        What `maskfleet plan` shows.

    Raises:
        JobError: The device is not there or cannot do what the job asks.
    """
    began = time.perf_counter()
    shards = 0

    def parts() -> Iterator[pa.Table]:
        nonlocal shards
        for table, size in chain([planned.first], planned.parts):
            shards += -(-table.num_rows // size)
            yield table

    (chosen,) = sampled(parts(), SAMPLE)
    planning = planned.planning
    counted = {
        "listed": planning.listed,
        "done": planning.done,
        "images": planning.images,
        "why": dict(planning.why),
        "gone": planning.gone,
        "shards": shards,
        "bytes": planning.bytes,
        "listing_seconds": round(planned.seconds + time.perf_counter() - began, 2),
        "fingerprint": fingerprint,
    }
    if not planning.images:
        return counted
    with tempfile.TemporaryDirectory(prefix="maskfleet-plan-") as folder:
        storage = LocalStorage(folder)
        run = _trial(job, storage, fingerprint, in_memory(chosen, chosen.num_rows))
        began = time.perf_counter()
        with open_pipeline(run, threads_of(job)) as pipeline:
            # No larger than the run's shards, whose files are no matter of their images alone.
            few = min(_WARM, chosen.num_rows, -(-planning.images // shards))
            warm = run_shard(run.output, Shard("00000", 0, few), pipeline)
            start = time.perf_counter() - began
            # Another run id, so that what was written to get warm does not count.
            output = replace(run.output, run_id="timed", commits=Commits(storage, "timed", "worker"))
            timed = _timed(output, chosen.num_rows, pipeline)
            device = str(getattr(pipeline.segmenter, "device", "cpu"))
        sizes = _Sizes.of(run.output, [warm]), _Sizes.of(output, timed.reports)
    return counted | _reckoned(job, counted, timed, start, sizes, device)


class _Timed(NamedTuple):
    """The sample, done as a run does it.

    Attributes:
        reports: Of its shards.
        images: Of all of them.
        seconds: From the first one's beginning to the last one's end.
    """

    reports: list[ShardReport]
    images: int
    seconds: float


def _timed(output: RunOutput, images: int, pipeline: Pipeline) -> _Timed:
    cuts = [images * number // SHARDS_IN_FLIGHT for number in range(SHARDS_IN_FLIGHT + 1)]
    # By their names, parts of one: the whole sample is one shard of its plan.
    shards = [Shard(f"00000.{start}", start, stop) for start, stop in pairwise(cuts) if stop > start]
    began = time.perf_counter()
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT) as pool:
        reports = list(pool.map(lambda shard: run_shard(output, shard, pipeline), shards))
    return _Timed(reports, images, time.perf_counter() - began)


class _Line(NamedTuple):
    """Bytes of a shard's files beside its masks: so many for each image, and so many whatever they hold."""

    image: float
    shard: float

    @classmethod
    def through(cls, few: "_Sizes", many: "_Sizes", name: str) -> "_Line":
        """Where images are few, a shard is mostly schema and footer; two sizes tell the one from the other."""
        less, more = (getattr(sizes, name) / sizes.shards for sizes in (few, many))
        images = many.images / many.shards - few.images / few.shards
        image = max(0.0, (more - less) / images) if images > 0 else 0.0
        return cls(image, less - image * few.images / few.shards)


class _Sizes(NamedTuple):
    """What some shards of a run wrote, in bytes.

    Attributes:
        masks: PNG files, each counted once.
        around: What holds them beside them.
        rows: Statistics, commits and notes.
    """

    images: int
    shards: int
    masks: int
    around: int
    rows: int

    @classmethod
    def of(cls, output: RunOutput, reports: Sequence[ShardReport]) -> "_Sizes":
        sizes = {"masks": 0, "rows": 0}
        for entry in output.storage.walk(f"runs/{output.run_id}"):
            sizes["masks" if entry.path.rsplit("/", 1)[-1] == output.format.archive else "rows"] += entry.size
        masks = sum(pc.sum(rows_of(output.storage, report.commit)["mask_bytes"]).as_py() or 0 for report in reports)
        images = sum(report.commit.images for report in reports)
        return cls(images, len(reports), masks, max(0, sizes["masks"] - masks), sizes["rows"])


def _trial(job: Job, storage: LocalStorage, fingerprint: str, manifest: Manifest) -> Run:
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


def _reckoned(
    job: Job, counted: dict[str, Any], timed: _Timed, start: float, sizes: tuple[_Sizes, _Sizes], device: str
) -> dict[str, Any]:
    images, shards = counted["images"], counted["shards"]
    each = timed.seconds / timed.images
    share = images / timed.images
    errors, busy = _summed(report.errors for report in timed.reports), _summed(report.busy for report in timed.reports)
    workers = [_with(job, count, counted, each, start, gpu=device.startswith("cuda")) for count in WORKERS]
    # Per shard: its tar or table, its statistics, its commit, and the note that it was exported.
    masks = mask_format(job.masks.format)
    loose = images if masks.loose else 0
    requests = {
        "list": -(-counted["listed"] // _PAGE),
        "get": images + 3 * shards,
        "put": 4 * shards + loose,
    }
    rows, around = _Line.through(*sizes, "rows"), _Line.through(*sizes, "around")
    copies = 2 if masks.loose else 1
    # Rows are written twice: with their shard, and compacted.
    each_image = copies * sizes[1].masks / timed.images + around.image + 2 * rows.image
    output = round(images * each_image + shards * (rows.shard + around.shard))
    prices = job.prices
    money = requests["get"] * prices.get_1000 / 1000 + (requests["put"] + requests["list"]) * prices.put_1000 / 1000
    failed = {name: round(count * share) for name, count in errors.items()}
    again = sum(count for name, count in failed.items() if name not in final_failures())
    return {
        "device": device,
        "sample": timed.images,
        "images_per_second_of_a_worker": round(1 / each, 2),
        "start_seconds": round(start, 1),
        "expected_failures": failed,
        "workers": workers,
        "limit": busiest(busy),
        "requests": requests,
        "output_bytes": output,
        "requests_cost": f"{money:.2f} {prices.currency}",
        "keeping_cost": f"{output / 1e9 * prices.gb_month:.2f} {prices.currency} a month",
        "next_night": f"{again} of these failures again, and what is new or changed by then",
    }


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def _with(job: Job, workers: int, counted: dict[str, Any], each: float, start: float, *, gpu: bool) -> dict[str, Any]:
    # Shards are whole: the last round is as long as any, however few workers it keeps busy.
    size = -(-counted["images"] // counted["shards"])
    rounds = counted["images"] / (workers * size)
    rounds = rounds + 0.5 if workers > 1 else rounds
    work = max(rounds, 1.0 if workers > 1 else 0.0) * size * each if counted["shards"] > workers else size * each
    seconds = max(start + work, counted["listing_seconds"])
    hours = workers * seconds / 3600
    price = job.prices.gpu_hour if gpu else job.prices.worker_hour
    found: dict[str, Any] = {
        "workers": workers,
        "seconds": round(seconds, 1),
        "start_share": round(start / seconds, 3),
        "cost": f"{hours * price:.2f} {job.prices.currency}",
        "limit": "listing" if seconds <= counted["listing_seconds"] else "start" if start > work else "work",
    }
    return found | ({"gpu_hours": round(hours, 3)} if gpu else {"worker_hours": round(hours, 3)})
