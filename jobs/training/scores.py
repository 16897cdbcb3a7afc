"""Dice, IoU, precision and recall of class maps per class and image, with bootstrap intervals of their means.

A class absent from both prediction and ground truth scores 1; a class present in only one of them scores 0. Dice then
equals the validation score of Pytorch-UNet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network.inference_config import segmenter_of
from maskfleet.jobs.training.pairs import Pair
from maskfleet.unet import weights as unet_weights
from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.network import WeightsError
from maskfleet.unet.weights import Weights

RESAMPLES = 10_000
"""Bootstrap resamples."""

KINDS = ("dice", "iou", "precision", "recall")
"""Names of the scores."""

_MAX_OTHERS = 8
"""Most other images each prediction is compared with."""

_SEED = 0
_RESAMPLES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Interval:
    """A sample mean with its 95 % confidence interval.

    Attributes:
        mean: Mean over the images.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} … {self.high:.4f})"


@dataclass(frozen=True)
class Scores:
    """Scores of predicted class maps. Class 0 is the background and is not scored.

    Attributes:
        counts: Pixel counts (images, classes - 1, 3), int64. The last axis is true positives, false positives and false
            negatives.
    """

    counts: NDArray[np.int64]

    @property
    def dice(self) -> NDArray[np.float64]:
        """2 |A ∩ B| / (|A| + |B|), (images, classes - 1)."""
        hits, extra, missed = np.moveaxis(self.counts, 2, 0)
        return _ratio(2 * hits, 2 * hits + extra + missed, self._absent)

    @property
    def iou(self) -> NDArray[np.float64]:
        """|A ∩ B| / |A ∪ B|, (images, classes - 1)."""
        hits, extra, missed = np.moveaxis(self.counts, 2, 0)
        return _ratio(hits, hits + extra + missed, self._absent)

    @property
    def precision(self) -> NDArray[np.float64]:
        """|A ∩ B| / |A| for the prediction A, (images, classes - 1)."""
        hits, extra, _ = np.moveaxis(self.counts, 2, 0)
        return _ratio(hits, hits + extra, self._absent)

    @property
    def recall(self) -> NDArray[np.float64]:
        """|A ∩ B| / |B| for the ground truth B, (images, classes - 1)."""
        hits, _, missed = np.moveaxis(self.counts, 2, 0)
        return _ratio(hits, hits + missed, self._absent)

    @property
    def _absent(self) -> NDArray[np.bool_]:
        absent: NDArray[np.bool_] = self.counts.sum(axis=2) == 0
        return absent

    @property
    def image_dice(self) -> NDArray[np.float64]:
        """Dice of each image, averaged over its classes, (images,)."""
        averages: NDArray[np.float64] = self.dice.mean(axis=1)
        return averages

    @property
    def mean(self) -> float:
        """Mean of `image_dice`: the validation score of a training."""
        return float(self.image_dice.mean())

    def intervals(self, index: int) -> dict[str, Interval]:
        """Return the interval of each of `KINDS` for class `index + 1`."""
        return {kind: interval(getattr(self, kind)[:, index]) for kind in KINDS}


def scores_of(job: Job, weights: Weights, pairs: Sequence[Pair], *, threads: int) -> Scores:
    """Score weights on whole images, applied in fp32 with the inference settings of the job."""
    classes = max(2, weights.model.n_classes)
    maps = class_maps(job, weights, pairs, threads=threads)
    return Scores(np.stack([counts_of(found, pair.truth, classes) for found, pair in zip(maps, pairs, strict=True)]))


def class_maps(job: Job, weights: Weights, pairs: Sequence[Pair], *, threads: int) -> Iterator[NDArray[np.uint8]]:
    """Return the predicted class map of each image, (H, W), uint8, in fp32 with the job's inference settings."""
    try:
        together = (
            weights if isinstance(weights.model, Ensemble) else unet_weights.together([weights], job.inference.tta)
        )
    except WeightsError as error:
        raise JobError(str(error)) from error
    segmenter = segmenter_of(job, together, threads=threads, precision="fp32")
    return (segmenter.segment(pair.image[None])[0][0] for pair in pairs)


def dice_with_other_truths(
    maps: Sequence[NDArray[np.uint8]], truths: Sequence[NDArray[np.uint8]], classes: int
) -> NDArray[np.float64]:
    """Return the mean Dice of each prediction with the ground truth of other images, (images,).

    The other images have the same size if there are any, since images of one size tend to be of one kind. Otherwise
    their ground truth is resized.

    Args:
        maps: Predicted class maps, (H, W), uint8.
        truths: Ground truth of the same images.
        classes: Number of classes.
    """
    means = []
    for number, found in enumerate(maps):
        others = [truth for place, truth in enumerate(truths) if place != number]
        others = [truth for truth in others if truth.shape == found.shape] or others
        # Successors, so that every ground truth is used about equally often.
        others = [others[(number + step) % len(others)] for step in range(min(len(others), _MAX_OTHERS))]
        counts = [counts_of(found, _resized(truth, found.shape), classes) for truth in others]
        means.append(Scores(np.stack(counts)).mean)
    return np.array(means)


def _resized(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    rows, columns = (np.arange(side) * own // side for side, own in zip(shape, truth.shape, strict=True))
    return truth[np.ix_(rows, columns)]


def counts_of(found: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return one image's row of `Scores.counts`, (classes - 1, 3).

    Args:
        found: Predicted class map, (H, W).
        truth: Ground truth, (H, W). Pixels of another class than these are left out.
        classes: Number of classes.
    """
    if (left_out := truth >= classes).any():
        found, truth = found[~left_out], truth[~left_out]
    pairs = np.bincount((truth.astype(np.int64) * classes + found).reshape(-1), minlength=classes * classes)
    confusion = pairs.reshape(classes, classes)
    hits = np.diagonal(confusion)
    return np.stack([hits, confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits], axis=1)[1:]


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Return the Dice of all non-zero pixels, whatever their value."""
    return float(Scores(counts_of((found > 0).astype(np.uint8), (truth > 0).astype(np.uint8), 2)[None]).mean)


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the mean with its two-sided 95 % percentile bootstrap interval over images."""
    low, high = np.quantile(_resampled_means(values), [0.025, 0.975])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def lower_bound(values: NDArray[np.float64]) -> float:
    """Return the lower end of the mean's one-sided 95 % percentile bootstrap interval over images."""
    return float(np.quantile(_resampled_means(values), 0.05))


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    random = np.random.default_rng(_SEED)
    return np.concatenate(
        [
            values[random.integers(0, len(values), (_RESAMPLES_AT_ONCE, len(values)))].mean(axis=1)
            for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
    )


def _ratio(part: NDArray[np.int64], total: NDArray[np.int64], absent: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(absent, 1.0, part / np.maximum(total, 1))
