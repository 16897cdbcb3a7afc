"""The beginning of a run: check the weights, list the input, lock the output, and resume a run or freeze a new plan."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any, NamedTuple

from maskfleet.jobs.errors import Denied, JobError, NotFound, StorageError
from maskfleet.jobs.inputs.fetch import Inputs, options_of
from maskfleet.jobs.inputs.indexes import Indexes
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog, compacted
from maskfleet.jobs.ledger.commit import Commits, Probed, nonce, probe
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.lock import Lock, locked
from maskfleet.jobs.ledger.manifest import Manifest, folder_of, freeze_so_far, part_name
from maskfleet.jobs.ledger.run_output import RunOutput, refused_name, stored_output
from maskfleet.jobs.ledger.runs import StoredRun, described
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights, mask_values, threads_of
from maskfleet.jobs.planning.counting import Counting
from maskfleet.jobs.planning.live_plan import LivePlan, manifest_of
from maskfleet.jobs.planning.mask_checks import refuse_other_channels
from maskfleet.jobs.planning.paging import Paging
from maskfleet.jobs.planning.plan import Planning, PlanPart, first_part
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.run.recovery.unexported import forget_unsettled
from maskfleet.jobs.run.recovery.unfinished import identity, repair, set_aside, to_resume
from maskfleet.jobs.storage.contract import Storage
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.unet.weights import Weights

_RUN_TIME = "%Y%m%dT%H%M%S.%f"

Stop = Callable[[], bool]
"""Returns True once no further work may start."""


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Attributes:
        job: The job.
        record: Content of `job.json`: run id, fingerprint, commit mode, threads, versions.
        output: Output of the run.
        resumed: Whether an earlier command began this run.
        generation: Generation of the driver's lock.
        live: The plan while this process is still writing it; None once all of it is stored.
    """

    job: Job
    record: dict[str, Any]
    output: RunOutput
    resumed: bool = False
    generation: int = 0
    live: LivePlan | None = None

    @property
    def run_id(self) -> str:
        """Name of the run. It starts with the start time in UTC, so names sort by age."""
        return str(self.record["run_id"])

    @property
    def threads(self) -> int:
        """CPU threads of the network, in every worker alike."""
        return int(self.record["threads"])

    @property
    def images(self) -> int:
        """Number of images planned so far."""
        return self.live.planning.images if self.live else self.output.manifest.images

    @property
    def shards(self) -> int:
        """Number of shards planned so far, before any of them is split."""
        return self.live.shards_stored if self.live else self.output.manifest.frozen.shards

    @classmethod
    def attach(cls, url: str, run_id: str, *, profile: str | None = None, generation: int | None = None) -> "Run":
        """Join a run from any process.

        Args:
            url: URL of the output.
            run_id: Name of the run.
            profile: AWS profile.
            generation: Generation of the driver's lock; None for a process that commits nothing.

        Raises:
            NotFound: There is no such run.
            Damaged: A record of it is unreadable.
        """
        storage = open_storage(url, profile=profile)
        record = described(storage, run_id)
        fence = None if generation is None else Fence(storage, generation)
        output = stored_output(storage, StoredRun.of(record), fence)
        job = Job.model_validate(record["job"])
        return cls(job, record, output, generation=generation or 0)


class Planned(NamedTuple):
    """A plan with its first part computed; nothing is stored yet.

    Attributes:
        planning: The plan in progress.
        first: First part.
        parts: Remaining parts, computed on demand.
        runs: Names of the runs in the output when planning began.
        known: Number of the catalog's version that the input is compared with.
        seconds: Seconds spent planning so far.
        indexes: Indexes of the tar files read while planning.
    """

    planning: Planning
    first: PlanPart
    parts: Iterator[PlanPart]
    runs: list[str]
    known: int
    seconds: float
    indexes: Indexes

    def is_current(self, storage: Storage) -> bool:
        """Return whether no other run has begun, or changed the catalog, since planning began."""
        return self.runs == storage.names("runs") and self.known == catalog.current(storage).number

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first part."""
        return manifest_of(self.first)


@contextmanager
def begin(job: Job, stop: Stop = lambda: False, progress: Progress | None = None) -> Iterator[Run]:
    """Lock the output and yield the run to process: the newest unfinished run of this job, or a new one.

    Args:
        job: The job.
        stop: Called while another run holds the lock. Once it returns True, the wait ends.
        progress: Receives the phases, and a notice about each earlier run that was set aside.

    Raises:
        JobError: Job, input, weights or output are wrong; nothing was written.
        Locked: Another run holds the output.
    """
    progress = progress or Progress()
    progress.enter("loading the weights")
    weights = load_weights(job)
    mask_values(job, weights)
    fingerprint = fingerprint_of(job, weights)
    storage = open_storage(job.output, profile=job.profile)
    progress.enter("listing the input")
    with _as_job_errors():
        progress.notices += repair(storage, job, fingerprint, stop, progress.enter)
        planned = None if to_resume(storage, job, fingerprint) else start_plan(job, fingerprint)
        if planned is not None:
            refuse_other_channels(job, weights, planned.manifest)
        commits = _commit_mode(storage)
        lock = locked(storage, job.run.on_overlap, stop, waiting=progress.enter)
    progress.enter("planning")
    with lock:
        storage = lock.fence.storage
        compacted.migrate(storage, lock.fence)
        run = _resumed(storage, job, fingerprint, lock, progress.notices)
        if run is None:
            if planned is None or not planned.is_current(storage):
                planned = start_plan(job, fingerprint)
            run = _new_run(storage, job, weights, planned, fingerprint=fingerprint, commits=commits, lock=lock)
        try:
            yield run
        finally:
            if run.live is not None:
                run.live.close()
        if lock.lost.is_set():
            lock.fence.check()


def _resumed(storage: Storage, job: Job, fingerprint: str, lock: Lock, notices: list[str]) -> Run | None:
    """Return the run to resume, if there is one. If it is damaged, it is set aside."""
    run_id = to_resume(storage, job, fingerprint)
    if run_id is None:
        return None
    attach = partial(Run.attach, job.output, run_id, profile=job.profile, generation=lock.fence.generation)
    try:
        run = attach()
        if not run.output.manifest.is_frozen:
            freeze_so_far(run.output.storage, run_id)
            run = attach()
        forget_unsettled(run.output)
    except StorageError as error:
        notices.append(set_aside(storage, run_id, error, lock.fence))
        return None
    # The current command sets the limits, not the interrupted one.
    return replace(run, job=job, resumed=True)


@contextmanager
def _as_job_errors() -> Iterator[None]:
    """Turn missing permissions and buckets into job errors, before the first shard."""
    try:
        yield
    except (Denied, NotFound) as error:
        raise JobError(str(error)) from error


def check_output(job: Job) -> None:
    """Find out whether the output can be written. Leaves nothing behind.

    Raises:
        JobError: It cannot be written.
    """
    with _as_job_errors():
        storage = open_storage(job.output, profile=job.profile)
        if storage.local_path("") is None:
            _commit_mode(storage)
        else:
            _check_folder(storage)


def _check_folder(storage: Storage) -> None:
    """Check by the nearest folder that exists: a new one is made there and removed."""
    folder = storage.root
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".maskfleet-probe-", dir=folder))
    except NotADirectoryError as error:
        raise JobError(f"the output is not writable: {folder} is a file, not a folder; move it") from error
    except OSError as error:
        raise JobError(
            f"the output is not writable: {folder} takes no new folder; change its permissions, or write elsewhere"
        ) from error


def _commit_mode(storage: Storage) -> Probed:
    if storage.local_path("") is not None:
        _check_folder(storage)
    try:
        return probe(storage)
    except StorageError as error:
        raise JobError(f"the output is not writable: {error}") from error


def start_plan(job: Job, fingerprint: str) -> Planned:
    """List the input, compare it with the catalog, and cut it into shards, up to the first part. Writes nothing.

    Args:
        job: The job.
        fingerprint: Fingerprint of the job with its weights.

    Raises:
        JobError: The input does not exist or contains no images.
    """
    storage = open_storage(job.output, profile=job.profile)
    indexes = Indexes(storage)
    source = Source(
        job.input, output=job.output, column=job.column, options=options_of(job), indexes=indexes, exclude=job.exclude
    )
    runs, known = storage.names("runs"), catalog.current(storage)
    began = time.perf_counter()
    planning = Planning(
        source.tables(),
        in_order=source.in_order,
        shard_size=job.run.shard_size,
        known=catalog.rows(storage, known),
        fingerprint=fingerprint,
        source=job.input,
        selection=job.select,
        mean_bytes=source.mean_bytes,
        refused=partial(refused_name, storage, mask_format(job.masks.format)),
        overlooked=source.overlooked,
        left_alone=lambda: source.left_alone,
        paging=Paging(
            job.pages, catalog.rows(storage, known), Counting(Inputs(options_of(job))).counts, source.unknown
        ),
        repeated=source.repeated,
    )
    parts = iter(planning)
    first = first_part(parts)
    if not planning.listed:
        others = ", ".join(f"{count} {reason}" for reason, count in islice(source.left_alone.items(), 5))
        found = f" (only {others})" if others else ": nothing is there"
        raise JobError(f"no images in {job.input}{found}; correct 'input', or put PNG, TIFF or JPEG files there")
    return Planned(
        planning=planning,
        first=first,
        parts=parts,
        runs=runs,
        known=known.number,
        seconds=time.perf_counter() - began,
        indexes=indexes,
    )


def _new_run(
    storage: Storage, job: Job, weights: Weights, planned: Planned, *, fingerprint: str, commits: Probed, lock: Lock
) -> Run:
    run_id = _next_run_id(storage)
    record = {
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": identity(job, fingerprint),
        "fingerprint": fingerprint,
        "weights": {
            "id": weights.id,
            "mask_values": weights.mask_values,
            "metadata": dict(weights.metadata),
            "normalize": weights.normalize,
            "n_channels": weights.model.n_channels,
            "n_classes": weights.model.n_classes,
        },
        "commit_mode": commits.mode,
        "commit_mode_reason": commits.why,
        "threads": threads_of(job),
        "generation": lock.fence.generation,
        "versions": versions(),
        "job": _without_secrets(job),
    }
    lock.fence.check()
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
    output = RunOutput(
        storage=storage, run_id=run_id, fingerprint=fingerprint, manifest=manifest,
        commits=Commits(storage, run_id, commits.mode, lock.fence), format=mask_format(job.masks.format),
    )  # fmt: skip
    return Run(job, record, output, generation=lock.fence.generation, live=live)


def _without_secrets(job: Job) -> dict[str, Any]:
    """Return the job for `job.json`. A literal webhook is left out: its URL may be a secret."""
    table = job.model_dump(mode="json", exclude_none=True)
    if not (job.run.webhook or "$").startswith("$"):
        del table["run"]["webhook"]
    return table


def _next_run_id(storage: Storage) -> str:
    """Return an id for a new run: the time in UTC to the millisecond, and a nonce.

    The id is greater than that of every run before it, even if the clock was set back or another machine's clock is
    ahead: the catalog takes runs in the order of their ids.
    """
    now = datetime.now(UTC)
    newest = max([*storage.names("runs"), catalog.current(storage).last_run])
    with suppress(ValueError):  # not a name of a run
        last = datetime.strptime(newest.partition("-")[0], _RUN_TIME).replace(tzinfo=UTC)
        now = max(now, last + timedelta(milliseconds=1))
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}-{nonce()[:6]}"


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the packages that affect masks."""
    names = ("maskfleet", "torch", "pillow", "numpy", "pyarrow", "ray", "s3fs", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
