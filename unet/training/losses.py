"""Losses of a segmentation network: cross-entropy plus soft Dice. Knows logits and targets only."""

from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-6
"""Term in numerator and denominator of Pytorch-UNet's Dice."""


def segmentation_loss(logits_BKHW: Tensor, target_BHW: Tensor, *, ignored: int | None = None) -> Tensor:
    """Return cross-entropy plus one minus soft Dice.

    Args:
        logits_BKHW: Logits, floating point; K == 1 is a foreground logit for a sigmoid.
        target_BHW: Class of each pixel, integers in 0 … max(1, K - 1), or `ignored`.
        ignored: Number of pixels that add nothing to the loss; None if there are none.

    Returns:
        A scalar, fp32.
    """
    entropy, probability_BKHW, truth_BKHW = _terms(logits_BKHW, target_BHW, ignored)
    if logits_BKHW.shape[1] > 1:
        # Without the background, which follows from the other classes and drowns small objects.
        probability_BKHW, truth_BKHW = probability_BKHW[:, 1:], truth_BKHW[:, 1:]
    return entropy + 1 - soft_dice(probability_BKHW, truth_BKHW)


def soft_dice(probability_BKHW: Tensor, truth_BKHW: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return the mean soft Dice over all pairs of image and class present in the image's truth.

    A class absent from an image is left out of its Dice; only cross-entropy counts there. Without any present class
    the result is 1. The mean over images, as in the validation score, gives an image with little of a class the same
    weight as one full of it.

    Args:
        probability_BKHW: Probability of each class.
        truth_BKHW: One-hot truth.
        smooth: Term in numerator and denominator, in pixels.
    """
    over = (2, 3)
    common_BK = (probability_BKHW * truth_BKHW).sum(over)
    truth_BK = truth_BKHW.sum(over)
    dice_BK = (2 * common_BK + smooth) / (probability_BKHW.sum(over) + truth_BK + smooth)
    present_BK = truth_BK > 0
    return 1 - ((1 - dice_BK) * present_BK).sum() / present_BK.sum().clamp(min=1)


def pytorch_unet_loss(logits_BKHW: Tensor, target_BHW: Tensor, *, ignored: int | None = None) -> Tensor:
    """Return Pytorch-UNet's loss: cross-entropy plus one minus a single Dice over all images and classes.

    The Dice includes the background. Arguments and result are those of `segmentation_loss`.
    """
    entropy, probability_BKHW, truth_BKHW = _terms(logits_BKHW, target_BHW, ignored)
    common = 2 * (probability_BKHW * truth_BKHW).sum()
    total = probability_BKHW.sum() + truth_BKHW.sum()
    return entropy + 1 - (common + _EPSILON) / (total + _EPSILON)


def _terms(logits_BKHW: Tensor, target_BHW: Tensor, ignored: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, probabilities and one-hot truth, all fp32. Ignored pixels are zero in all of them."""
    logits_BKHW = logits_BKHW.float()
    if ignored is None:
        return _all_terms(logits_BKHW, target_BHW, reduction="mean")
    counts_BHW = target_BHW != ignored
    entropy_BHW, probability_BKHW, truth_BKHW = _all_terms(logits_BKHW, target_BHW * counts_BHW, reduction="none")
    counts_B1HW = counts_BHW.unsqueeze(1)
    # Divided by all pixels, so that the loss of a batch is the mean of those of its parts.
    entropy = (entropy_BHW.reshape(counts_BHW.shape) * counts_BHW).mean()
    return entropy, probability_BKHW * counts_B1HW, truth_BKHW * counts_B1HW


def _all_terms(logits_BKHW: Tensor, target_BHW: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    if logits_BKHW.shape[1] == 1:
        truth_B1HW = target_BHW.unsqueeze(1).float()
        entropy = F.binary_cross_entropy_with_logits(logits_BKHW, truth_B1HW, reduction=reduction)
        return entropy, logits_BKHW.sigmoid(), truth_B1HW
    truth_BKHW = F.one_hot(target_BHW.long(), logits_BKHW.shape[1]).permute(0, 3, 1, 2).float()
    entropy = F.cross_entropy(logits_BKHW, target_BHW.long(), reduction=reduction)
    return entropy, logits_BKHW.softmax(dim=1), truth_BKHW
