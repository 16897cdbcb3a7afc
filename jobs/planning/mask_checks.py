"""Why masks may come out wrong, looked for before a run: on a sample of the job's own images.

All-black masks are the most common complaint of Pytorch-UNet's users; each cause that a sample can show
is a sentence here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.network.inference_config import mask_values, segmenter_of
from maskfleet.jobs.network.sample import IMAGES, Example, sample
from maskfleet.unet.inference.decision import Statistics
from maskfleet.unet.weights import CHECKPOINT, Weights

_DARK = 32
"""Values of a mask that lie within so many of each other look alike."""

_ALMOST = 0.999
"""Share of a sample's pixels in one class that is no segmentation."""

_COLOUR = 16
"""Channels of a grey image lie within so many of each other, compression included."""


def refuse_other_channels(job: Job, weights: Weights, manifest: Manifest) -> None:
    """Look at a few images, where few kinds of image have the channels that the network takes.

    Raises:
        JobError: None of them has.
    """
    channels = weights.model.n_channels
    if channels in (1, 3) or not manifest.images:
        return
    examples = sample(job, channels, manifest.sample(IMAGES))
    unsuited = [example for example in examples if example.failure and example.failure.error_class == "unsupported"]
    if len(unsuited) == len(examples):
        raise JobError(
            f"weights {', '.join(job.weights)} take {channels} channels and no image of a sample has them "
            f"({unsuited[0].record.key}: {unsuited[0].failure.message if unsuited[0].failure else ''}); use other "
            "weights, or images of as many channels"
        )


def warnings(job: Job, weights: Weights, manifest: Manifest, *, threads: int) -> list[str]:
    """What is likely to go wrong, each with its likely cause. Segments a sample on this machine.

    Raises:
        JobError: The device is not there or cannot do what the job asks.
    """
    found = [*_of_scale(job, weights), *_of_values(mask_values(job, weights))]
    if not manifest.images:
        return found
    examples = sample(job, weights.model.n_channels, manifest.sample(IMAGES))
    found += [*_of_files(examples), *_of_colours(job, weights, manifest)]
    segmenter = segmenter_of(job, weights, threads=threads)
    seen = [example.pixels for example in examples if example.pixels is not None]
    statistics = [segmenter.segment(pixels[None])[1] for pixels in seen]
    return [*found, *_of_masks(job, weights, statistics)] if seen else found


def _of_scale(job: Job, weights: Weights) -> Iterator[str]:
    trained = weights.metadata.get("scale")
    if trained is not None and float(trained) != job.inference.scale:
        yield (
            f"the weights were trained at scale {float(trained):g} and inference.scale is {job.inference.scale:g}; "
            f"objects appear {job.inference.scale / float(trained):g} times as large as in training"
        )
    elif trained is None and weights.metadata.get("origin") == CHECKPOINT:
        yield (
            "the weights do not say at what scale they were trained, and Pytorch-UNet's default for training and "
            f"prediction is 0.5; inference.scale is {job.inference.scale:g} (state it once: maskfleet convert --scale)"
        )


def _of_values(values: Sequence[Any]) -> Iterator[str]:
    samples = np.asarray(values, np.int64).reshape(len(values), -1)
    if int(np.ptp(samples, axis=0).max()) < _DARK:
        yield (
            f"masks show their classes as {', '.join(str(value) for value in values)}, which look alike, often all "
            "black; set masks.values, such as [0, 255], if people are to see them"
        )


def _of_files(examples: Sequence[Example]) -> Iterator[str]:
    failures = [(example.record.key, example.failure) for example in examples if example.failure is not None]
    if failures:
        key, failure = failures[0]
        yield f"{len(failures)} of {len(examples)} images of a sample would fail; the first is {key}: {failure.message}"


def _of_colours(job: Job, weights: Weights, manifest: Manifest) -> Iterator[str]:
    if weights.model.n_channels != 1:
        return
    examples = sample(job, 3, manifest.sample(IMAGES))
    images = [example.pixels.astype(np.int16) for example in examples if example.pixels is not None]
    coloured = sum(float(np.ptp(pixels, axis=2).mean()) > _COLOUR for pixels in images)
    if coloured:
        yield (
            f"the weights take one channel and {coloured} of {len(images)} images have colours, of which the network "
            "sees the luma alone; were they trained on such?"
        )


def _of_masks(job: Job, weights: Weights, statistics: Sequence[Statistics]) -> Iterator[str]:
    if lost := sum(not each.finite[0] for each in statistics):
        yield f"the network gives values that are not finite on {lost} of {len(statistics)} images; use other weights"
    pixels = np.sum([each.class_pixels[0] for each in statistics], axis=0)
    share = pixels / pixels.sum()
    if share.max() < _ALMOST:
        return
    only = int(share.argmax())
    trained = weights.normalize
    causes = [
        "images unlike those of the training",
        *(["a class order other than thought"] if only else []),
        *([] if trained else ["training with mean and standard deviation (maskfleet convert --mean --std)"]),
        *(["inference.threshold"] if job.inference.threshold is not None or weights.model.n_classes == 1 else []),
        "inference.scale",
    ]
    yield (
        f"{share[only]:.2%} of a sample's pixels are {'background' if only == 0 else f'class {only}'} (mean confidence "
        f"{np.mean([each.mean_confidence[0] for each in statistics]):.2f}); likely causes: {', '.join(causes)}"
    )
