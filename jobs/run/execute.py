"""A run: one execution of a job, from the plan to the last record. Here without Ray; `cluster.driver` adds machines.

begin     check weights, list the input, lock the output, go on with an unfinished run or freeze a plan
attempts  every shard through `jobs.run.attempt.run_shard`
finish    derive what is derived from commits: loose masks, statistics, run.json
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError, MaskfleetError, Stopped, StorageError, Unfinished
from maskfleet.jobs.images.decoders import Failure
from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import leaves, pending
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.masks.formats import Encoder
from maskfleet.jobs.network import tuning
from maskfleet.jobs.network.inference_config import encoder_of, fingerprint_of, load_weights, segmenter_of
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.planning.plan import gone_rows
from maskfleet.jobs.run import webhook
from maskfleet.jobs.run.attempt import ShardReport, fail_shard, run_shard, settle
from maskfleet.jobs.run.backlog import Backlog, Task
from maskfleet.jobs.run.begin import Run, Stop, begin
from maskfleet.jobs.run.bottleneck import limit, share_of_forward
from maskfleet.jobs.run.derived import compact, export_rest
from maskfleet.jobs.run.pipeline import SHARDS_IN_FLIGHT, Pipeline
from maskfleet.jobs.run.progress import Tally
from maskfleet.jobs.training.finetune import improved
from maskfleet.jobs.training.loop import Progress as Learning
from maskfleet.jobs.training.loop import Train
from maskfleet.jobs.training.loop import train as train_here


@dataclass(frozen=True)
class RunReport:
    """The outcome of a run; `run.json` holds the same.

    Attributes:
        run_id: Which.
        exit_code: 0 complete, 1 if more images failed than the job allows.
        images: Planned, and each with exactly one row.
        record: All of it.
    """

    run_id: str
    exit_code: int
    images: int
    ok: int
    failed: int
    record: dict[str, Any]


Progress = Callable[[Run, Tally], None]
OpenPipeline = Callable[[Run, int], Pipeline]
Attempts = Callable[[Run, Backlog, Tally, Stop], Generator[ShardReport | None, None, None]]


def run(
    job: Job, *, progress: Progress | None = None, stopped: Callable[[], bool] | None = None,
    learning: Learning | None = None, open_pipeline: OpenPipeline | None = None,
) -> RunReport:  # fmt: skip
    """Run a job in this process.

    Args:
        job: What to do.
        progress: Called at the start and after every shard.
        stopped: Asked before each shard and training step; True ends the run early, to be gone on with later.
        learning: Called after every training step, where the job has a `finetune` section.
        open_pipeline: Makes the pipeline; for tests and benchmarks.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Refused: The gate refused the new weights.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        StorageError: Storage goes on failing.
    """

    def attempts(this: Run, backlog: Backlog, tally: Tally, stop: Stop) -> Generator[ShardReport | None, None, None]:
        with (open_pipeline or pipeline_of_job)(this, cores()) as pipeline:
            tally.reached("worker")
            yield from _attempts(this, backlog, pipeline, tally, stop)

    return execute(job, attempts, progress=progress, stopped=stopped, learning=learning)


def execute(
    job: Job, attempts: Attempts, *, progress: Progress | None = None, stopped: Callable[[], bool] | None = None,
    learning: Learning | None = None, train: Train = train_here,
) -> RunReport:  # fmt: skip
    """The run, whoever does the attempts; before it the training.

    Args:
        job: What to do.
        attempts: Does the backlog, yielding the report of each shard that is on record, or None as a sign of life. Not
            called where nothing is left to do. Asks its last argument whether to hand out no more.
        progress: Called at the start and after everything that `attempts` yields.
        stopped: True ends the run early.
        learning: Called after every training step.
        train: Makes those.
    """
    seconds = job.run.deadline_seconds
    deadline = math.inf if seconds is None else time.monotonic() + seconds

    def stop() -> bool:
        return time.monotonic() > deadline or bool(stopped and stopped())

    try:
        job = improved(job, progress=learning, stopped=stop, train=train)
        report = _executed(job, attempts, progress, stop)
        while not report.record["listed_to_its_end"]:  # planning was cut off in that run; the next one does the rest
            rest = _executed(job, attempts, progress, stop)
            report = replace(rest, exit_code=max(report.exit_code, rest.exit_code))
    except Stopped:
        if time.monotonic() <= deadline:
            raise
        late = Unfinished(f"the deadline of {job.run.deadline} came before the last shard; run the same command again")
        webhook.post(job, {"name": job.name, "output": job.output, "status": "unfinished", "error": str(late)})
        raise late from None
    except MaskfleetError as error:
        webhook.post(job, {"name": job.name, "output": job.output, "status": "error", "error": str(error)})
        raise
    webhook.post(job, {"name": job.name, "output": job.output, **report.record})
    return report


def _executed(job: Job, attempts: Attempts, progress: Progress | None, stop: Stop) -> RunReport:
    tally = Tally()
    with begin(job, stop) as this:
        backlog = resume(this, tally)
        if progress:
            progress(this, tally)
        if backlog:
            with closing(attempts(this, backlog, tally, stop)) as reports:
                for report in reports:
                    tally.images = this.images
                    if report is not None:
                        tally.reached("shard")
                        tally.add(report)
                    if progress:
                        progress(this, tally)
        return finish(this, tally)


def _attempts(this: Run, backlog: Backlog, pipeline: Pipeline, tally: Tally, stop: Stop) -> Iterator[ShardReport]:
    """As a worker does: one shard's masks are written while the next one's images are decoded."""
    working: dict[Future[ShardReport], Task] = {}
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT, "shard") as pool:
        draining = False
        while working or (backlog and not draining):
            draining = draining or stop()
            while len(working) < SHARDS_IN_FLIGHT and not draining and (task := backlog.take(idle=True)):
                working[pool.submit(run_shard, this.desk, task.shard, pipeline)] = task
            if not working:  # the listing holds us back
                time.sleep(0.01)
            for future in wait(working, timeout=0.1, return_when=FIRST_COMPLETED).done:
                task = working.pop(future)
                try:
                    report = future.result()
                except (StorageError, JobError):
                    raise
                except Exception as error:
                    tally.deaths += 1
                    yield from judge(this, backlog, task, error, alone=True)
                else:
                    yield committed(this, report)
    if backlog:
        raise Stopped


def committed(this: Run, report: ShardReport) -> ShardReport:
    """The report with its commit on record, where only the driver may put it there."""
    if report.committed:
        return report
    return replace(report, commit=settle(this.desk, report.commit), committed=True)


def judge(this: Run, backlog: Backlog, task: Task, error: Exception, *, alone: bool) -> Iterator[ShardReport]:
    """What follows from a task that cost its worker or raised: the backlog knows; here it goes on record.

    Yields:
        The report of an image that is given up.
    """
    verdict = backlog.died(task, alone=alone)
    if verdict == "split":
        # On record first: an attempt that is still alive somewhere must not be committed beside the halves.
        first = this.desk.commits.split(task.shard)
        if first.split:
            backlog.halves(task)
        else:  # it was alive after all
            yield ShardReport(task.shard, first, True, 0.0)
    elif verdict == "give_up":
        message = f"this image ended {task.deaths + 1} attempts ({_line(error)}); look at it by itself"
        yield fail_shard(this.desk, task.shard, Failure("worker", _class_of(error), message))


def _class_of(error: Exception) -> str:
    # Torch's and Ray's both have that name.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "out_of_memory" if out_of_memory else "crash"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


# Attempts ----------------------------------------------------------------------------------------


def pipeline_of_job(this: Run, cpus: int) -> Pipeline:
    """The one place where a job becomes a resident network.

    Args:
        this: The run.
        cpus: CPU cores that this process may use.

    Raises:
        JobError: The device is not there or cannot do what the job asks.
    """
    job = this.job
    weights = load_weights(job)
    if fingerprint_of(job, weights) != this.desk.fingerprint:
        raise JobError(
            f"weights {', '.join(job.weights)} changed since the run began; run the command again to begin a new one"
        )
    threads = int(this.record["threads"])
    storage = this.desk.storage
    tuned = tuning.read(storage, this.run_id)
    if tuned is None:
        mine = tuning.tune(job, weights, this.desk.manifest, storage, threads=threads)
        tuned = tuning.settled(storage, this.run_id, this.desk.commits.mode, mine)
    segmenter = segmenter_of(
        job, weights, threads=threads, precision=tuned.precision,
        batch_pixels=tuned.batch_pixels, batches=tuned.batches_by_shape, fused=tuned.fused,
    )  # fmt: skip
    encoder = encoder_of(job, weights)
    forward = tuning.forward_of(segmenter, tuned.shape, this.images)
    return pipeline_of(this, segmenter, cpus, encoder=encoder, forward=forward)


def pipeline_of(this: Run, segmenter: Any, cpus: int, *, encoder: Encoder | None, **more: Any) -> Pipeline:
    """A pipeline around a segmenter, with the job's limits."""
    job = this.job
    limits = limits_of(job, segmenter.n_channels)
    decoders = job.cluster.decoders if job.cluster.decoders != "auto" else max(1, cpus - 1)
    lanes = {"decoders": decoders, "encoders": max(1, cpus // 2)}
    return Pipeline(segmenter, encoder=encoder, limits=limits, inputs=Inputs(profile=job.profile), **lanes | more)


def resume(this: Run, tally: Tally) -> Backlog:
    """What is not done; what is goes into the tally."""
    commits = this.desk.commits.all()
    tally.images = this.images
    for commit in commits.values():
        tally.ok += commit.images - commit.failed
        tally.failed += commit.failed
    tally.before = tally.done
    tally.reached("plan")
    tally.started = time.monotonic()
    shards: Iterator[Shard | None] = this.live.shards() if this.live else pending(this.desk.manifest.shards(), commits)
    return Backlog(shards, attempts=this.job.run.attempts)


# Finish ------------------------------------------------------------------------------------------


def finish(this: Run, tally: Tally) -> RunReport:
    """Derive loose masks and statistics from the commits, and write the outcome, last.

    Raises:
        StorageError: A shard has no commit, or its files are not what it describes.
    """
    desk = this.desk
    commits = desk.commits.all()
    if missing := [shard.id for shard in pending(desk.manifest.shards(), commits)]:
        raise StorageError(f"shards {', '.join(missing[:5])} have no commit; run the same command again")
    done = list(leaves(desk.manifest.shards(), commits))
    export_rest(desk, done)
    errors: Counter[str] = Counter()
    rows = compact(desk, done, this.job.input, errors)
    gone = gone_rows(desk.storage, this.run_id)
    catalog.add(
        desk.storage,
        this.run_id,
        catalog.with_gone(rows, gone, this.run_id),
        fence=Fence(desk.storage, this.generation),
    )
    for _ in rows:  # a run that was cut off behind the catalog's new version has its statistics written again
        pass
    frozen = desk.manifest.frozen
    failed = sum(commit.failed for _, commit in done)
    images = sum(commit.images for _, commit in done)
    rate = failed / images if images else 0.0
    exit_code = 1 if rate > this.job.run.max_error_rate else 0
    tuned = tuning.read(desk.storage, this.run_id)
    record: dict[str, Any] = {
        "run_id": this.run_id,
        "status": "incomplete" if exit_code else "complete",
        "exit_code": exit_code,
        "images": images,
        "ok": images - failed,
        "failed": failed,
        "errors": dict(errors.most_common()),
        "planned": frozen.why,
        "listed": frozen.listed,
        "listed_to_its_end": frozen.whole or this.job.select.limit is not None,
        "gone": frozen.gone,
        "shards": len(done),
        "resumed": this.resumed,
        "seconds": round(tally.seconds, 3),
        "images_per_second": round(tally.rate, 3),
        "start_seconds": {step: round(seconds, 3) for step, seconds in tally.start.items()},
        "worker_seconds": round(sum(last - first for first, last in tally.serving.values()), 3),
        "stages": {
            stage: {
                "busy_seconds": round(tally.busy[stage], 6),
                "starved_seconds": round(tally.starved[stage], 6),
                "blocked_seconds": round(tally.blocked[stage], 6),
                "lanes": tally.lanes.get(stage, SHARDS_IN_FLIGHT),
            }
            for stage in tally.busy
        },
        "measured_images": tally.measured,
        "measured_pixels": round(tally.pixels),
        "device": None if not tally.forward else tally.forward[0]["device"],
        "loose": desk.format.loose,
        "forward": _median(tally.forward),
        "attempts_lost": tally.deaths,
        "tuning": None if tuned is None else asdict(tuned),
        "short_of_memory": tally.fits,
        "commit_mode": desk.commits.mode,
        "fingerprint": desk.fingerprint,
        "generation": this.generation,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record |= {"forward_share": share_of_forward(record), "limit": limit(record)}
    Fence(desk.storage, this.generation).check()
    desk.storage.write(f"runs/{this.run_id}/run.json", json.dumps(record, indent=1).encode())
    return RunReport(this.run_id, exit_code, images, images - failed, failed, record)


def _median(forward: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The worker in the middle."""
    return sorted(forward, key=lambda each: each["seconds_per_image"])[len(forward) // 2] if forward else None
