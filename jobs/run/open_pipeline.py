"""From a run to its pipeline: the one place where a job becomes a network resident on a device."""

from typing import Any

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.inputs.fetch import Inputs, options_of
from maskfleet.jobs.masks.formats import Encoder
from maskfleet.jobs.network import tuning
from maskfleet.jobs.network.inference_config import encoder_of, fingerprint_of, image_limits, load_weights, segmenter_of
from maskfleet.jobs.network.sample import limits_of
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.pipeline import Pipeline


def open_pipeline(run: Run, cpus: int) -> Pipeline:
    """Load the weights and open a pipeline around them.

    Args:
        run: The run.
        cpus: Number of CPU cores for this process.

    Raises:
        JobError: The weights have changed, or the device is missing or lacks a feature the job needs.
    """
    job, output = run.job, run.output
    weights = load_weights(job)
    if fingerprint_of(job, weights) != output.fingerprint:
        raise JobError(
            f"weights {', '.join(job.weights)} changed since the run began; run the same command to start a new run"
        )
    threads = run.threads
    tuned = tuning.read(output.storage, run.run_id)
    if tuned is None:
        mine = tuning.tune(job, weights, output.manifest, output.storage, threads=threads)
        tuned = tuning.settled(output.storage, run.run_id, output.commits.mode, mine)
    segmenter = segmenter_of(
        job, weights, threads=threads, precision=tuned.precision,
        batch_pixels=tuned.batch_pixels, batches=tuned.batches_by_shape, fused=tuned.fused,
    )  # fmt: skip
    forward = tuning.forward_of(segmenter, tuned.shape, run.images)
    return pipeline_around(
        run, segmenter, cpus, encoder=encoder_of(job, weights), limits=image_limits(job, weights), forward=forward
    )


def pipeline_around(
    run: Run, segmenter: Any, cpus: int, *, encoder: Encoder | None, limits: Limits | None = None, **more: Any
) -> Pipeline:
    """Return a pipeline around a segmenter.

    Args:
        run: The run.
        segmenter: The network on its device; see `jobs.run.stages.device.Device`.
        cpus: Number of CPU cores for this process.
        encoder: Mask encoder; None for statistics alone.
        limits: Limits of each image; None for those of the job, without bands and normalisation.
        more: Further arguments of `Pipeline`.
    """
    job = run.job
    decoders = job.cluster.decoders if job.cluster.decoders != "auto" else max(1, cpus - 1)
    limits = limits or limits_of(job, channels=segmenter.n_channels, min_side=segmenter.min_side)
    settings: dict[str, Any] = {"decoders": decoders, "encoders": max(1, cpus // 2)} | more
    return Pipeline(segmenter, encoder=encoder, limits=limits, inputs=Inputs(options_of(job)), **settings)
