"""Findings: likely problems with masks, and their likely causes. From the job, its weights, and numbers about images.

`plan` finds them in a sample before a run, `run` in the statistics of all its images. Pure: reads nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.masks.formats import mask_format
from maskfleet.unet.checkpoints.pytorch_unet import ORIGIN
from maskfleet.unet.inference.statistics import Statistics

_SIMILAR = 32
"""Largest difference between mask values that look alike."""

_SINGLE_CLASS = 0.999
"""Share of one class from which on masks are suspicious."""

_CHANCE = 0.9
"""Share of the largest possible entropy from which on a network is guessing. Trained networks stay below 0.3, untrained
ones above 0.96."""

_BLANK = 1 / 255
"""Standard deviation of the network's input below which an image is blank to it: one grey level."""

_OTHER_ORDER = "a different order of classes"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A likely problem with the masks of a run.

    Attributes:
        check: Name of the check: scale, mask_values, single_class, uncertain, blank or colours.
        message: One sentence for people, with likely causes or the remedy.
        class_: Class concerned, or None.
        share: Share of the pixels or images concerned, or of the largest possible entropy (uncertain), 0 … 1; or None.
        images: Number of images concerned.
    """

    check: str
    message: str
    class_: int | None = None
    share: float | None = None
    images: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the finding as `run.json` stores it."""
        share = None if self.share is None else round(self.share, 6)
        return {
            "check": self.check, "class": self.class_, "share": share, "images": self.images, "message": self.message,
        }  # fmt: skip


@dataclass
class MaskSums:
    """Numbers about masks, summed over images. Their size does not grow with the number of images.

    Attributes:
        images: Number of images with a mask.
        blank: Number of images that are blank to the network.
        class_pixels: Pixels of each class, (K,).
        confidence: Mean confidence of each image, summed.
        entropy: Mean entropy of each image in nats, summed.
    """

    images: int = 0
    blank: int = 0
    class_pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence: float = 0.0
    entropy: float = 0.0

    def add(
        self, *, class_pixels: NDArray[Any], confidence: NDArray[Any], entropy: NDArray[Any], input_std: NDArray[Any]
    ) -> None:
        """Add B images: columns of their statistics, (B, K), (B,), (B,) and (B, C)."""
        self.images += len(class_pixels)
        self.blank += int(np.count_nonzero(input_std.max(axis=1, initial=0.0) < _BLANK))
        pixels = class_pixels.sum(axis=0, dtype=np.int64)
        self.class_pixels = pixels if not len(self.class_pixels) else self.class_pixels + pixels
        self.confidence += float(confidence.sum(dtype=np.float64))
        self.entropy += float(entropy.sum(dtype=np.float64))

    @classmethod
    def of(cls, found: Sequence[Statistics]) -> Self:
        """Return the sums over some batches. Images with logits that are not finite are left out."""
        sums = cls()
        for each in found:
            kept = each.finite
            sums.add(
                class_pixels=each.class_pixels[kept],
                confidence=each.mean_confidence[kept],
                entropy=each.mean_entropy[kept],
                input_std=each.input_std[kept],
            )
        return sums


def of_scale(job: Job, metadata: Mapping[str, str], *, images: int = 0) -> Iterator[Finding]:
    """Yield what is wrong with `inference.scale`.

    Args:
        job: The job.
        metadata: Metadata of the weights.
        images: Number of images.
    """
    scale, trained = job.inference.scale, _trained_scale(metadata)
    message = None
    if trained is not None and trained != scale:
        message = (
            f"the weights were trained at scale {trained:g}, but inference.scale is {scale:g}: "
            f"objects appear {scale / trained:g} times as large as in training"
        )
    elif trained is None and metadata.get("origin") == ORIGIN:
        message = (
            "the weights do not record their training scale; Pytorch-UNet trains and predicts at 0.5 by default, but "
            f"inference.scale is {scale:g} (record the scale with maskfleet convert --scale)"
        )
    if message:
        yield Finding(check="scale", message=message, images=images)


def _trained_scale(metadata: Mapping[str, str]) -> float | None:
    """Return the scale in training, as `convert` or `finetune` recorded it; None if neither did."""
    try:
        if "scale" in metadata:
            return float(metadata["scale"])
        return float(json.loads(metadata["recipe"])["scale"])
    except (KeyError, TypeError, ValueError):
        return None


def of_colours(coloured: int, images: int) -> Iterator[Finding]:
    """Yield that a network of one channel gets colour images.

    Args:
        coloured: Number of colour images in a sample.
        images: Number of images in the sample.
    """
    if coloured:
        yield Finding(
            check="colours",
            message=(
                f"the weights take one channel, but {coloured} of {images} sampled image{'' if images == 1 else 's'} "
                f"{'has' if coloured == 1 else 'have'} colours; the network sees only their luminance, so check "
                "that it was trained on such images"
            ),
            share=coloured / images,
            images=coloured,
        )


def of_values(job: Job, values: Sequence[Any], *, images: int = 0) -> Iterator[Finding]:
    """Yield what is wrong with the pixel values of the classes.

    Args:
        job: The job.
        values: Pixel value of each class: integers, or RGB triples.
        images: Number of images.
    """
    format_ = mask_format(job.masks.format)
    samples = np.asarray(values, np.int64).reshape(len(values), -1)
    if format_.archive is not None and int(np.ptp(samples, axis=0).max()) < _SIMILAR:
        yield Finding(
            check="mask_values",
            message=(
                f"the mask values {', '.join(str(value) for value in values)} look alike, usually all black; to make "
                "masks visible, set masks.values, such as [0, 255]"
            ),
            images=images,
        )


def of_masks(
    job: Job, sums: MaskSums, *, normalized: bool, one_logit: bool, sampled: bool = False
) -> Iterator[Finding]:  # fmt: skip
    """Yield what the masks themselves show.

    Args:
        job: The job.
        sums: Numbers about the masks.
        normalized: Whether the weights state a mean and standard deviation.
        one_logit: Whether the network has one logit per pixel, so that a threshold always decides.
        sampled: Whether the masks are a sample.
    """
    if not sums.images:
        return
    which = "sampled " if sampled else ""
    images = f"{sums.images} {which}image{'' if sums.images == 1 else 's'}"
    if 2 * sums.blank >= sums.images:
        yield Finding(
            check="blank",
            message=(
                f"{sums.blank} of {images} {'is' if sums.blank == 1 else 'are'} blank to the network: their pixels "
                "differ by less than a grey level; likely causes: empty images, or a bit depth stored wrongly"
            ),
            share=sums.blank / sums.images,
            images=sums.blank,
        )
    classes = len(sums.class_pixels)
    confidence = sums.confidence / sums.images
    chance = sums.entropy / sums.images / math.log(classes)
    if chance > _CHANCE:
        yield Finding(
            check="uncertain",
            message=(
                f"the network is hardly surer than chance in {images} (mean confidence {confidence:.2f} with {classes} "
                "classes); likely causes: untrained weights, or images unlike the training images"
            ),
            share=chance,
            images=sums.images,
        )
    thresholded = one_logit or job.inference.threshold is not None
    causes = [
        "images unlike the training images",
        _OTHER_ORDER,
        *([] if normalized else ["training with mean and standard deviation (maskfleet convert --mean --std)"]),
        *(["inference.threshold"] if thresholded else []),
        "inference.scale",
    ]
    guess = ["a network that guesses"]
    yield from _single_class(sums, confidence, which=which, causes=guess if chance > _CHANCE else causes)


def _single_class(sums: MaskSums, confidence: float, *, which: str, causes: Sequence[str]) -> Iterator[Finding]:
    share = sums.class_pixels / sums.class_pixels.sum()
    if share.max() < _SINGLE_CLASS:
        return
    only = int(share.argmax())
    likely = [cause for cause in causes if only or cause != _OTHER_ORDER]
    name = "background" if only == 0 else f"class {only}"
    yield Finding(
        check="single_class",
        message=(
            f"{share[only]:.2%} of the {which}pixels are {name} (mean confidence {confidence:.2f}); likely "
            f"{'cause' if len(likely) == 1 else 'causes'}: {', '.join(likely)}"
        ),
        class_=only,
        share=float(share[only]),
        images=sums.images,
    )
