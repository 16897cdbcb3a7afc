"""Losses of a segmentation network: cross-entropy plus soft Dice. Knows only logits and targets."""

from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-6
"""Of Pytorch-UNet's Dice, in numerator and denominator."""


def segmentation_loss(logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Cross-entropy plus one minus soft Dice.

    Args:
        logits_BKHW: Floating point; K == 1 means a foreground logit for a sigmoid.
        target_BHW: Class of each pixel, integers in 0 … max(1, K - 1).

    Returns:
        A scalar, fp32.
    """
    entropy, probability_BKHW, truth_BKHW = _parts(logits_BKHW, target_BHW)
    if logits_BKHW.shape[1] > 1:
        # Background is left out: it is what every class is not, and drowns small objects.
        probability_BKHW, truth_BKHW = probability_BKHW[:, 1:], truth_BKHW[:, 1:]
    return entropy + 1 - soft_dice(probability_BKHW, truth_BKHW)


def soft_dice(probability_BKHW: Tensor, truth_BKHW: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice of each class in each image, averaged over those pairs of them whose truth is not empty.

    **A class that an image does not have is left out of its Dice**; cross-entropy alone speaks there. Where no image
    has any class, this is 1. Averaged over images, as masks are judged, an image with little of a class counts as much
    as one that is full of it.
    """
    over = (2, 3)
    common_BK = (probability_BKHW * truth_BKHW).sum(over)
    truth_BK = truth_BKHW.sum(over)
    dice_BK = (2 * common_BK + smooth) / (probability_BKHW.sum(over) + truth_BK + smooth)
    present_BK = truth_BK > 0
    return 1 - ((1 - dice_BK) * present_BK).sum() / present_BK.sum().clamp(min=1)


def pytorch_unet_loss(logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Pytorch-UNet's: cross-entropy plus one minus a single Dice over all images and classes, background included.

    Args and value as `segmentation_loss`.
    """
    entropy, probability_BKHW, truth_BKHW = _parts(logits_BKHW, target_BHW)
    common = 2 * (probability_BKHW * truth_BKHW).sum()
    total = probability_BKHW.sum() + truth_BKHW.sum()
    return entropy + 1 - (common + _EPSILON) / (total + _EPSILON)


def _parts(logits_BKHW: Tensor, target_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, probabilities and one-hot truth, all fp32."""
    logits_BKHW = logits_BKHW.float()
    if logits_BKHW.shape[1] == 1:
        truth_B1HW = target_BHW.unsqueeze(1).float()
        entropy = F.binary_cross_entropy_with_logits(logits_BKHW, truth_B1HW)
        return entropy, logits_BKHW.sigmoid(), truth_B1HW
    truth_BKHW = F.one_hot(target_BHW.long(), logits_BKHW.shape[1]).permute(0, 3, 1, 2).float()
    return F.cross_entropy(logits_BKHW, target_BHW.long()), logits_BKHW.softmax(dim=1), truth_BKHW
