"""What this machine reaches, each as a ratio of two things measured in turn; medians over pairs. See docs/speed.md.

A run's steady rate is its images by its `worker_seconds`: from the first shard's beginning to the last
one's end, pipeline fill and tail included, the start of Ray and of workers not.
"""

import multiprocessing
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskfleet.jobs.cores import cores
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.inputs.sources import Source
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.jobs.network.inference_config import load_weights, segmenter_of, threads_of
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.executor import Executor
from maskfleet.jobs.run.open_pipeline import pipeline_around
from maskfleet.jobs.run.pipeline import Pipeline
from maskfleet.jobs.run.summary import RunSummary
from maskfleet.jobs.storage.schemes import open_storage
from maskfleet.unet.inference import roofline
from maskfleet.unet.inference.identity import Identity

MakeExecutor = Callable[..., Executor]
"""`jobs.run.executor.InProcess` or `cluster.driver.Fleet`."""

_REQUESTS_IN_FLIGHT = 32

_DIFFERENT = 1000

_ALONE = 4000
"""Images of the bare loop, at most."""


class Ratio:
    """Pairs of measurements, and what is said of them."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def add(self, value: float, reference: float) -> None:
        """A pair, measured one after the other."""
        self.pairs.append((value, reference))

    @property
    def summary(self) -> dict[str, Any]:
        """Medians of both and of the ratio, and its least and most."""
        ratios = [value / reference for value, reference in self.pairs]
        return {
            "images_per_second": statistics.median(value for value, _ in self.pairs),
            "reference_per_second": statistics.median(reference for _, reference in self.pairs),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "pairs": len(ratios),
        }


def draw(folder: Path, images: int, side: int, *, seed: int = 0) -> Path:
    """Square JPEG files of quality 90 with the detail of photographs; the same seed draws the same.

    Beyond `_DIFFERENT` they are the first ones again, under other names.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(images, _DIFFERENT)):
        coarse = random.integers(0, 256, (max(2, side // 10), max(2, side // 10), 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06}.jpg", quality=90)
    for number in range(_DIFFERENT, images):
        os.link(folder / f"{number % _DIFFERENT:06}.jpg", folder / f"{number:06}.jpg")
    return folder


@contextmanager
def prepared(job: Job, images: int, side: int) -> Iterator[Job]:
    """The job on so many images of its input, or of drawn ones where that is empty; all that is written goes again."""
    with tempfile.TemporaryDirectory(prefix="maskfleet-bench-") as scratch:
        if job.input:
            source = Source(job.input, output=job.output, profile=job.profile)
            listed = [record.url for record in islice(source, images)]
            if not listed:
                raise JobError(f"no image in {job.input}; correct 'input'")
        else:
            listed = [str(path) for path in sorted(draw(Path(scratch) / "drawn", images, side).iterdir())]
        (Path(scratch) / "images.txt").write_text("\n".join(listed))
        yield job.model_copy(update={"input": f"{scratch}/images.txt", "output": f"{scratch}/output"})


def forward(
    job: Job, shapes: Sequence[tuple[int, int]], precisions: Sequence[Any], *, pairs: int = 3, seconds: float = 2.0
) -> list[dict[str, Any]]:
    """The bare forward pass of the job's network, by shape and precision.

    Args:
        job: Names weights and device.
        shapes: Heights and widths in px.
        precisions: To compute in.
        pairs: Of pass and matrix product.
        seconds: Of each measurement.
    """
    weights = load_weights(job)
    rows = []
    for precision in precisions:
        segmenter = segmenter_of(job, weights, threads=threads_of(job), precision=precision)
        for height, width in shapes:
            found = roofline.forward(segmenter, height, width, pairs=pairs, seconds=seconds)
            rows.append(
                {
                    "device": segmenter.device.type,
                    "precision": segmenter.precision,
                    "height": height,
                    "width": width,
                    "batch": segmenter.batch_size(height, width),
                    **found._asdict(),
                }
            )
    return rows


def end_to_end(job: Job, executor: MakeExecutor, *, pairs: int = 3, seconds: float = 3.0) -> dict[str, Any]:
    """Runs against the bare forward pass, in pairs; the limit and the stages are the last run's.

    Args:
        job: Its output gets a folder per pair. Its input's images should have one shape.
        executor: Makes the executor of each run.
        pairs: Of pass and run.
        seconds: Of each measurement of the pass.
    """
    ratio = Ratio()
    for _ in range(pairs):
        summary = run(_anew(job), executor())
        known = summary.tuning or {}
        shape = tuple(known.get("shape") or _shape(job))
        # In the precision and the batch that the run had.
        segmenter = segmenter_of(
            job,
            load_weights(job),
            threads=threads_of(job),
            precision=known.get("precision"),
            batch_pixels=known.get("batch_pixels"),
        )
        bare = roofline.images_per_second(segmenter, segmenter.batch_size(*shape), *shape, least_seconds=seconds)
        ratio.add(steady(summary), bare)
    return ratio.summary | _held_back(summary)


def steady(summary: RunSummary) -> float:
    """Images per second and worker while the workers had shards."""
    return summary.measured_images / summary.speed.worker_seconds


def _held_back(summary: RunSummary) -> dict[str, Any]:
    table = summary.to_json()
    return {name: table[name] for name in ("limit", "stages", "images")}


def _anew(job: Job) -> Job:
    """With an output that nothing is done in."""
    return job.model_copy(update={"output": f"{job.output}/{secrets.token_hex(4)}"})


def _shape(job: Job) -> tuple[int, int]:
    """Of the first image."""
    record = next(iter(Source(job.input, output=job.output, profile=job.profile)))
    root = open_storage(record.url.rpartition("/")[0], profile=job.profile)
    pixels, _ = decode(
        root.read(record.url.rpartition("/")[2]), channels=load_weights(job).model.n_channels, scale=job.inference.scale
    )
    return pixels.shape[0], pixels.shape[1]


def with_identity(run: Run, cpus: int) -> Pipeline:
    """A pipeline around a device that computes nothing: the runner's own ceiling.

    No core is kept free for the device, and none is idle while a decoding process waits to be given more.
    """
    return pipeline_around(run, Identity(), cpus, encoder=Encoder(default_values(2)), decoders=2 * cpus)


def null(job: Job, executor: MakeExecutor, *, pairs: int = 3) -> dict[str, Any]:
    """Runs with the identity against decoding and encoding alone, in a bare loop on the same cores."""
    source = Source(job.input, output=job.output, profile=job.profile)
    files = [Path(record.url).read_bytes() for record in islice(source, _ALONE)]
    ratio = Ratio()
    for _ in range(pairs):
        with _every_core() as rate:
            alone = rate(_decode_and_encode, files)
        summary = run(_anew(job), executor(open_pipeline=with_identity))
        ratio.add(steady(summary), alone)
    found = ratio.summary
    return {
        **found,
        "images_per_second_and_core": found["images_per_second"] / cores(),
        "cores": cores(),
        **_held_back(summary),
    }


def codecs(files: Sequence[bytes]) -> dict[str, Any]:
    """Images per second of decoding these files and encoding as many masks, a process per core and one alone."""
    found: dict[str, Any] = {"cores": cores(), "images": len(files), "bytes": sum(map(len, files))}
    with _every_core() as rate:
        for name, work in (("decode", _decode), ("encode", _encode), ("both", _decode_and_encode)):
            found[f"{name}_per_second"] = rate(work, files)
            found[f"{name}_per_second_one_core"] = rate(work, files, 1)
    return found


def storage(url: str, *, objects: int, size: int, profile: str | None = None) -> dict[str, Any]:
    """Writes, reads and deletes objects of random bytes under a new prefix, and says what that reached.

    Args:
        url: Folder or s3:// prefix.
        objects: How many.
        size: Bytes of each.
        profile: AWS profile.
    """
    folder = f"maskfleet-bench-{secrets.token_hex(6)}"
    store = open_storage(url, profile=profile)
    data = secrets.token_bytes(size)
    names = [f"{folder}/{number:06}" for number in range(objects)]
    found: dict[str, Any] = {"objects": objects, "bytes": size}
    with ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as pool:
        try:
            for verb, call in (("put", lambda name: store.write(name, data)), ("get", store.read)):
                started, cpu = time.perf_counter(), time.process_time()
                done = list(pool.map(call, names))
                assert verb == "put" or all(item is not None and len(item) == size for item in done)
                seconds = time.perf_counter() - started
                found[f"{verb}_per_second"] = objects / seconds
                found[f"{verb}_megabytes_per_second"] = objects * size / seconds / 1e6
                found[f"{verb}_cpu_ms"] = (time.process_time() - cpu) / objects * 1e3
        finally:
            list(pool.map(store.delete, names))
    store.remove_folder(folder)
    return found | {"retries": store.retries}


@contextmanager
def _every_core() -> Iterator[Callable[..., float]]:
    """A function that gives the images per second of a piece of work done in a process per core."""
    every = cores()
    with multiprocessing.get_context("spawn").Pool(every) as pool:

        def rate(work: Callable[[list[bytes]], float], files: Sequence[bytes], processes: int = every) -> float:
            pool.map(work, [list(files[:4])] * every, chunksize=1)  # imports
            shares = [list(files[process::processes]) for process in range(processes)]
            return len(files) / max(pool.map(work, shares, chunksize=1))

        yield rate


def _decode(files: Iterable[bytes]) -> float:
    started = time.perf_counter()
    for data in files:
        decode(data, channels=3)
    return time.perf_counter() - started


def _encode(files: Sequence[bytes]) -> float:
    """As many masks as files, of the first ones' green against red."""
    masks = [_mask(data) for data in files[:16]]
    encoder = Encoder(default_values(2))
    started = time.perf_counter()
    for number in range(len(files)):
        encoder.encode(masks[number % len(masks)])
    return time.perf_counter() - started


def _decode_and_encode(files: Iterable[bytes]) -> float:
    encoder = Encoder(default_values(2))
    started = time.perf_counter()
    for data in files:
        encoder.encode(_mask(data))
    return time.perf_counter() - started


def _mask(data: bytes) -> Any:
    pixels, _ = decode(data, channels=3)
    return (pixels[..., 1] > pixels[..., 0]).view(np.uint8)
