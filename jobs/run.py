"""A run: one execution of a job, from the plan to the last record. Here without Ray; `cluster.driver` adds machines.

begin     check weights, list the input, lock the output, go on with an unfinished run or freeze a plan
attempts  every shard through `jobs.attempt.run_shard`
finish    derive what is derived from commits: loose masks, statistics, run.json
"""

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from jobs import catalog, statistics, tuning
from jobs.attempt import Desk, ShardReport, export, fail_shard, rows_of, run_shard, settle
from jobs.backlog import Backlog, Task
from jobs.bottleneck import limit, share_of_forward
from jobs.commit import Commit, Commits, Mode, leaves, nonce, pending, probe
from jobs.decoders import Failure
from jobs.doctor import refuse_other_channels
from jobs.errors import Denied, JobError, Locked, NotFound, StorageError
from jobs.inputs import Inputs
from jobs.job import Job
from jobs.lock import Lock
from jobs.manifest import Manifest, Plan
from jobs.masks import Encoder
from jobs.pipeline import SHARDS_IN_FLIGHT, Pipeline
from jobs.recipe import fingerprint_of, load_weights, mask_values, segmenter_of
from jobs.sample import limits_of
from jobs.sources import Source
from jobs.storage import Storage, open_storage
from unet.weights import Weights

_PART_ROWS = 250_000


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Attributes:
        job: What to do.
        record: What job.json says: run id, fingerprint, commit mode, versions.
        desk: Where its attempts write.
        resumed: Whether an earlier command began it.
    """

    job: Job
    record: dict[str, Any]
    desk: Desk
    resumed: bool = False

    @property
    def run_id(self) -> str:
        """Begins with its time in UTC, so that names sort by age."""
        return str(self.record["run_id"])

    @property
    def images(self) -> int:
        """Planned."""
        return self.desk.manifest.images

    @classmethod
    def attach(cls, output: str, run_id: str, *, profile: str | None = None) -> "Run":
        """The run as any process may join it.

        Raises:
            NotFound: There is no such run.
        """
        storage = open_storage(output, profile=profile)
        record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        job = Job.of(record["job"])
        manifest = Manifest(storage.read(f"runs/{run_id}/manifest.parquet"))
        commits = Commits(storage, run_id, record["commit_mode"])
        desk = Desk(storage, run_id, record["fingerprint"], manifest, commits, job.masks.format == "png")
        return cls(job, record, desk)


@dataclass
class Tally:
    """What has been done so far, as the driver counts it. Its size does not grow with the images."""

    images: int = 0
    ok: int = 0
    failed: int = 0
    before: int = 0
    """Images that an earlier command of this run had done."""
    shards: int = 0
    deaths: int = 0
    """Workers lost, and attempts that raised."""
    errors: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Seconds by stage; likewise `starved` and `blocked`, see `jobs.meters`."""
    starved: Counter[str] = field(default_factory=Counter)
    blocked: Counter[str] = field(default_factory=Counter)
    serving: dict[str, tuple[float, float]] = field(default_factory=dict)
    """From when to when each worker did shards, by its own clock."""
    lanes: dict[str, int] = field(default_factory=dict)
    forward: list[Mapping[str, Any]] = field(default_factory=list)
    """Of each worker: its bare forward pass."""
    measured: int = 0
    """Images of shards that were metered."""
    fits: dict[str, list[str]] = field(default_factory=dict)
    """By shape, how images went through where memory was short."""
    started: float = field(default_factory=time.monotonic)

    def add(self, report: ShardReport) -> None:
        """Count a shard that is on record."""
        self.ok += report.commit.images - report.commit.failed
        self.failed += report.commit.failed
        self.shards += 1
        self.errors.update(report.errors)
        for mine, more in (
            (self.busy, report.busy),
            (self.starved, report.starved),
            (self.blocked, report.blocked),
        ):
            mine.update(more)
        if report.worker:
            if report.worker not in self.serving and report.forward:
                self.forward.append(report.forward)
            self.lanes.update(report.lanes)
            self.measured += report.commit.images
            first, last = self.serving.get(report.worker, (report.began, 0.0))
            ended = report.began + report.seconds
            self.serving[report.worker] = min(first, report.began), max(last, ended)
        self.fits |= {
            shape: tried for shape, tried in report.fits.items() if len(tried) > len(self.fits.get(shape, ()))
        }

    @property
    def done(self) -> int:
        """Images with an outcome."""
        return self.ok + self.failed

    @property
    def seconds(self) -> float:
        """Since the first shard was handed out."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images per second of this command."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def busiest(self) -> str:
        """The stage that most seconds went to, or ''."""
        return max(self.busy, key=lambda stage: self.busy[stage]) if self.busy else ""


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
Attempts = Callable[[Run, Backlog, Tally], Generator[ShardReport | None, None, None]]


def run(
    job: Job, *, progress: Progress | None = None, stopped: Callable[[], bool] | None = None,
    open_pipeline: OpenPipeline | None = None,
) -> RunReport:  # fmt: skip
    """Run a job in this process.

    Args:
        job: What to do.
        progress: Called at the start and after every shard.
        stopped: Asked before each shard; True ends the run early, to be gone on with later.
        open_pipeline: Makes the pipeline; for tests and benchmarks.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Locked: Another run holds the output.
        Stopped: `stopped` said so.
        StorageError: Storage goes on failing.
    """

    def attempts(this: Run, backlog: Backlog, tally: Tally) -> Generator[ShardReport | None, None, None]:
        with (open_pipeline or pipeline_of_job)(this, os.cpu_count() or 1) as pipeline:
            yield from _attempts(this, backlog, pipeline, tally, stopped)

    return execute(job, attempts, progress=progress)


def execute(job: Job, attempts: Attempts, *, progress: Progress | None = None) -> RunReport:
    """The run, whoever does the attempts.

    Args:
        job: What to do.
        attempts: Does the backlog, yielding the report of each shard that is on record, or None as a sign of life. Not
            called where nothing is left to do.
        progress: Called at the start and after everything that `attempts` yields.
    """
    with begin(job) as this:
        tally, backlog = resume(this)
        if progress:
            progress(this, tally)
        if backlog:
            with closing(attempts(this, backlog, tally)) as reports:
                for report in reports:
                    if report is not None:
                        tally.add(report)
                    if progress:
                        progress(this, tally)
        return finish(this, tally)


class Stopped(Exception):
    """The run was asked to stop, and can be gone on with."""


def _attempts(
    this: Run, backlog: Backlog, pipeline: Pipeline, tally: Tally, stopped: Callable[[], bool] | None
) -> Iterator[ShardReport]:
    while task := backlog.take(idle=True):
        if stopped and stopped():
            raise Stopped
        try:
            report = run_shard(this.desk, task.shard, pipeline)
        except (StorageError, JobError):
            raise
        except Exception as error:
            tally.deaths += 1
            yield from judge(this, backlog, task, error, alone=True)
        else:
            yield committed(this, report)


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
        yield fail_shard(this.desk, task.shard, Failure("worker", "crash", message))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


# Begin -------------------------------------------------------------------------------------------


@contextmanager
def begin(job: Job) -> Iterator[Run]:
    """Hold the output and have a run to do: the newest unfinished one of this job, or a new one.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Locked: Another run holds the output.
    """
    weights = load_weights(job)
    mask_values(job, weights)
    fingerprint = fingerprint_of(job, weights)
    storage = open_storage(job.output, profile=job.profile)
    with _as_job_errors():
        planned = None if _unfinished(storage, job, fingerprint) else plan(job, fingerprint)
        if planned is not None:
            refuse_other_channels(job, weights, planned.manifest)
        mode = _probed(storage)
        lock = Lock(storage)
    with lock:
        run_id = _unfinished(storage, job, fingerprint)
        if run_id is not None:
            this = Run.attach(job.output, run_id, profile=job.profile)
            # The limits of today's command, not of the one that was cut off.
            this = Run(job, this.record, this.desk, resumed=True)
        else:
            this = _new_run(storage, job, fingerprint, weights, planned or plan(job, fingerprint), mode)
        yield this
        if lock.lost.is_set():
            raise Locked(f"another run took {job.output} over while this one was not heard of; wait for that one")


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


def plan(job: Job, fingerprint: str) -> Plan:
    """List the input, subtract what is done, cut into shards. Writes nothing.

    Raises:
        JobError: There is no input, or no image in it.
    """
    source = Source(job.input, output=job.output, column=job.column, profile=job.profile)
    done = catalog.done(open_storage(job.output, profile=job.profile), fingerprint)
    planned = Plan.of(source, shard_size=job.run.shard_size, done=done)
    if not planned.listed:
        others = ", ".join(f"{count} {ending}" for ending, count in source.ignored.most_common(5))
        raise JobError(f"no image in {job.input}{f' (but {others})' if others else ''}; correct 'input'")
    return planned


def _unfinished(storage: Storage, job: Job, fingerprint: str) -> str | None:
    """The newest run of this output, if it is one of this job and has no outcome."""
    for run_id in reversed(storage.names("runs")):
        try:
            record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        except NotFound:
            continue
        if not storage.exists(f"runs/{run_id}/manifest.parquet"):
            continue  # cut off before its plan was frozen
        if record["identity"] != _identity(job, fingerprint) or storage.exists(f"runs/{run_id}/run.json"):
            return None
        return run_id
    return None


def _identity(job: Job, fingerprint: str) -> str:
    """Of a job: what must be equal for one command to go on with another's run."""
    parts = [job.name, job.input, job.masks.format, fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _new_run(storage: Storage, job: Job, fingerprint: str, weights: Weights, planned: Plan, mode: Mode) -> Run:
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
        "listed": planned.listed,
        "images": planned.table.num_rows,
        "shards": planned.shards,
        "versions": versions(),
        "job": job.model_dump(mode="json", exclude_none=True),
    }
    storage.write(f"runs/{run_id}/job.json", json.dumps(record, indent=1).encode())
    storage.write(f"runs/{run_id}/manifest.parquet", planned.parquet())
    return Run.attach(job.output, run_id, profile=job.profile)


def threads_of(job: Job) -> int:
    """One number for the whole fleet, however many workers share a machine: fp32 convolutions depend on it."""
    if job.cluster.threads != "auto":
        return job.cluster.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    tuned = tuning.read(storage, this.run_id) or tuning.settled(
        storage, this.run_id, this.desk.commits.mode, tuning.tune(job, weights, this.desk.manifest, threads=threads)
    )
    segmenter = segmenter_of(job, weights, threads=threads, precision=tuned.precision, batch_pixels=tuned.batch_pixels)
    encoder = None if job.masks.format == "none" else Encoder(mask_values(job, weights))
    forward = tuning.forward_of(segmenter, tuned.shape, this.images)
    return pipeline_of(this, segmenter, cpus, encoder=encoder, forward=forward)


def pipeline_of(this: Run, segmenter: Any, cpus: int, *, encoder: Encoder | None, **more: Any) -> Pipeline:
    """A pipeline around a segmenter, with the job's limits."""
    job = this.job
    limits = limits_of(job, segmenter.n_channels)
    decoders = job.cluster.decoders if job.cluster.decoders != "auto" else max(1, cpus - 1)
    inputs = Inputs(profile=job.profile)
    return Pipeline(
        segmenter, encoder=encoder, limits=limits, inputs=inputs, decoders=decoders, encoders=max(1, cpus // 2), **more
    )


def resume(this: Run) -> tuple[Tally, Backlog]:
    """What is done already, and what is not."""
    commits = this.desk.commits.all()
    tally = Tally(images=this.images)
    for commit in commits.values():
        tally.ok += commit.images - commit.failed
        tally.failed += commit.failed
    tally.before = tally.done
    return tally, Backlog(pending(this.desk.manifest.shards(), commits), attempts=this.job.run.attempts)


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
    if desk.loose:
        exported = set(desk.storage.names(f"runs/{this.run_id}/exports"))
        for shard, commit in done:
            if shard.id not in exported:
                export(desk, commit)
    errors = compact(desk, [commit for _, commit in done])
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
        "errors": errors,
        "shards": len(done),
        "resumed": this.resumed,
        "seconds": round(tally.seconds, 3),
        "images_per_second": round(tally.rate, 3),
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
        "device": None if not tally.forward else tally.forward[0]["device"],
        "loose": desk.loose,
        "forward": _median(tally.forward),
        "attempts_lost": tally.deaths,
        "tuning": None if tuned is None else asdict(tuned),
        "short_of_memory": tally.fits,
        "commit_mode": desk.commits.mode,
        "fingerprint": desk.fingerprint,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record |= {"forward_share": share_of_forward(record), "limit": limit(record)}
    desk.storage.write(f"runs/{this.run_id}/run.json", json.dumps(record, indent=1).encode())
    return RunReport(this.run_id, exit_code, images, images - failed, failed, record)


def _median(forward: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The worker in the middle."""
    return sorted(forward, key=lambda each: each["seconds_per_image"])[len(forward) // 2] if forward else None


def compact(desk: Desk, commits: Iterable[Commit]) -> dict[str, int]:
    """Write the run's statistics as few large files, in the manifest's order. Returns failures by error class."""
    errors: Counter[str] = Counter()
    for number, table in enumerate(_parts(rows_of(desk.storage, commit) for commit in commits)):
        errors.update(name for name in table["error_class"].to_pylist() if name)
        data = statistics.table_parquet(table)
        desk.storage.write(f"stats/run_id={desk.run_id}/part-{number:05}.parquet", data)
    return dict(errors.most_common())


def _parts(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    part: list[pa.Table] = []
    rows = 0
    for table in tables:
        part.append(table)
        rows += table.num_rows
        if rows >= _PART_ROWS:
            yield pa.concat_tables(part)
            part, rows = [], 0
    if part:
        yield pa.concat_tables(part)
