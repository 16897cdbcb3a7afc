"""Nights over a few small images, and what they leave: a job in one process, short enough to die a thousand times.

Everything is the real thing but the device, which computes nothing, and the decoders, which are this process.
"""

import functools
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import aiobotocore.session  # noqa: F401  (a child of a process that has imported everything imports nothing)
import botocore.loaders
import botocore.session
import numpy as np
import pandas as pd  # noqa: F401  (pyarrow imports it when it first makes an array)
import pyarrow.dataset
import pyarrow.pandas_compat  # noqa: F401
import s3fs  # noqa: F401
from conftest import TIMES_AND_NAMES, seeded, tar, tree
from faults import calls
from faults.children import Child, Ended, forked
from PIL import Image

import maskfleet.jobs.images.readers.png
import maskfleet.jobs.ledger.fence
import maskfleet.jobs.ledger.lock
import maskfleet.jobs.run.begin
import maskfleet.jobs.run.pipeline
import maskfleet.jobs.storage.obstore_client
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.contract import Decoded, Failure, LocalFile
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.ledger.statistics import STAGES
from maskfleet.jobs.network import tuning
from maskfleet.jobs.network.inference_config import encoder_of, load_weights
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.begin import versions
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import InProcess
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.jobs.tools.identity import Identity
from maskfleet.unet import weights

STALE = 0.05
"""Seconds without a renewal after which a driver of these nights counts as dead."""

FORMATS = ("png", "tar", "parquet", "rle")
CONTAINERS = ("folder", "tar", "list")


@dataclass(frozen=True)
class Kind:
    """The kind of a series of nights.

    Attributes:
        format: Mask format.
        container: Input: a `folder`, `tar` files, or a `list` of files.
        shard_size: Images per shard.
        seed: Seed of the images.
        nights: Number of nights.
        images: Number of images of the first night, beside a torn one.
        changes: What the second job of a night sets, as `--set` takes it.
    """

    format: str = "png"
    container: str = "folder"
    shard_size: int = 2
    seed: int = 0
    nights: int = 2
    images: int = 6
    changes: str = "masks.values=[7, 99]"

    def __str__(self) -> str:
        return f"{self.format} from {self.container}"


@dataclass(frozen=True)
class Verdict:
    """What an output holds, and what is wrong with it.

    Attributes:
        problems: Broken invariants, one sentence each.
        rows: Newest row of each image without times and names, by key.
        masks: SHA-256 of each mask's pixels, by key.
        loose: SHA-256 of each loose file, by name.
        doubled: Images with two successful rows for the same bytes and settings.
        runs: Number of runs.
    """

    problems: list[str]
    rows: dict[str, dict]
    masks: dict[str, str]
    loose: dict[str, str]
    doubled: list[str] = field(default_factory=list)
    runs: int = 0

    def faults(self, expected: "Verdict", *, strays: bool = True) -> list[str]:
        """Return what is wrong, in itself and against the output of a run without faults.

        Args:
            expected: That output.
            strays: Whether loose masks of images that are gone must be the same too.
        """
        found = [*self.problems, *(f"doubled: {key}" for key in self.doubled)]
        found += [f"lost: {key}" for key in expected.rows.keys() - self.rows.keys()]
        found += [f"too many: {key}" for key in self.rows.keys() - expected.rows.keys()]
        found += [f"other row: {key}" for key, row in self.rows.items() if row != expected.rows.get(key, row)]
        found += [f"other mask: {key}" for key, mask in expected.masks.items() if self.masks.get(key) != mask]
        names = expected.loose.keys() if strays else {row["mask_member"] for row in expected.rows.values()} - {None}
        names = names if expected.loose else ()
        found += [f"other file: masks/{name}" for name in names if self.loose.get(name) != expected.loose[name]]
        stray = self.loose.keys() - expected.loose.keys() if strays else ()
        return found + [f"stray file: masks/{name}" for name in stray]


class Nights:
    """Images that change from night to night, and the jobs over them.

    Args:
        root: Folder of its own.
        kind: Kind of the nights.
        bucket: URL of a bucket of its own, which then holds input and output; None for folders.
    """

    def __init__(self, root: Path, kind: Kind, bucket: str | None = None) -> None:
        self.root, self.kind, self.bucket = Path(root), kind, bucket
        self.root.mkdir(parents=True, exist_ok=True)
        self._state: int | None = None
        (self.root / "w.safetensors").write_bytes(weights.save(seeded(width=2)))
        for night in range(kind.nights):
            _draw(self.root / "states" / str(night), kind, night)
        if bucket:
            _read_models()
        _weights(self.job("none"))
        _versions()

    @property
    def _base(self) -> str:
        return self.bucket or str(self.root)

    def output(self, name: str) -> str:
        """URL of an output."""
        return f"{self._base}/{name}"

    def job(self, output: str, *sets: str) -> Job:
        """Return the job of every night into one of the outputs."""
        source = {"list": "/list.txt", "tar": "/*.tar"}.get(self.kind.container, "")
        table = {
            "input": f"{self._base}/in{source}",
            "output": self.output(output),
            "weights": f"{self.root}/w.safetensors",
        }
        fixed = [f"run.shard_size={self.kind.shard_size}", f"masks.format={self.kind.format}", "run.max_error_rate=1"]
        return Job.of(table, [*fixed, "cluster.threads=1", *sets])

    def images_of(self, night: int) -> None:
        """Make the input that of a night. Sizes, times and ETags of equal images stay."""
        if self._state == night:
            return
        here = self.root / "in"
        if here.exists():
            here.rename(self.root / "states" / str(self._state))
        (self.root / "states" / str(night)).rename(here)
        self._state = night
        if self.bucket:
            forked(lambda: _upload(here, self.bucket)).value()

    def copy(self, source: str, target: str) -> None:
        """Copy an output. A missing one gives a missing one."""
        if self.bucket:
            forked(lambda: _copy_objects(self.bucket, source, target)).value()
        elif (self.root / source).exists():
            shutil.copytree(self.root / source, self.root / target)

    def remove(self, output: str) -> None:
        """Delete an output."""
        if not self.bucket:
            shutil.rmtree(self.root / output, ignore_errors=True)

    def run(self, output: str, *sets: str, **more) -> Ended:
        """Return how a night in a forked child ended; see `night`."""
        return self.start(output, *sets, **more).ended()

    def start(self, output: str, *sets: str, **more) -> Child:
        """Start a night in a forked child; see `night`."""
        job = self.job(output, *sets)
        return Child(lambda: night(job, **more))

    def verdict(self, output: str) -> Verdict:
        """Return what an output holds, as read by a forked child."""
        url = self.output(output)
        return forked(lambda: verdict(url)).value()

    def again(self, output: str, *sets: str, fresh: bool = False, **more) -> tuple[Ended, Verdict | None]:
        """Return how a night ended and what it left, as seen after another night that must find nothing to do.

        Args:
            output: Name of the output.
            sets: Settings of the job.
            fresh: Whether there is no output yet. Otherwise it is verified first.
            more: Arguments of `night`.
        """
        job = self.job(output, *sets)

        def work():
            after_death = [] if fresh else _audited(job.output)
            first = night(job, **more)
            second = night(job)
            found = verdict(job.output)
            found.problems.extend(f"before that: {problem}" for problem in after_death)
            if first["lost"] or second["lost"]:
                found.problems.append(
                    f"{first['lost']} attempts raised an error, and {second['lost']} of the night after"
                )
            if second["images"]:
                found.problems.append(f"the night after did {second['images']} images again")
            return first, found

        ended = forked(work)
        return ended, ended.result[1] if ended.ok else None


@contextmanager
def series(kind: Kind, bucket: str | None = None):
    """Nights in a temporary folder, in memory if there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="maskfleet-nights-", dir=memory) as root:
        yield Nights(Path(root), kind, bucket)


def night(
    job: Job, point=None, *, count=False, endpoint=None, clock=0.0, pause=0.0, within=False, planned=None, before=None
) -> dict:  # fmt: skip
    """Run a job in this process, which is not used for anything else.

    Args:
        job: The job.
        point: Where to die or freeze; see `faults.calls`.
        count: Whether calls are counted.
        endpoint: URL of the S3 server; None for the one of the environment.
        clock: Seconds by which the clock is wrong.
        pause: Seconds that the device takes for an image.
        within: Whether the calls counted are those of the operating system.
        planned: Called once the plan is stored, before the first image is read.
        before: Called first.
    """
    if before:
        before()
    if endpoint:
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    if clock:
        _set_clock(clock)
    maskfleet.jobs.run.pipeline.Decoders = InThisProcess
    maskfleet.jobs.run.begin.load_weights = _weights
    maskfleet.jobs.run.begin.versions = _versions
    maskfleet.jobs.ledger.lock.Lock = functools.partial(Lock, renew=STALE / 4, stale=STALE)
    maskfleet.jobs.ledger.fence.FRESH = STALE / 4
    counter = None
    if point is not None or count:
        counter = calls.counted_within() if within and point is None else calls.counted(point)

    def on_progress(*_):
        nonlocal planned
        if planned is not None:
            planned()
            planned = None

    summary = run(job, InProcess(functools.partial(_pipeline, pause=pause)), on_progress=on_progress)
    return {
        "exit_code": summary.exit_code, "images": summary.images, "failed": summary.failed, "resumed": summary.resumed,
        "calls": list(counter.names) if counter else [], "seconds": summary.seconds, "run": summary.run_id,
        "lost": summary.attempts_lost, "mode": summary.commit_mode, "errors": dict(summary.errors),
    }  # fmt: skip


class Slow(Identity):
    """A device that takes its time."""

    pause = 0.0

    def segment(self, images, size=None, **more):
        time.sleep(self.pause * len(images))
        return super().segment(images, size, **more)


def _read_models() -> None:
    """Let every S3 client of the children use the descriptions of the service that this process has read once."""
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
    loader = botocore.session.create_loader(None)
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1", "waiters-2"):
        loader.list_available_services(kind)
        loader.load_service_model("s3", kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)


_LOADED: dict = {}


def _weights(job: Job):
    """Return the weights, loaded once: the parent does it, before it forks."""
    if job.weights not in _LOADED:
        _LOADED[job.weights] = load_weights(job)
    return _LOADED[job.weights]


_versions = functools.cache(versions)


def _pipeline(run, cpus, *, pause=0.0):
    storage, mode = run.output.storage, run.output.commits.mode
    if tuning.read(storage, run.run_id) is None:
        tuning.settled(storage, run.run_id, mode, tuning.Tuning("none", "fp32"))
    device = Slow()
    device.pause = pause
    return pipeline_around(run, device, cpus, encoder=encoder_of(run.job, _weights(run.job)), decoders=1)


class InThisProcess(Decoders):
    """Decodes in this process, since another one takes a third of a second to start."""

    def __init__(self, limits, **_):
        self.limits, self._all = limits, []

    def close(self):
        pass

    def decode(self, fetched, timers=None):
        if timers is not None:
            timers.add("decode", busy=0.0)
        for number, item in fetched:
            data = item.read() if isinstance(item, LocalFile) else item
            yield Decoded.failed(number, data) if isinstance(data, Failure) else self._decoded(number, data)

    def _decoded(self, number, data):
        limits = self.limits
        try:
            pixels, size, _ = decode(
                bytes(data), channels=limits.channels, scale=limits.scale, min_side=limits.min_side
            )
        except Exception as error:
            failure = Failure("decode", getattr(error, "error_class", "corrupt"), str(error))
            return Decoded.failed(number, failure)
        return Decoded(number, pixels, size, 0.0, None)


def _set_clock(seconds: float) -> None:
    """Set the clock of this process wrong: `time.time`, and `datetime.now` in the package."""
    right = time.time
    time.time = lambda: right() + seconds

    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.startswith("maskfleet.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Wrong


def verdict(url: str) -> Verdict:
    """Return what an output holds. `verify` comes first, as users have it."""
    problems = list(verify(url).problems)
    output = open_output(url)
    dropped = {*TIMES_AND_NAMES, *(f"{stage}_seconds" for stage in STAGES), "url"}
    rows, masks = {}, {}
    for row in output.rows().to_pylist():
        if row["key"] in rows:
            problems.append(f"{row['key']} has two newest rows")
        rows[row["key"]] = {name: value for name, value in row.items() if name not in dropped}
        if row["status"] == "ok":
            masks[row["key"]] = hashlib.sha256(output.mask(row["key"]).tobytes()).hexdigest()
    every = Counter(
        (row["key"], row["etag"], row["fingerprint"])
        for row in output.all_rows(["key", "etag", "fingerprint", "status"]).to_pylist()
        if row["status"] == "ok"
    )
    storage = open_storage(url)
    loose = {
        entry.path.removeprefix("masks/"): hashlib.sha256(storage.read(entry.path)).hexdigest()
        for entry in storage.walk("masks")
    }
    doubled = sorted(key[0] for key, count in every.items() if count > 1)
    return Verdict(problems, rows, masks, loose, doubled, len(output.runs))


def _audited(url: str) -> list[str]:
    """Return the problems of what a dead run left: there must be none, since nobody may be sent to repair it."""
    try:
        return list(verify(url).problems)
    except JobError:  # it died before its first run
        return []


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files below a folder."""
    return [str(path) for path in Path(folder).rglob(".maskfleet*") if path.is_file()]


_DELETED = ("part-1/01.png", "part-0/00.png", "part-1/03.png")
"""Image missing from each night's input, from the second night on."""


def _image(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    sink = io.BytesIO()
    pixels = random.integers(0, 256, (16, 16 + 4 * (seed % 2), 3), np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _files(kind: Kind, night: int) -> dict[str, bytes]:
    """Return the images of a night: each night some are new, one is changed and one is deleted."""
    files = {f"part-{number % 2}/{number:02}.png": _image(100 * kind.seed + number) for number in range(kind.images)}
    files["part-0/torn.png"] = _image(1)[:60]
    for later in range(1, night + 1):
        files[f"part-1/new-{later}.png"] = _image(1000 * later + kind.seed)
        files[f"part-{later % 2}/more-{later}.png"] = _image(1001 * later + kind.seed)
        files["part-0/02.png"] = _image(2000 * later + kind.seed)
        files.pop(_DELETED[later - 1], None)
    return files


def _draw(folder: Path, kind: Kind, night: int) -> None:
    folder.mkdir(parents=True)
    files = _files(kind, night)
    if kind.container == "tar":
        names = sorted(files)
        tar(folder / "a.tar", [(name, files[name]) for name in names if name.startswith("part-0")])
        tar(folder / "b.tar", [(name, files[name]) for name in names if name.startswith("part-1")])
    else:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        if kind.container == "list":
            (folder / "list.txt").write_text("".join(f"{name}\n" for name in sorted(files)))
    _settle_times(folder)


def _settle_times(folder: Path) -> None:
    """Give files of equal content equal times in every night, as files that nobody touched have them."""
    for path in folder.rglob("*"):
        if path.is_file():
            stamp = 1_700_000_000 + int(hashlib.sha256(path.read_bytes()).hexdigest()[:6], 16)
            os.utime(path, (stamp, stamp))


def _upload(folder: Path, bucket: str) -> None:
    storage = open_storage(bucket)
    files = tree(folder)
    for entry in list(storage.walk("in")):
        if entry.path.removeprefix("in/") not in files:
            storage.delete(entry.path)
    for path, data in files.items():
        storage.write(f"in/{path}", data)


def _copy_objects(bucket: str, source: str, target: str) -> None:
    storage = open_storage(bucket)
    for entry in list(storage.walk(source)):
        storage.write(target + entry.path.removeprefix(source), storage.read(entry.path))
