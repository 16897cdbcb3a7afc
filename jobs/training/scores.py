"""How well class maps fit their truth: Dice, IoU, precision and recall per class and image, and what can be said of it.

A score of a class that neither the class map nor the truth has is 1, and 0 where only one of them has it. Dice is then
Pytorch-UNet's validation score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import segmenter_of
from maskfleet.jobs.training.pairs import Pair
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.model import UNet
from maskfleet.unet.weights import Weights, WeightsError

RESAMPLES = 10_000
"""Of the bootstrap."""

_OTHERS = 8
"""Images whose truth a class map is compared with in place of its own, at most."""

_SEED = 0
_RESAMPLES_AT_ONCE = 1_000


class Interval(NamedTuple):
    """A mean over images, and where the mean of all such images lies with 95 % confidence.

    Attributes:
        mean: Of these images.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} … {self.high:.4f})"


@dataclass(frozen=True)
class Scores:
    """Of some images.

    Attributes:
        counts: Pixels of each image and class after the first that are of it in both, in the class map alone, and in
            the truth alone; (images, classes - 1, 3), int64.
    """

    counts: NDArray[np.int64]

    @property
    def dice(self) -> NDArray[np.float64]:
        """2 |A ∩ B| / (|A| + |B|), (images, classes - 1)."""
        both, found, missed = np.moveaxis(self.counts, 2, 0)
        return _share(2 * both, 2 * both + found + missed, found + missed + both == 0)

    @property
    def iou(self) -> NDArray[np.float64]:
        """|A ∩ B| / |A ∪ B|, likewise."""
        both, found, missed = np.moveaxis(self.counts, 2, 0)
        return _share(both, both + found + missed, found + missed + both == 0)

    @property
    def precision(self) -> NDArray[np.float64]:
        """|A ∩ B| / |A|, likewise."""
        both, found, missed = np.moveaxis(self.counts, 2, 0)
        return _share(both, both + found, found + missed + both == 0)

    @property
    def recall(self) -> NDArray[np.float64]:
        """|A ∩ B| / |B|, likewise."""
        both, found, missed = np.moveaxis(self.counts, 2, 0)
        return _share(both, both + missed, found + missed + both == 0)

    @property
    def of_images(self) -> NDArray[np.float64]:
        """Dice of each image, averaged over the classes after the first."""
        averages: NDArray[np.float64] = self.dice.mean(axis=1)
        return averages

    @property
    def mean(self) -> float:
        """Of the images' Dice: what training watches and the gate compares."""
        return float(self.of_images.mean())

    def of_class(self, number: int) -> dict[str, Interval]:
        """The four scores of a class, counted from the second."""
        return {name: interval(getattr(self, name)[:, number]) for name in ("dice", "iou", "precision", "recall")}


def scores_of(job: Job, weights: Weights, pairs: Sequence[Pair], *, threads: int) -> Scores:
    """Of each whole image, in fp32, as the job applies weights."""
    classes = max(2, weights.model.n_classes)
    maps = class_maps(job, weights, pairs, threads=threads)
    return Scores(np.stack([counts_of(found, pair.truth, classes) for found, pair in zip(maps, pairs, strict=True)]))


def class_maps(job: Job, weights: Weights, pairs: Sequence[Pair], *, threads: int) -> Iterator[NDArray[np.uint8]]:
    """Of each image, likewise."""
    try:
        together = unet_weights.together([weights], job.inference.tta) if isinstance(weights.model, UNet) else weights
    except WeightsError as error:
        raise JobError(str(error)) from error
    segmenter = segmenter_of(job, together, threads=threads, precision="fp32")
    return (segmenter.segment(pair.image[None])[0][0] for pair in pairs)


def fit_to_others(
    maps: Sequence[NDArray[np.uint8]], truths: Sequence[NDArray[np.uint8]], classes: int
) -> NDArray[np.float64]:
    """Mean Dice of each class map with the truths of some other images in place of its own, (images,).

    Of the same size where there are any: sizes stand for kinds of image. Else brought to its size.
    """
    means = []
    for number, found in enumerate(maps):
        others = [truth for place, truth in enumerate(truths) if place != number]
        others = [truth for truth in others if truth.shape == found.shape] or others
        # Those that follow it, so that all are used about as often.
        others = [others[(number + step) % len(others)] for step in range(min(len(others), _OTHERS))]
        counts = [counts_of(found, _resized(truth, found.shape), classes) for truth in others]
        means.append(Scores(np.stack(counts)).mean)
    return np.array(means)


def _resized(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    rows, columns = (np.arange(side) * own // side for side, own in zip(shape, truth.shape, strict=True))
    return truth[np.ix_(rows, columns)]


def counts_of(found: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """An image's row of `Scores.counts`."""
    pairs = np.bincount((truth.astype(np.int64) * classes + found).reshape(-1), minlength=classes * classes)
    table = pairs.reshape(classes, classes)
    both = np.diagonal(table)
    return np.stack([both, table.sum(axis=0) - both, table.sum(axis=1) - both], axis=1)[1:]


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Dice of all pixels that are not 0, whatever they show."""
    return float(Scores(counts_of((found > 0).astype(np.uint8), (truth > 0).astype(np.uint8), 2)[None]).mean)


def interval(values: NDArray[np.float64]) -> Interval:
    """The mean with its two-sided 95 % interval, by the percentile bootstrap over images."""
    low, high = np.quantile(_means(values), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def lower_bound(values: NDArray[np.float64]) -> float:
    """What the mean of all such images exceeds with 95 % confidence, likewise."""
    return float(np.quantile(_means(values), 0.05))


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    random = np.random.default_rng(_SEED)
    return np.concatenate(
        [
            values[random.integers(0, len(values), (_RESAMPLES_AT_ONCE, len(values)))].mean(axis=1)
            for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
    )


def _share(part: NDArray[np.int64], whole: NDArray[np.int64], absent: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(absent, 1.0, part / np.maximum(whole, 1))
