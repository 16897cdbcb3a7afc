"""A run's beginning: check weights, list the input, lock the output, go on with an unfinished run or freeze a plan."""

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from maskfleet.jobs.errors import Denied, JobError, NotFound, StorageError
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.commit import Commits, Mode, leaves, nonce, probe
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import Lock, locked
from maskfleet.jobs.ledger.manifest import Manifest, folder_of, freeze_so_far, part_name
from maskfleet.jobs.ledger.run_output import RunOutput
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values, threads_of
from maskfleet.jobs.planning.live_plan import LivePlan, manifest_of
from maskfleet.jobs.planning.mask_checks import refuse_other_channels
from maskfleet.jobs.planning.plan import Planning, PlanPart, first_part
from maskfleet.jobs.run.derived import compact, export_rest, rebuild_catalog
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.unet.weights import Weights

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Attributes:
        job: What to do.
        record: What job.json says: run id, fingerprint, commit mode, versions.
        output: Where its attempts write.
        resumed: Whether an earlier command began it.
        generation: Of the lock that it is done under.
        live: Its plan, where this process is writing it; None for one that is stored whole.
    """

    job: Job
    record: dict[str, Any]
    output: RunOutput
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
        return self.live.planning.images if self.live else self.output.manifest.images

    @property
    def shards(self) -> int:
        """Planned so far, uncut."""
        return self.live.shards_stored if self.live else self.output.manifest.frozen.shards

    @classmethod
    def attach(cls, url: str, run_id: str, *, profile: str | None = None, generation: int | None = None) -> "Run":
        """The run as any process may join it.

        Args:
            url: URL of the output.
            run_id: Which.
            profile: AWS profile.
            generation: Of the lock that its driver holds; None for one that commits nothing.

        Raises:
            NotFound: There is no such run.
        """
        storage = open_storage(url, profile=profile)
        record = json.loads(storage.read(f"runs/{run_id}/job.json"))
        job = Job.model_validate(record["job"])
        fence = None if generation is None else Fence(storage, generation)
        commits = Commits(storage, run_id, record["commit_mode"], fence)
        manifest = Manifest.stored(storage, run_id)
        output = RunOutput(
            storage=storage, run_id=run_id, fingerprint=record["fingerprint"], manifest=manifest, commits=commits,
            format=mask_format(job.masks.format),
        )  # fmt: skip
        return cls(job, record, output, generation=generation or 0)


class Planned(NamedTuple):
    """A plan of which the first part is known, and nothing is written."""

    planning: Planning
    first: PlanPart
    parts: Iterator[PlanPart]
    runs: list[str]
    """That the output had when it was begun."""
    seconds: float
    """That it took so far."""
    indexes: Indexes
    """Of the tars that were read for it."""

    @property
    def manifest(self) -> Manifest:
        """Of the first part."""
        return manifest_of(self.first)


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
        if not catalog.current(storage).number and storage.names(compacted.FOLDER):
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
        compacted.migrate(storage, lock.fence)
        run_id = _unfinished(storage, job, fingerprint)
        if run_id is not None:
            attached = partial(Run.attach, job.output, run_id, profile=job.profile, generation=lock.fence.generation)
            this = attached()
            if not this.output.manifest.is_frozen:
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
        mean_bytes=source.mean_bytes,
    )
    parts = iter(planning)
    first = first_part(parts)
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
    done = list(leaves(left.output.manifest.shards(), left.output.commits.all()))
    export_rest(left.output, done)
    rows = compact(left.output, done, left.job.input, Counter())
    fence = Fence(left.output.storage, left.generation)
    catalog.add(left.output.storage, left.run_id, rows, fence=fence, complete=False)
    for _ in rows:
        pass


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
    live = LivePlan(
        storage,
        run_id,
        planning=planned.planning,
        first=planned.first,
        parts=planned.parts,
        indexes=planned.indexes,
    )
    manifest = Manifest(lambda part: storage.read(f"{folder_of(run_id)}/{part_name(part)}"), lambda: live.frozen)
    commits = Commits(storage, run_id, mode, lock.fence)
    output = RunOutput(
        storage=storage, run_id=run_id, fingerprint=fingerprint, manifest=manifest, commits=commits,
        format=mask_format(job.masks.format),
    )  # fmt: skip
    return Run(job, record, output, generation=lock.fence.generation, live=live)


def versions() -> dict[str, str]:
    """What was installed."""
    names = ("maskfleet", "torch", "pillow", "numpy", "pyarrow", "ray", "s3fs", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
