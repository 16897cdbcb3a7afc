"""From logits to labels and sums, on the device: areas, certainty, and the moments of the input.

All sums add up over parts of an image, so an image may be decided tile by tile, and none depends on batch or threads.
`unet.inference.statistics` adds them up on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskfleet.unet.pixels.batch import WHITE

_FACTORS = 64
"""Probabilities of at least a half whose product does not underflow."""


class Decision(NamedTuple):
    """The decision about a batch, on the device. Its sums cover rows and columns; the host adds them up.

    Attributes:
        labels: Class of each pixel, (B, H, W), uint8.
        margin: Smallest margin of a pixel in each image, (B,); see `margins`.
        rows: Pixels of each class but the first in every row, (B, K - 1, H), fp32; exact, since none reaches 2^24.
        columns: Pixels of each class but the first in every column, (B, K - 1, W), likewise.
        confidence: Probability of the chosen class, summed over each row, (B, H), fp32. One thread sums a row, so
            the order of the terms is fixed.
        entropy: Partial sums of the entropy of the class probabilities in nats, (B, N), fp32, likewise.
    """

    labels: Tensor
    margin: Tensor
    rows: Tensor
    columns: Tensor
    confidence: Tensor
    entropy: Tensor


class Settled(NamedTuple):
    """Known labels of some pixels of one image.

    Attributes:
        rows: Row of each pixel, (n,).
        columns: Column of each pixel, (n,).
        labels: Class of each pixel, (n,), uint8.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor


def decide(logits_BKHW: Tensor, thresholds: Sequence[float] | None = None, settled: Settled | None = None) -> Decision:
    """Decide the class of each pixel, and sum up its certainty.

    Args:
        logits_BKHW: Logits, fp32. A single one per pixel is a foreground logit for a sigmoid.
        thresholds: Probability above which a pixel may be of a class, for each class after the first (and for the
            only one). The likeliest candidate wins; a pixel without candidates is class 0. None means 0.5 with one
            logit, and the largest logit with several, the first of equals.
        settled: Labels already known in a batch of one.
    """
    decided = _decide_two if logits_BKHW.shape[1] <= 2 else _decide_several
    if logits_BKHW.device.type != "cpu":
        return decided(logits_BKHW, thresholds, settled)
    # Image by image: a pass over one stays in a core's cache. Torch also rounds the end of a vector or of a thread's
    # share differently, so that a batch would show in the last bits.
    parts = [decided(part, thresholds, settled) for part in torch.split(logits_BKHW, 1)]
    return parts[0] if len(parts) == 1 else Decision(*(torch.cat(column) for column in zip(*parts, strict=True)))


def margins(logits_BKHW: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
    """Return the distance of each pixel to another label, in logits, (B, H, W). `Decision.margin` is its minimum."""
    if logits_BKHW.shape[1] > 2:
        return _margins_of_several(logits_BKHW, logits_BKHW.log_softmax(dim=1).exp(), thresholds)
    single = logits_BKHW.shape[1] == 1
    logit_BHW = logits_BKHW[:, 0] if single else logits_BKHW[:, 1] - logits_BKHW[:, 0]
    threshold = thresholds[0] if thresholds is not None else 0.5
    return (logit_BHW - _logit(threshold)).abs_()


def _decide_two(logits_BKHW: Tensor, thresholds: Sequence[float] | None, settled: Settled | None) -> Decision:
    # torch.argmax over two classes costs far more than the comparison; both give equals to class 0.
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
    # Distances in logits, from a limit and from a rival.
    limits = _column(thresholds, logits_BKHW.device, torch.float64)
    from_limit = (torch.logit(probability[:, 1:].double()) - torch.logit(limits)).abs().amin(dim=1)
    return torch.minimum(from_limit.float(), from_rival)


def _column(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the values as (K, 1, 1). They are filled on the device, since a CUDA graph cannot copy from the host."""
    return torch.stack([torch.full((1, 1), value, dtype=dtype, device=device) for value in values])


def _with(settled: Settled | None, labels_BHW: Tensor) -> Tensor:
    if settled is not None:
        labels_BHW[0, settled.rows, settled.columns] = settled.labels.to(labels_BHW.dtype)
    return labels_BHW


def _above(value_BHW: Tensor, limit: float) -> Tensor:
    """Return 1 for values above a limit, else 0; uint8."""
    if value_BHW.device.type == "cpu":  # NumPy's comparison is vectorised, torch's is not
        return torch.from_numpy(np.greater(value_BHW.numpy(), np.float32(limit)).view(np.uint8))
    return (value_BHW > limit).to(torch.uint8)


def moments(pixels_BHWC: Tensor, white: float = WHITE) -> tuple[Tensor, Tensor]:
    """Return the sums (B, C) of pixels and of their squares, float64, in units of a 255th of white.

    Those of pixels 0 … 255 are exact in any order of summing: 256 squares add up to less than 2^24, which fp32 holds
    exactly. So pixels are summed in runs of 256, many columns side by side, and the runs in float64. Other numbers are
    summed in float64, no data (NaN) as 0.

    Args:
        pixels_BHWC: Numbers on the device, fp32.
        white: The number seen as 1.
    """
    if white != WHITE:
        return _wide_moments(pixels_BHWC)
    batch, channels = pixels_BHWC.shape[0], pixels_BHWC.shape[3]
    columns = 16 * channels
    flat = pixels_BHWC.reshape(batch, -1)
    if rest := flat.shape[1] % (256 * columns):
        flat = F.pad(flat, (0, 256 * columns - rest))
    runs = flat.reshape(batch, -1, 256, columns)

    def added(value: Tensor) -> Tensor:
        return value.sum(dim=2).reshape(len(value), -1, channels).sum(dim=1, dtype=torch.float64)

    # Image by image on a CPU, so that the squares stay in its cache.
    parts = torch.split(runs, 1 if runs.device.type == "cpu" else max(1, batch))
    return added(runs), torch.cat([added(part * part) for part in parts])


def _wide_moments(pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    sums = []
    for image_BHWC in torch.split(pixels_BHWC, 1):  # float64 takes twice the memory
        wide = image_BHWC.double().nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf).mul_(WHITE)
        total_BC = wide.sum(dim=2).sum(dim=1)
        sums.append((total_BC, wide.square_().sum(dim=2).sum(dim=1)))
    totals, squares = zip(*sums, strict=True)
    return torch.cat(totals), torch.cat(squares)


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))


def _binary_entropy(distance_BHW: Tensor, other_BHW: Tensor) -> Tensor:
    """Return partial sums of the entropy of two classes in nats, (B, N).

    A pixel's entropy is q d - log(1 - q), since log(q / (1 - q)) = -d. Logarithms are expensive, so one is taken of a
    product of `_FACTORS` probabilities.

    Args:
        distance_BHW: Distance d between the two logits. Overwritten: less memory means more of it in the cache.
        other_BHW: Probability of the less likely class, q = 1 / (1 + exp(d)). Overwritten.
    """
    linear_BH = distance_BHW.mul_(other_BHW).sum(dim=2)
    certain_BN = other_BHW.neg_().add_(1).flatten(1)
    complete = certain_BN.shape[1] // _FACTORS * _FACTORS
    factors_BFN = certain_BN[:, :complete].reshape(len(certain_BN), _FACTORS, -1)
    logarithms = factors_BFN.prod(dim=1).log_(), certain_BN[:, complete:].log()
    return torch.cat((linear_BH, *(-part for part in logarithms)), dim=1)


def _occupied(masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pixels of each mask in every row (B, K - 1, H) and column (B, K - 1, W).

    Products with ones take a fraction of the time of comparisons and integer sums.

    Args:
        masks: Ones and zeros or booleans, (B, H, W), for each class but the first.
    """
    _, height, width = masks[0].shape
    ones_H, ones_W = (torch.ones(side, device=masks[0].device) for side in (height, width))
    floats = [mask_BHW.float() for mask_BHW in masks]
    rows = [mask_BHW @ ones_W for mask_BHW in floats]
    columns = [ones_H @ mask_BHW for mask_BHW in floats]
    return torch.stack(rows, dim=1), torch.stack(columns, dim=1)
