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

_FACTORS = 64


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
        """Count a part of some images, on the host, which lies at (`top`, `left`) px of each."""
        rows, columns, *sums = (column.numpy() for column in (part.rows, part.columns, part.confidence, part.entropy))
        pixels, boxes = _extents(rows, columns)
        if top or left:
            boxes = boxes + np.array([left, top, left, top], np.int32)
        self._add_mask(images, pixels, boxes, *(values.sum(axis=1, dtype=np.float64) for values in sums))

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

    def add_input(self, images: slice, pixels: int, total_BC: Tensor, squares_BC: Tensor) -> None:
        """Count a part of the input of some images: so many pixels of each, and their `moments`."""
        self.input_pixels[images] += pixels
        self.input_sum[images] += total_BC.numpy()
        self.input_square_sum[images] += squares_BC.numpy()

    def replace_decision(self, image: int, other: Self) -> None:
        """Take what the only row of `other` says of the mask."""
        for name in ("class_pixels", "class_bbox", "confidence_sum", "entropy_sum"):
            getattr(self, name)[image] = getattr(other, name)[0]


class Decision(NamedTuple):
    """A batch decided, on the device; counts and sums are of rows and columns, and the host adds them up.

    Attributes:
        labels: The class of each pixel, (B, H, W), uint8.
        margin: The least difference between a pixel's best and second best logit, (B,).
        rows: Pixels of each class but the first in every row, (B, K - 1, H), fp32; exact, as none reaches 2^24.
        columns: Likewise in every column, (B, K - 1, W).
        confidence: Probability of the chosen class, summed over each row, (B, H), fp32. One thread sums a row, so
            that the order of the terms depends on nothing.
        entropy: Entropy of the class probabilities in nats, in parts that add up, (B, N); likewise.
    """

    labels: Tensor
    margin: Tensor
    rows: Tensor
    columns: Tensor
    confidence: Tensor
    entropy: Tensor


class Settled(NamedTuple):
    """Labels of some pixels of one image that are known already.

    Attributes:
        rows: Of each pixel, (n,).
        columns: Likewise.
        labels: Its class, (n,), uint8.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor


def decide(logits_BKHW: Tensor, thresholds: Sequence[float] | None = None, settled: Settled | None = None) -> Decision:
    """The class of each pixel, and how sure it is.

    Args:
        logits_BKHW: fp32. One logit per pixel is a foreground's, for a sigmoid.
        thresholds: Of each class after the first (and of the only one), the probability above which a pixel
            may be of it. Of those that may, the likeliest wins; where none may, class 0. None for 0.5 with
            one logit, and with several for the largest logit, the first of equals.
        settled: What is known already, where it is a batch of one.
    """
    decided = _decide_two if logits_BKHW.shape[1] <= 2 else _decide_several
    if logits_BKHW.device.type != "cpu":
        return decided(logits_BKHW, thresholds, settled)
    # Image by image: a pass over one stays in a core's cache, and torch rounds what lies at the end of a vector or of a
    # thread's share otherwise than the rest, so that a batch would show in the last bits.
    parts = [decided(part, thresholds, settled) for part in torch.split(logits_BKHW, 1)]
    return parts[0] if len(parts) == 1 else Decision(*(torch.cat(column) for column in zip(*parts, strict=True)))


def margins(logits_BKHW: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
    """How far, in logits, each pixel is from another label, (B, H, W). `Decision.margin` is the least of an image's."""
    if logits_BKHW.shape[1] > 2:
        return _margins_of_several(logits_BKHW, logits_BKHW.log_softmax(dim=1).exp(), thresholds)
    single = logits_BKHW.shape[1] == 1
    logit_BHW = logits_BKHW[:, 0] if single else logits_BKHW[:, 1] - logits_BKHW[:, 0]
    threshold = thresholds[0] if thresholds is not None else 0.5
    return (logit_BHW - _logit(threshold)).abs_()


def _decide_two(logits_BKHW: Tensor, thresholds: Sequence[float] | None, settled: Settled | None) -> Decision:
    # torch.argmax over two classes costs far more than the comparison; equals go to class 0 in both.
    single = logits_BKHW.shape[1] == 1
    logit_BHW = logits_BKHW[:, 0] if single else logits_BKHW[:, 1] - logits_BKHW[:, 0]
    if thresholds is None and not single:
        labels_BHW = _with(settled, _above(logit_BHW, 0.0))
        distance_BHW = logit_BHW.abs_()
        margin_B = distance_BHW.amin(dim=(1, 2))
        # Probability of the less likely class.
        other_BHW = distance_BHW.neg().sigmoid_()
        confidence_BH = distance_BHW.shape[2] - other_BHW.sum(dim=2)
    else:  # the class chosen need not be the likelier one
        threshold = thresholds[0] if thresholds is not None else 0.5
        probability_BHW = logit_BHW.sigmoid()
        labels_BHW = _with(settled, _above(probability_BHW, threshold))
        margin_B = (logit_BHW - _logit(threshold)).abs_().amin(dim=(1, 2))
        confidence_BH = torch.where(labels_BHW > 0, probability_BHW, 1 - probability_BHW).sum(dim=2)
        distance_BHW = logit_BHW.abs()
        other_BHW = distance_BHW.neg().sigmoid_()
    occupied = _occupied([labels_BHW])
    entropy_BN = _binary_entropy(distance_BHW, other_BHW)
    return Decision(labels_BHW, margin_B, *occupied, confidence_BH, entropy_BN)


def _decide_several(logits_BKHW: Tensor, thresholds: Sequence[float] | None, settled: Settled | None) -> Decision:
    classes = logits_BKHW.shape[1]
    log_probability = logits_BKHW.log_softmax(dim=1)
    probability = log_probability.exp()
    entropy_BHW = -(probability * log_probability).sum(dim=1)
    if thresholds is None:
        labels_BHW = _with(settled, logits_BKHW.argmax(dim=1))
        confidence_BHW = probability.amax(dim=1)
    else:
        limits = _column(thresholds, logits_BKHW.device, torch.float32)
        may_BKHW = probability[:, 1:] > limits
        candidates_BKHW = logits_BKHW[:, 1:].masked_fill(~may_BKHW, -torch.inf)
        labels_BHW = _with(settled, torch.where(may_BKHW.any(dim=1), candidates_BKHW.argmax(dim=1) + 1, 0))
        confidence_BHW = probability.gather(1, labels_BHW.unsqueeze(1))[:, 0]
    margin_B = _margins_of_several(logits_BKHW, probability, thresholds).amin(dim=(1, 2))
    labels_BHW = labels_BHW.to(torch.uint8)
    occupied = _occupied([labels_BHW == index for index in range(1, classes)])
    sums = confidence_BHW.sum(dim=2), entropy_BHW.sum(dim=2)
    return Decision(labels_BHW, margin_B, *occupied, *sums)


def _margins_of_several(logits_BKHW: Tensor, probability: Tensor, thresholds: Sequence[float] | None) -> Tensor:
    first = 0 if thresholds is None else 1
    best_B2HW = logits_BKHW[:, first:].topk(2, dim=1).values
    from_rival = best_B2HW[:, 0] - best_B2HW[:, 1]
    if thresholds is None:
        return from_rival
    # How far, as logits, from a limit and from a rival.
    limits = _column(thresholds, logits_BKHW.device, torch.float64)
    from_limit = (torch.logit(probability[:, 1:].double()) - torch.logit(limits)).abs().amin(dim=1)
    return torch.minimum(from_limit.float(), from_rival)


def _column(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(K, 1, 1). Filled on the device: a copy from the host cannot be part of a graph."""
    return torch.stack([torch.full((1, 1), value, dtype=dtype, device=device) for value in values])


def _with(settled: Settled | None, labels_BHW: Tensor) -> Tensor:
    if settled is not None:
        labels_BHW[0, settled.rows, settled.columns] = settled.labels.to(labels_BHW.dtype)
    return labels_BHW


def _above(value_BHW: Tensor, limit: float) -> Tensor:
    """1 where a value exceeds a limit, else 0; uint8."""
    if value_BHW.device.type == "cpu":  # torch's comparison is not vectorised there, NumPy's is
        return torch.from_numpy(np.greater(value_BHW.numpy(), np.float32(limit)).view(np.uint8))
    return (value_BHW > limit).to(torch.uint8)


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
        return value.sum(dim=2).reshape(len(value), -1, channels).sum(dim=1, dtype=torch.float64)

    # Image by image on a CPU, where the squares then stay in its cache.
    parts = torch.split(runs, 1 if runs.device.type == "cpu" else max(1, batch))
    return added(runs), torch.cat([added(part * part) for part in parts])


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))


def _binary_entropy(distance_BHW: Tensor, other_BHW: Tensor) -> Tensor:
    """Entropy in nats of two classes, in parts that add up, (B, N).

    Args:
        distance_BHW: How far the two logits are apart, d. Overwritten: less memory is more of it in the cache.
        other_BHW: Probability of the less likely class, q = 1 / (1 + exp(d)). Overwritten.

    A pixel's is q d - log(1 - q), as log(q / (1 - q)) = -d. Logarithms are dear, so that of a product is taken:
    64 factors of at least a half do not underflow.
    """
    linear_BH = distance_BHW.mul_(other_BHW).sum(dim=2)
    certain_BN = other_BHW.neg_().add_(1).flatten(1)
    whole = certain_BN.shape[1] // _FACTORS * _FACTORS
    factors_BFN = certain_BN[:, :whole].reshape(len(certain_BN), _FACTORS, -1)
    logarithms = factors_BFN.prod(dim=1).log_(), certain_BN[:, whole:].log()
    return torch.cat((linear_BH, *(-part for part in logarithms)), dim=1)


def _occupied(masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pixels of each mask in every row (B, K - 1, H) and column (B, K - 1, W).

    By products with ones: a fraction of the time of comparisons and integer sums.

    Args:
        masks: (B, H, W), ones and zeros or booleans.
    """
    _, height, width = masks[0].shape
    ones_H, ones_W = (torch.ones(side, device=masks[0].device) for side in (height, width))
    floats = [mask_BHW.float() for mask_BHW in masks]
    rows = [mask_BHW @ ones_W for mask_BHW in floats]
    columns = [ones_H @ mask_BHW for mask_BHW in floats]
    return torch.stack(rows, dim=1), torch.stack(columns, dim=1)


def _extents(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Pixels (B, K) and bounding boxes (B, K, 4) of every class, from `Decision.rows` and `Decision.columns`.

    Class 0 has what no other has; an absent class has the box 0, 0, 0, 0.
    """
    height, width = rows.shape[2], columns.shape[2]
    rows, columns = (
        np.concatenate((across - counts.sum(axis=1, keepdims=True), counts), axis=1)
        for counts, across in ((rows, width), (columns, height))
    )
    pixels = rows.sum(axis=2, dtype=np.float64).astype(np.int64)
    (top, bottom), (left, right) = _span(rows > 0), _span(columns > 0)
    boxes = np.stack((left, top, right, bottom), axis=-1) * (pixels > 0)[..., None]
    return pixels, boxes.astype(np.int32)


def _span(occupied: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return occupied.argmax(axis=2), occupied.shape[2] - occupied[..., ::-1].argmax(axis=2)
