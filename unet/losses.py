"""Losses of a segmentation network: cross-entropy plus soft Dice. Knows only logits and targets."""

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Cross-entropy plus one minus soft Dice, averaged over the batch.

    Args:
        logits_BKHW: Floating point; K == 1 means a foreground logit for a sigmoid.
        target_BHW: Class of each pixel, integers in 0 … max(1, K - 1).

    Returns:
        A scalar, fp32.
    """
    logits_BKHW = logits_BKHW.float()
    if logits_BKHW.shape[1] == 1:
        target_B1HW = target_BHW.unsqueeze(1).float()
        entropy = F.binary_cross_entropy_with_logits(logits_BKHW, target_B1HW)
        return entropy + 1 - soft_dice(logits_BKHW.sigmoid(), target_B1HW)
    entropy = F.cross_entropy(logits_BKHW, target_BHW.long())
    truth_BKHW = F.one_hot(target_BHW.long(), logits_BKHW.shape[1]).permute(0, 3, 1, 2).float()
    # Background is left out: it is what every class is not, and drowns small objects.
    return entropy + 1 - soft_dice(logits_BKHW.softmax(dim=1)[:, 1:], truth_BKHW[:, 1:])


def soft_dice(probability_BKHW: Tensor, truth_BKHW: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice of each class over the whole batch, averaged over the classes.

    A class that the batch has nowhere counts as `smooth / (smooth + predicted)`: one if nothing is
    predicted, and falling with what is.
    """
    over = (0, 2, 3)
    common_K = (probability_BKHW * truth_BKHW).sum(over)
    total_K = probability_BKHW.sum(over) + truth_BKHW.sum(over)
    return torch.mean((2 * common_K + smooth) / (total_K + smooth))
