"""From logits to labels, and what is known of each image: areas, boxes, certainty, the input's moments.

Everything here adds up over parts of an image, so that an image may be decided tile by tile, and no
sum depends on batch or threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Statistics:
    """What is known of each image of a batch; B images, K classes (two for a one-logit network), C channels.

    Attributes:
        class_pixels: Pixels of each class, (B, K), int64.
        class_bbox: Left, top, right, bottom of each class in pixels, right and bottom exclusive,
            zeros where the class is absent; (B, K, 4), int32.
        confidence_sum: Probability of the chosen class, summed over the pixels; (B,), float64.
        entropy_sum: Entropy of the class probabilities in nats, likewise. Not finite where a logit is not.
        input_pixels: Pixels of the input, (B,), int64.
        input_sum: Sum of each channel of the input, 0 … 255; (B, C), float64, exact.
        input_square_sum: Sum of its squares; (B, C), float64, exact.
    """

    class_pixels: NDArray[np.int64]
    class_bbox: NDArray[np.int32]
    confidence_sum: NDArray[np.float64]
    entropy_sum: NDArray[np.float64]
    input_pixels: NDArray[np.int64]
    input_sum: NDArray[np.float64]
    input_square_sum: NDArray[np.float64]

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of the mask, (B,)."""
        return self.class_pixels.sum(axis=1)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all logits were finite, (B,). Where not, the mask means nothing."""
        return np.isfinite(self.entropy_sum)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Probability of the chosen class, mean over the pixels; (B,)."""
        return self.confidence_sum / self.pixels

    @property
    def mean_entropy(self) -> NDArray[np.float64]:
        """Entropy in nats, mean over the pixels; (B,)."""
        return self.entropy_sum / self.pixels

    @property
    def input_mean(self) -> NDArray[np.float64]:
        """Mean of each channel in [0, 1], (B, C)."""
        return self.input_sum / self.input_pixels[:, None] / 255

    @property
    def input_std(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, likewise."""
        mean = self.input_sum / self.input_pixels[:, None]
        square = self.input_square_sum / self.input_pixels[:, None]
        return np.sqrt(np.maximum(square - mean * mean, 0)) / 255

    @classmethod
    def none(cls, images: int, classes: int, channels: int) -> Self:
        """Of images of which nothing has been seen yet."""
        return cls(
            class_pixels=np.zeros((images, classes), np.int64),
            class_bbox=np.zeros((images, classes, 4), np.int32),
            confidence_sum=np.zeros(images),
            entropy_sum=np.zeros(images),
            input_pixels=np.zeros(images, np.int64),
            input_sum=np.zeros((images, channels)),
            input_square_sum=np.zeros((images, channels)),
        )

    def add_decision(self, images: slice, part: "Decision", top: int = 0, left: int = 0) -> None:
        """Count a part of some images, which lies at (`top`, `left`) px of each."""
        boxes = part.class_bbox.cpu().numpy()
        if top or left:
            boxes = boxes + np.array([left, top, left, top], np.int32)
        pixels, *sums = (column.cpu().numpy() for column in (part.class_pixels, part.confidence_sum, part.entropy_sum))
        self._add_mask(images, pixels, boxes, *sums)

    def add(self, other: Self) -> None:
        """Count other parts of the same images, in the same px."""
        self._add_mask(slice(None), other.class_pixels, other.class_bbox, other.confidence_sum, other.entropy_sum)
        for name in ("input_pixels", "input_sum", "input_square_sum"):
            getattr(self, name)[:] += getattr(other, name)

    def _add_mask(
        self, images: slice, pixels: NDArray[Any], boxes: NDArray[Any], confidence: NDArray[Any], entropy: NDArray[Any]
    ) -> None:
        before, known = self.class_bbox[images], self.class_pixels[images] > 0
        both = np.concatenate((np.minimum(before, boxes)[..., :2], np.maximum(before, boxes)[..., 2:]), axis=-1)
        seen = np.where(known[..., None], both, boxes)
        self.class_bbox[images] = np.where((pixels > 0)[..., None], seen, before)
        self.class_pixels[images] += pixels
        self.confidence_sum[images] += confidence
        self.entropy_sum[images] += entropy

    def add_input(self, images: slice, pixels_BHWC: Tensor) -> None:
        """Count a part of the input of some images, 0 … 255."""
        total, squares = moments(pixels_BHWC)
        self.input_pixels[images] += pixels_BHWC.shape[1] * pixels_BHWC.shape[2]
        self.input_sum[images] += total.cpu().numpy()
        self.input_square_sum[images] += squares.cpu().numpy()

    def replace_decision(self, image: int, other: Self) -> None:
        """Take what the only row of `other` says of the mask."""
        for name in ("class_pixels", "class_bbox", "confidence_sum", "entropy_sum"):
            getattr(self, name)[image] = getattr(other, name)[0]


class Decision(NamedTuple):
    """A batch decided, on the device.

    Attributes:
        labels: The class of each pixel, (B, H, W), uint8.
        margin: The least difference between a pixel's best and second best logit, (B,).
        class_pixels: See `Statistics`; likewise the others.
    """

    labels: Tensor
    margin: Tensor
    class_pixels: Tensor
    class_bbox: Tensor
    confidence_sum: Tensor
    entropy_sum: Tensor


def decide(logits_BKHW: Tensor, thresholds: Sequence[float] | None = None) -> Decision:
    """The class of each pixel, and how sure it is.

    Args:
        logits_BKHW: fp32. One logit per pixel is a foreground's, for a sigmoid.
        thresholds: Of each class after the first (and of the only one), the probability above which a pixel
            may be of it. Of those that may, the likeliest wins; where none may, class 0. None for 0.5 with
            one logit, and with several for the largest logit, the first of equals.
    """
    if logits_BKHW.shape[1] <= 2:
        return _decide_two(logits_BKHW, thresholds)
    return _decide_several(logits_BKHW, thresholds)


def _decide_two(logits_BKHW: Tensor, thresholds: Sequence[float] | None) -> Decision:
    # torch.argmax over two classes costs far more than the comparison; equals go to class 0 in both.
    single = logits_BKHW.shape[1] == 1
    logit_BHW = logits_BKHW[:, 0] if single else logits_BKHW[:, 1] - logits_BKHW[:, 0]
    foreground_BHW = torch.empty_like(logit_BHW)
    distance_BHW = logit_BHW.abs()
    # Written as 0.0 and 1.0 at once: a comparison into bool is not vectorised on a CPU.
    if single or thresholds is not None:
        threshold = thresholds[0] if thresholds is not None else 0.5
        torch.gt(logit_BHW.sigmoid(), threshold, out=foreground_BHW)
        margin_B = (logit_BHW - _logit(threshold)).abs_().amin(dim=(1, 2))
    else:
        torch.gt(logit_BHW, 0, out=foreground_BHW)
        margin_B = distance_BHW.amin(dim=(1, 2))
    confidence_BHW, entropy_BHW = _binary_certainty(distance_BHW)
    if thresholds is not None:  # the class chosen need not be the likelier one
        probability_BHW = logit_BHW.sigmoid()
        confidence_BHW = torch.where(foreground_BHW > 0, probability_BHW, 1 - probability_BHW)
    labels_BHW = foreground_BHW.to(torch.uint8)
    return Decision(labels_BHW, margin_B, *_extents([foreground_BHW]), _sum(confidence_BHW), _sum(entropy_BHW))


def _decide_several(logits_BKHW: Tensor, thresholds: Sequence[float] | None) -> Decision:
    classes = logits_BKHW.shape[1]
    log_probability = logits_BKHW.log_softmax(dim=1)
    probability = log_probability.exp()
    entropy_BHW = -(probability * log_probability).sum(dim=1)
    if thresholds is None:
        best_B2HW, index_B2HW = logits_BKHW.topk(2, dim=1)
        margin_B = (best_B2HW[:, 0] - best_B2HW[:, 1]).amin(dim=(1, 2))
        # Of equal logits topk takes any, argmax the first.
        labels_BHW = index_B2HW[:, 0] if bool((margin_B > 0).all()) else logits_BKHW.argmax(dim=1)
        confidence_BHW = probability.amax(dim=1)
    else:
        limits = torch.tensor(thresholds, device=logits_BKHW.device).view(-1, 1, 1)
        may_BKHW = probability[:, 1:] > limits
        candidates_BKHW = logits_BKHW[:, 1:].masked_fill(~may_BKHW, -torch.inf)
        labels_BHW = torch.where(may_BKHW.any(dim=1), candidates_BKHW.argmax(dim=1) + 1, 0)
        confidence_BHW = probability.gather(1, labels_BHW.unsqueeze(1))[:, 0]
        # How far, as logits, from a limit and from a rival.
        from_limit = (torch.logit(probability[:, 1:].double()) - torch.logit(limits.double())).abs().amin(dim=(1, 2, 3))
        best_B2HW = logits_BKHW[:, 1:].topk(2, dim=1).values
        margin_B = torch.minimum(from_limit.float(), (best_B2HW[:, 0] - best_B2HW[:, 1]).amin(dim=(1, 2)))
    labels_BHW = labels_BHW.to(torch.uint8)
    extents = _extents([(labels_BHW == index).float() for index in range(1, classes)])
    return Decision(labels_BHW, margin_B, *extents, _sum(confidence_BHW), _sum(entropy_BHW))


def moments(pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (B, C) of pixels 0 … 255 and of their squares, float64, exact in any order of summing.

    256 squares add up to less than 2^24, which fp32 holds exactly; so they are summed in runs of 256,
    many columns side by side, and the runs in float64.
    """
    batch, channels = pixels_BHWC.shape[0], pixels_BHWC.shape[3]
    columns = 16 * channels
    flat = pixels_BHWC.reshape(batch, -1)
    if rest := flat.shape[1] % (256 * columns):
        flat = F.pad(flat, (0, 256 * columns - rest))
    runs = flat.reshape(batch, -1, 256, columns)

    def added(value: Tensor) -> Tensor:
        return value.sum(dim=2).reshape(batch, -1, channels).sum(dim=1, dtype=torch.float64)

    return added(runs), added(runs * runs)


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))


def _binary_certainty(distance_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the likelier of two classes, and their entropy in nats, from how far the logits are apart.

    With e = exp(-d) they are 1 / (1 + e) and log(1 + e) + d e / (1 + e).
    """
    e = distance_BHW.neg().exp_()
    confidence = e + 1
    entropy = confidence.log()
    confidence.reciprocal_()
    return confidence, entropy.addcmul_(e.mul_(distance_BHW), confidence)


def _sum(value_BHW: Tensor) -> Tensor:
    """Sum over the pixels, float64.

    Rows are summed in fp32, one thread to a row, so that the order of the terms depends on nothing; a
    product with ones would be as fast, and differ in the last place with batch and threads.
    """
    return value_BHW.sum(dim=2).sum(dim=1, dtype=torch.float64)


def _extents(masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pixels (B, K) and bounding boxes (B, K, 4) of class 0, which has what no other has, and of each mask.

    From the pixels of each class in every row and column, counted by products with ones: a fraction
    of the time of comparisons and integer sums, and exact, as no count reaches 2^24.

    Args:
        masks: Of the classes from 1 on: (B, H, W), fp32, ones and zeros.
    """
    _, height, width = masks[0].shape
    ones_H, ones_W = (torch.ones(side, device=masks[0].device) for side in (height, width))
    rows_BKH = torch.stack([mask_BHW @ ones_W for mask_BHW in masks], dim=1)
    columns_BKW = torch.stack([ones_H @ mask_BHW for mask_BHW in masks], dim=1)
    rows_BKH = torch.cat((width - rows_BKH.sum(dim=1, keepdim=True), rows_BKH), dim=1)
    columns_BKW = torch.cat((height - columns_BKW.sum(dim=1, keepdim=True), columns_BKW), dim=1)
    pixels_BK = rows_BKH.sum(dim=2, dtype=torch.float64).to(torch.int64)
    top, bottom = _span(rows_BKH > 0)
    left, right = _span(columns_BKW > 0)
    box_BK4 = torch.stack((left, top, right, bottom), dim=-1)
    return pixels_BK, (box_BK4 * (pixels_BK > 0).unsqueeze(-1)).to(torch.int32)


def _span(occupied_BKN: Tensor) -> tuple[Tensor, Tensor]:
    occupied = occupied_BKN.to(torch.uint8)
    return occupied.argmax(dim=2), occupied.shape[2] - occupied.flip(2).argmax(dim=2)
