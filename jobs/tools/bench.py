"""Speed of this machine as ratios of two measurements taken in alternation; medians over pairs. See docs/speed.md.

The steady rate of a run is its images per `worker_seconds`: from the start of the first shard to the end of the last.
It includes filling and draining the pipeline, but not the start of Ray and of the workers.
"""

import secrets
import statistics
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from maskfleet.jobs.cores import cores
from maskfleet.jobs.images.decode import decode
from maskfleet.jobs.inputs.fetch import options_of
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
from maskfleet.jobs.tools.identity import Identity
from maskfleet.jobs.tools.machine_speed import decode_and_encode, every_core
from maskfleet.unet.inference import roofline

MakeExecutor = Callable[..., Executor]
"""`jobs.run.executor.InProcess` or `cluster.driver.Fleet`."""

_REFERENCE_IMAGES = 4000
"""Most images of the bare decoding and encoding loop."""


class Ratio:
    """Pairs of measurements, summarised by medians."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def add(self, value: float, reference: float) -> None:
        """Add two rates measured one after the other, in images per second."""
        self.pairs.append((value, reference))

    @property
    def summary(self) -> dict[str, Any]:
        """Medians of both rates and of their ratio, with its smallest and largest value."""
        ratios = [value / reference for value, reference in self.pairs]
        return {
            "images_per_second": statistics.median(value for value, _ in self.pairs),
            "reference_per_second": statistics.median(reference for _, reference in self.pairs),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "pairs": len(ratios),
        }


def forward(
    job: Job, shapes: Sequence[tuple[int, int]], precisions: Sequence[Any], *, pairs: int = 3, seconds: float = 2.0
) -> list[dict[str, Any]]:
    """Measure the bare forward pass of the job's network; return one row per precision and shape.

    Args:
        job: Job naming weights and device.
        shapes: Height and width of images in px.
        precisions: Precisions such as "fp32" or "auto".
        pairs: Pairs of forward pass and matrix product.
        seconds: Least duration of each measurement.
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
    """Measure runs against the bare forward pass.

    Returns the summary of the ratio, and bottleneck and stages of the last run.

    Args:
        job: Job whose images should all have one shape. Each run gets its own folder within the output.
        executor: Makes the executor of each run.
        pairs: Pairs of run and forward pass.
        seconds: Least duration of each measurement of the forward pass.
    """
    ratio = Ratio()
    for _ in range(pairs):
        summary = run(with_new_output(job), executor())
        known = summary.tuning or {}
        shape = tuple(known.get("shape") or _first_shape(job))
        segmenter = segmenter_of(
            job,
            load_weights(job),
            threads=threads_of(job),
            precision=known.get("precision"),
            batch_pixels=known.get("batch_pixels"),
        )
        bare = roofline.images_per_second(segmenter, segmenter.batch_size(*shape), *shape, least_seconds=seconds)
        ratio.add(steady_rate(summary), bare)
    return ratio.summary | _bottleneck(summary)


def without_network(job: Job, executor: MakeExecutor, *, pairs: int = 3) -> dict[str, Any]:
    """Measure runs with a device that computes nothing against a bare loop of decoding and encoding on every core.

    Args:
        job: Job with local images. Each run gets its own folder within the output.
        executor: Makes the executor of each run.
        pairs: Pairs of run and loop.
    """
    source = Source(job.input, output=job.output, options=options_of(job))
    files = [Path(record.url).read_bytes() for record in islice(source, _REFERENCE_IMAGES)]
    ratio = Ratio()
    for _ in range(pairs):
        with every_core() as rate:
            alone = rate(decode_and_encode, files)
        summary = run(with_new_output(job), executor(open_pipeline=identity_pipeline))
        ratio.add(steady_rate(summary), alone)
    found = ratio.summary
    return {
        **found,
        "images_per_second_and_core": found["images_per_second"] / cores(),
        "cores": cores(),
        **_bottleneck(summary),
    }


def identity_pipeline(run: Run, cpus: int) -> Pipeline:
    """Return a pipeline around a device that computes nothing.

    With two decoder processes per core, no core is reserved for the device, and none is idle while a decoder waits for
    its next image.
    """
    return pipeline_around(run, Identity(), cpus, encoder=Encoder(default_values(2)), decoders=2 * cpus)


def steady_rate(summary: RunSummary) -> float:
    """Return images per second and worker, while workers had shards."""
    return summary.measured_images / summary.speed.worker_seconds


def with_new_output(job: Job) -> Job:
    """Return the job with a new, empty folder within its output."""
    return job.model_copy(update={"output": f"{job.output}/{secrets.token_hex(4)}"})


def _bottleneck(summary: RunSummary) -> dict[str, Any]:
    table = summary.to_json()
    return {name: table[name] for name in ("limit", "stages", "images")}


def _first_shape(job: Job) -> tuple[int, int]:
    """Return height and width of the first image, in px."""
    record = next(iter(Source(job.input, output=job.output, options=options_of(job))))
    folder, _, name = record.url.rpartition("/")
    data = open_storage(folder, profile=job.profile).read(name)
    pixels, *_ = decode(data, channels=load_weights(job).model.n_channels, scale=job.inference.scale)
    return pixels.shape[0], pixels.shape[1]
