"""Checks for likely causes of wrong masks before a run, on a sample of the job's own images.

All-black masks are the most frequent complaint of Pytorch-UNet users. Each cause visible in a sample gives a warning.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.network.inference_config import mask_values, segmenter_of
from maskfleet.jobs.network.sample import IMAGES, Example, sample
from maskfleet.unet.checkpoints.pytorch_unet import ORIGIN
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.weights import Weights

_SIMILAR = 32
"""Largest difference between mask values that look alike."""

_SINGLE_CLASS = 0.999
"""Share of one class in a sample from which on the masks are suspicious."""

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
    examples = _sampled(job, weights, manifest, channels=channels)
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
    found = [*_scale_warnings(job, weights), *_value_warnings(mask_values(job, weights))]
    if not manifest.images:
        return found
    examples = _sampled(job, weights, manifest, channels=weights.model.n_channels)
    found += [*_failure_warnings(examples), *_colour_warnings(job, weights, manifest)]
    segmenter = segmenter_of(job, weights, threads=threads)
    images = [example.pixels for example in examples if example.pixels is not None]
    statistics = [segmenter.segment(pixels[None])[1] for pixels in images]
    return [*found, *_mask_warnings(job, weights, statistics)] if images else found


def _sampled(job: Job, weights: Weights, manifest: Manifest, *, channels: int) -> list[Example]:
    return sample(job, manifest.sample(IMAGES), channels=channels, min_side=weights.model.min_side)


def _scale_warnings(job: Job, weights: Weights) -> Iterator[str]:
    trained = weights.metadata.get("scale")
    if trained is not None and float(trained) != job.inference.scale:
        yield (
            f"the weights were trained at scale {float(trained):g}, but inference.scale is {job.inference.scale:g}: "
            f"objects appear {job.inference.scale / float(trained):g} times as large as in training"
        )
    elif trained is None and weights.metadata.get("origin") == ORIGIN:
        yield (
            "the weights do not record their training scale; Pytorch-UNet trains and predicts at 0.5 by default, but "
            f"inference.scale is {job.inference.scale:g} (record the scale with maskfleet convert --scale)"
        )


def _value_warnings(values: Sequence[Any]) -> Iterator[str]:
    samples = np.asarray(values, np.int64).reshape(len(values), -1)
    if int(np.ptp(samples, axis=0).max()) < _SIMILAR:
        yield (
            f"the mask values {', '.join(str(value) for value in values)} look alike, usually all black; to make masks "
            "visible, set masks.values, such as [0, 255]"
        )


def _failure_warnings(examples: Sequence[Example]) -> Iterator[str]:
    failures = [(example.record.key, example.failure) for example in examples if example.failure is not None]
    if failures:
        key, failure = failures[0]
        yield (
            f"{len(failures)} of {_count(len(examples), 'sampled image')} would fail, the first being {key}: "
            f"{failure.message}"
        )


def _colour_warnings(job: Job, weights: Weights, manifest: Manifest) -> Iterator[str]:
    if weights.model.n_channels != 1:
        return
    examples = _sampled(job, weights, manifest, channels=3)
    images = [example.pixels.astype(np.int16) for example in examples if example.pixels is not None]
    coloured = sum(float(np.ptp(pixels, axis=2).mean()) > _GREY for pixels in images)
    if coloured:
        yield (
            f"the weights take one channel, but {coloured} of {_count(len(images), 'sampled image')} "
            f"{'has' if coloured == 1 else 'have'} colours; the network sees only their luminance, so check "
            "that it was trained on such images"
        )


def _mask_warnings(job: Job, weights: Weights, statistics: Sequence[Statistics]) -> Iterator[str]:
    if lost := sum(not each.finite[0] for each in statistics):
        images = _count(len(statistics), "sampled image")
        yield f"the network returns NaN or infinity for {lost} of {images}; use other weights"
    pixels = np.sum([each.class_pixels[0] for each in statistics], axis=0)
    share = pixels / pixels.sum()
    if share.max() < _SINGLE_CLASS:
        return
    only = int(share.argmax())
    causes = [
        "images unlike the training images",
        *(["a different order of classes"] if only else []),
        *([] if weights.normalize else ["training with mean and standard deviation (maskfleet convert --mean --std)"]),
        *(["inference.threshold"] if job.inference.threshold is not None or weights.model.n_classes == 1 else []),
        "inference.scale",
    ]
    name = "background" if only == 0 else f"class {only}"
    yield (
        f"{share[only]:.2%} of the sampled pixels are {name} (mean confidence "
        f"{np.mean([each.mean_confidence[0] for each in statistics]):.2f}); likely causes: {', '.join(causes)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
