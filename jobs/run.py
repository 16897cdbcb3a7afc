"""A run: one execution of a job, from the plan to the last record. Here without Ray; `cluster.driver` adds machines.

begin     check weights, list the input, lock the output, go on with an unfinished run or freeze a plan
attempts  every shard through `jobs.attempt.run_shard`
finish    derive what is derived from commits: loose masks, statistics, run.json
"""

import hashlib
import json
import math
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa

from jobs import statistics, webhook
from jobs.attempt import Desk, ShardReport, export, fail_shard, rows_of, run_shard, settle
from jobs.backlog import Backlog, Task
from jobs.bottleneck import limit, share_of_forward
from jobs.commit import Commit, Commits, Mode, leaves, nonce, pending, probe
from jobs.errors import Denied, JobError, MaskfleetError, NotFound, Stopped, StorageError, Unfinished
from jobs.fence import Fence
from jobs.images.decoders import Failure
from jobs.inputs.fetch import Inputs
from jobs.inputs.indexes import Indexes
from jobs.inputs.sources import Source
from jobs.job import Job
from jobs.lock import Lock, locked
from jobs.pipeline import SHARDS_IN_FLIGHT, Encoder, Pipeline
from jobs.planning import catalog, tuning
from jobs.planning.doctor import refuse_other_channels
from jobs.planning.manifest import Manifest, Shard, folder_of, freeze_so_far, part_name
from jobs.planning.plan import LivePlan, Planning, first_of, gone_rows, in_memory
from jobs.planning.sample import limits_of
from jobs.recipe import encoder_of, fingerprint_of, load_weights, mask_values, segmenter_of, threads_of
from jobs.storage import Storage, open_storage
from jobs.storage.order import even
from jobs.tally import Tally
from jobs.training.finetune import improved
from jobs.training.loop import Progress as Learning
from unet.weights import Weights

_GROUPS_OF_A_PART = 12
_READS_AHEAD = 16


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Attributes:
        job: What to do.
        record: What job.json says: run id, fingerprint, commit mode, versions.
        desk: Where its attempts write.
        resumed: Whether an earlier command began it.
        generation: Of the lock that it is done under.
        live: Its plan, where this process is writing it; None for one that is stored whole.
    """

    job: Job
    record: dict[str, Any]
    desk: Desk
    resumed: bool = False
    generation: int = 0
    live: LivePlan | None = None

    @property
    def run_id(self) -> str:
        """Begins with its time in UTC, so that names sort by age."""
        return str(self.record["run_id"])

    @property
    def images(self) -> int:
        """Planned so far."""
        return self.live.planning.images if self.live else self.desk.manifest.images

    @property
    def shards(self) -> int:
        """Planned so far, uncut."""
        return self.live.shards_stored if self.live else self.desk.manifest.frozen.shards

    @classmethod
    def attach(cls, output: str, run_id: str, *, profile: str | None = None, generation: int | None = None) -> "Run":
        """The run as any process may join it.

        Args:
            output: The job's.
            run_id: Which.
            profile: AWS profile.
            generation: Of the lock that its driver holds; None for one that commits nothing.

        Raises:
            NotFound: There is no such run.
        """
        storage = open_storage(output, profile=profile)
        record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        job = Job.model_validate(record["job"])
        fence = None if generation is None else Fence(storage, generation)
        commits = Commits(storage, run_id, record["commit_mode"], fence)
        manifest = Manifest.stored(storage, run_id)
        desk = Desk(storage, run_id, record["fingerprint"], manifest, commits, job.masks.format)
        return cls(job, record, desk, generation=generation or 0)


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
Stop = Callable[[], bool]
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
        with (open_pipeline or pipeline_of_job)(this, os.cpu_count() or 1) as pipeline:
            tally.reached("worker")
            yield from _attempts(this, backlog, pipeline, tally, stop)

    return execute(job, attempts, progress=progress, stopped=stopped, learning=learning)


def execute(
    job: Job, attempts: Attempts, *, progress: Progress | None = None, stopped: Callable[[], bool] | None = None,
    learning: Learning | None = None,
) -> RunReport:  # fmt: skip
    """The run, whoever does the attempts; before it the training, in this process.

    Args:
        job: What to do.
        attempts: Does the backlog, yielding the report of each shard that is on record, or None as a sign of life. Not
            called where nothing is left to do. Asks its last argument whether to hand out no more.
        progress: Called at the start and after everything that `attempts` yields.
        stopped: True ends the run early.
        learning: Called after every training step.
    """
    seconds = job.run.deadline_seconds
    deadline = math.inf if seconds is None else time.monotonic() + seconds

    def stop() -> bool:
        return time.monotonic() > deadline or bool(stopped and stopped())

    try:
        job = improved(job, progress=learning, stopped=stop)
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


# Begin -------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """A plan of which the first part is known, and nothing is written."""

    planning: Planning
    first: tuple[pa.Table, int]
    parts: Iterator[tuple[pa.Table, int]]
    runs: list[str]
    """That the output had when it was begun."""
    seconds: float
    """That it took so far."""
    indexes: Indexes
    """Of the tars that were read for it."""

    @property
    def manifest(self) -> Manifest:
        """Of the first part."""
        return in_memory(*self.first)


@contextmanager
def begin(job: Job, stop: Stop = lambda: False) -> Iterator[Run]:
    """Hold the output and have a run to do: the newest unfinished one of this job, or a new one.

    Args:
        job: What to do.
        stop: Asked while another run is waited for.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Locked: Another run holds the output.
    """
    weights = load_weights(job)
    mask_values(job, weights)
    fingerprint = fingerprint_of(job, weights)
    storage = open_storage(job.output, profile=job.profile)
    with _as_job_errors():
        if not catalog.current(storage).number and storage.names("stats"):
            with locked(storage, job.run.on_overlap, stop):
                rebuild_catalog(storage)
        if _left_behind(storage, job, fingerprint) is not None:
            with locked(storage, job.run.on_overlap, stop) as lock:
                if (left := _left_behind(storage, job, fingerprint)) is not None:
                    _keep(Run.attach(job.output, left, profile=job.profile, generation=lock.fence.generation))
        planned = None if _unfinished(storage, job, fingerprint) else plan(job, fingerprint)
        if planned is not None:
            refuse_other_channels(job, weights, planned.manifest)
        mode = _probed(storage)
        lock = locked(storage, job.run.on_overlap, stop)
    with lock:
        run_id = _unfinished(storage, job, fingerprint)
        if run_id is not None:
            attached = partial(Run.attach, job.output, run_id, profile=job.profile, generation=lock.fence.generation)
            this = attached()
            if not this.desk.manifest.is_frozen:
                freeze_so_far(storage, run_id)
                this = attached()
            # The limits of today's command, not of the one that was cut off.
            this = replace(this, job=job, resumed=True)
        else:
            if planned is None or planned.runs != storage.names("runs"):  # another run went by in between
                planned = plan(job, fingerprint)
            this = _new_run(storage, job, fingerprint, weights, planned, mode, lock)
        try:
            yield this
        finally:
            if this.live is not None:
                this.live.close()
        if lock.lost.is_set():
            lock.fence.check()


@contextmanager
def _as_job_errors() -> Iterator[None]:
    """Before the first shard, missing rights and buckets are the job's fault."""
    try:
        yield
    except (Denied, NotFound) as error:
        raise JobError(str(error)) from error


def _probed(storage: Storage) -> Mode:
    try:
        return probe(storage)
    except StorageError as error:
        raise JobError(f"the output cannot be written: {error}") from error


def plan(job: Job, fingerprint: str) -> Planned:
    """List the input, compare it with the catalog, cut into shards: up to the first part. Writes nothing.

    Raises:
        JobError: There is no input, or no image in it.
    """
    storage = open_storage(job.output, profile=job.profile)
    indexes = Indexes(storage)
    source = Source(job.input, output=job.output, column=job.column, profile=job.profile, indexes=indexes)
    runs = storage.names("runs")
    began = time.perf_counter()
    planning = Planning(
        source.tables(),
        in_order=source.in_order,
        shard_size=job.run.shard_size,
        known=catalog.rows(storage, catalog.current(storage)),
        fingerprint=fingerprint,
        source=job.input,
        selection=job.select,
        row_bytes=source.row_bytes,
    )
    parts = iter(planning)
    first = first_of(parts)
    if not planning.listed:
        others = ", ".join(f"{count} {ending}" for ending, count in source.ignored.most_common(5))
        raise JobError(f"no image in {job.input}{f' (but {others})' if others else ''}; correct 'input'")
    return Planned(planning, first, parts, runs, time.perf_counter() - began, indexes)


def _unfinished(storage: Storage, job: Job, fingerprint: str) -> str | None:
    """The newest run of this output, if it is one of this job and has no outcome."""
    newest = _newest_open(storage)
    return newest["run_id"] if newest and newest["identity"] == _identity(job, fingerprint) else None


def _left_behind(storage: Storage, job: Job, fingerprint: str) -> str | None:
    """The newest run of this output, if it is one of another job, or of this one as it was, and ended in the middle."""
    newest = _newest_open(storage)
    if newest is None or newest["identity"] == _identity(job, fingerprint):
        return None
    return newest["run_id"] if storage.names(f"runs/{newest['run_id']}/commits") else None


def _newest_open(storage: Storage) -> dict[str, Any] | None:
    """What job.json says of the newest run that has a plan, if it has no outcome."""
    for run_id in reversed(storage.names("runs")):
        try:
            record: dict[str, Any] = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        if not storage.names(folder_of(run_id)):
            continue  # cut off before there was any of its plan
        return None if storage.exists(f"runs/{run_id}/run.json") else record
    return None


def _keep(left: Run) -> None:
    """What a run has done that nobody will go on with: into statistics, masks and catalog, so that it counts."""
    done = list(leaves(left.desk.manifest.shards(), left.desk.commits.all()))
    _export_rest(left.desk, done)
    rows = compacted(left.desk, done, left.job.input, Counter())
    fence = Fence(left.desk.storage, left.generation)
    catalog.add(left.desk.storage, left.run_id, rows, fence=fence, whole=False)
    for _ in rows:
        pass


def _export_rest(desk: Desk, done: Iterable[tuple[Shard, Commit]]) -> None:
    """Make the loose masks that are not there yet."""
    if desk.loose:
        exported = set(desk.storage.names(f"runs/{desk.run_id}/exports"))
        for shard, commit in done:
            if shard.id not in exported:
                export(desk, commit)


def _identity(job: Job, fingerprint: str) -> str:
    """Of a job: what must be equal for one command to go on with another's run."""
    parts = [job.name, job.input, job.masks.format, fingerprint, job.select.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _new_run(
    storage: Storage, job: Job, fingerprint: str, weights: Weights, planned: Planned, mode: Mode, lock: Lock
) -> Run:
    now = datetime.now(UTC)
    # To the millisecond: names must sort by age even when one run follows another at once.
    run_id = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}-{nonce()[:6]}"
    record = {
        "run_id": run_id,
        "created": now.isoformat(timespec="seconds"),
        "identity": _identity(job, fingerprint),
        "fingerprint": fingerprint,
        "weights": {"id": weights.id, "mask_values": weights.mask_values, "metadata": dict(weights.metadata)},
        "commit_mode": mode,
        "threads": threads_of(job),
        "generation": lock.fence.generation,
        "versions": versions(),
        "job": job.model_dump(mode="json", exclude_none=True),
    }
    storage.write(f"runs/{run_id}/job.json", json.dumps(record, indent=1).encode())
    live = LivePlan(storage, run_id, planned.planning, planned.first, planned.parts, planned.indexes)
    manifest = Manifest(lambda part: storage.read(f"{folder_of(run_id)}/{part_name(part)}"), lambda: live.frozen)
    commits = Commits(storage, run_id, mode, lock.fence)
    desk = Desk(storage, run_id, fingerprint, manifest, commits, job.masks.format)
    return Run(job, record, desk, generation=lock.fence.generation, live=live)


def versions() -> dict[str, str]:
    """What was installed."""
    names = ("maskfleet", "torch", "pillow", "numpy", "pyarrow", "ray", "s3fs", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


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
        batch_pixels=tuned.batch_pixels, batches=tuned.batches_by_shape,
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
    _export_rest(desk, done)
    errors: Counter[str] = Counter()
    rows = compacted(desk, done, this.job.input, errors)
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
                "busy_seconds": round(tally.busy[stage], 3),
                "starved_seconds": round(tally.starved[stage], 3),
                "blocked_seconds": round(tally.blocked[stage], 3),
                "lanes": tally.lanes.get(stage, SHARDS_IN_FLIGHT),
            }
            for stage in tally.busy
        },
        "measured_images": tally.measured,
        "measured_pixels": round(tally.pixels),
        "device": None if not tally.forward else tally.forward[0]["device"],
        "loose": desk.loose,
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


def compacted(
    desk: Desk, done: Iterable[tuple[Shard, Commit]], input_: str, errors: Counter[str]
) -> Iterator[pa.Table]:
    """Write the run's statistics as few large files, in the manifest's order.

    Args:
        desk: The run.
        done: Its shards.
        input_: The job's.
        errors: Receives the failures by error class.

    Yields:
        The same as catalog rows.
    """

    def tables() -> Iterator[pa.Table]:
        # Some shards ahead: one after the other, a bucket's latency would be most of the end of a large run.
        reading: deque[tuple[Shard, Future[pa.Table]]] = deque()
        with ThreadPoolExecutor(_READS_AHEAD) as pool:
            for shard, commit in done:
                reading.append((shard, pool.submit(rows_of, desk.storage, commit)))
                if len(reading) > _READS_AHEAD:
                    yield read(*reading.popleft())
            while reading:
                yield read(*reading.popleft())

    def read(shard: Shard, reading: Future[pa.Table]) -> pa.Table:
        table = reading.result()
        return table.append_column("shard", pa.array([shard.id] * table.num_rows, pa.string()))

    groups = even(tables(), statistics.ROW_GROUP)
    for number, first in enumerate(groups):
        part = statistics.Writer()
        for group in chain([first], islice(groups, _GROUPS_OF_A_PART - 1)):
            part.add(group.drop_columns("shard"))
            for failure in group["error_class"].drop_null().value_counts().to_pylist():
                errors[failure["values"]] += failure["counts"]
            yield catalog.outcomes(group, input_=input_, shards=group["shard"])
        desk.storage.write(f"stats/run_id={desk.run_id}/part-{number:05}.parquet", part.close())


def rebuild_catalog(storage: Storage) -> None:
    """Make the catalog of an output that has lost it, from the statistics and listings of its finished runs."""
    for run_id in storage.names("runs"):
        try:
            record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        if not storage.exists(f"runs/{run_id}/run.json"):
            continue
        catalog.add(storage, run_id, outcomes_of(storage, run_id, record["job"]["input"]))


def outcomes_of(storage: Storage, run_id: str, input_: str) -> Iterator[pa.Table]:
    """A finished run's rows and tombstones as the catalog has them, without shards, which statistics do not name."""
    folder = f"stats/run_id={run_id}"
    parts = (statistics.read(storage.read(f"{folder}/{name}")) for name in storage.names(folder))
    rows = (catalog.outcomes(table, input_=input_) for table in parts)
    return catalog.with_gone(rows, gone_rows(storage, run_id), run_id)
