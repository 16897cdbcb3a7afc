"""Checks for likely causes of wrong masks before a run, on a sample of the job's own images.

All-black masks are the most frequent complaint of Pytorch-UNet users. Each cause visible in a sample gives a warning.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.inputs.record import Record
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.network.inference_config import image_limits, mask_values, segmenter_of
from maskfleet.jobs.network.sample import IMAGES, Example, limits_of, sample
from maskfleet.jobs.planning.findings import Finding, MaskSums, of_colours, of_masks, of_scale, of_values
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.weights import Weights

_GREY = 16
"""Largest mean difference between the channels of a grey image, allowing for compression."""


def refuse_other_channels(job: Job, weights: Weights, manifest: Manifest) -> None:
    """Refuse weights with an unusual number of channels if no image of a sample has as many.

    Raises:
        JobError: No image of the sample has the channels of the weights.
    """
    channels = weights.model.n_channels
    if channels in (1, 3) or not manifest.images:
        return
    examples = _sampled(job, weights, manifest)
    unsuited = [example for example in examples if example.failure and example.failure.error_class == "unsupported"]
    if len(unsuited) == len(examples):
        raise JobError(
            f"weights {', '.join(job.weights)} need {channels} channels, but no image of a sample has them "
            f"({unsuited[0].record.key}: {unsuited[0].failure.message if unsuited[0].failure else ''}); use other "
            f"weights, or images with {channels} channels"
        )


def warnings(job: Job, weights: Weights, manifest: Manifest, *, threads: int) -> list[str]:
    """Return likely problems with the masks and their likely causes, one sentence each.

    Segments a sample of the images on this machine.

    Args:
        job: The job.
        weights: Weights of the job.
        manifest: Planned images.
        threads: Number of CPU threads.

    Raises:
        JobError: The device is missing or cannot do what the job asks.
    """
    found = [*of_scale(job, weights.metadata), *of_values(job, mask_values(job, weights))]
    if not manifest.images:
        return [each.message for each in found]
    examples = _sampled(job, weights, manifest)
    if weights.model.n_channels == 1:
        found += colours_for_one_channel(job, manifest.sample(IMAGES), min_side=weights.model.min_side)
    segmenter = segmenter_of(job, weights, threads=threads)
    images = [example.pixels for example in examples if example.pixels is not None]
    statistics = [segmenter.segment(pixels[None])[1] for pixels in images]
    one_logit = weights.model.n_classes == 1
    masks = of_masks(
        job, MaskSums.of(statistics), normalized=weights.normalize is not None, one_logit=one_logit, sampled=True
    )
    messages = [each.message for each in (*found, *masks)]
    return [*messages, *_failure_warnings(examples), *_non_finite_warnings(statistics)]


def colours_for_one_channel(job: Job, records: Sequence[Record], *, min_side: int = 1) -> list[Finding]:
    """Return whether some images have colours that a network of one channel does not see. Decodes them.

    Raises:
        StorageError: Storage fails for every image.
    """
    if job.inference.bands:
        return []
    examples = sample(job, records, limits_of(job, channels=3, min_side=min_side))
    images = [_in_bytes(example.pixels) for example in examples if example.pixels is not None]
    coloured = sum(float(np.ptp(pixels, axis=2).mean()) > _GREY for pixels in images)
    return list(of_colours(coloured, len(images)))


def _in_bytes(pixels: NDArray[Any]) -> NDArray[np.int16]:
    return (pixels if pixels.dtype == np.uint8 else pixels * 255).astype(np.int16)


def _sampled(job: Job, weights: Weights, manifest: Manifest) -> list[Example]:
    return sample(job, manifest.sample(IMAGES), image_limits(job, weights))


def _failure_warnings(examples: Sequence[Example]) -> Iterator[str]:
    failures = [(example.record.key, example.failure) for example in examples if example.failure is not None]
    if failures:
        key, failure = failures[0]
        yield (
            f"{len(failures)} of {_count(len(examples), 'sampled image')} would fail, the first being {key}: "
            f"{failure.message}"
        )


def _non_finite_warnings(statistics: Sequence[Statistics]) -> Iterator[str]:
    if lost := sum(not each.finite[0] for each in statistics):
        images = _count(len(statistics), "sampled image")
        yield f"the network returns NaN or infinity for {lost} of {images}; use other weights"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
