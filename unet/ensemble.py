"""Several networks, or several views of an image, as one network."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskfleet.unet.model import UNet

Views = Literal["off", "flips", "d4"]
"""Test-time augmentation: none, the four flips, or the eight flips and quarter turns (the dihedral group D4)."""

_VIEWS: dict[Views, list[tuple[int, bool]]] = {
    "off": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "d4": [(turns, mirrored) for turns in range(4) for mirrored in (False, True)],
}
"""Quarter turns, and whether columns are then mirrored."""


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks over several views of the image, as logits.

    Args:
        members: Networks of equal channels and classes.
        views: Test-time augmentation.

    Raises:
        ValueError: There is no member, or they differ in channels or classes.
    """

    def __init__(self, members: Sequence[UNet], views: Views = "off") -> None:
        super().__init__()
        kinds = {(member.n_channels, member.n_classes) for member in members}
        if len(kinds) != 1:
            raise ValueError(
                "the networks of an ensemble must take the same channels and give the same classes, "
                f"got {sorted(kinds)} (channels, classes)"
            )
        (self.n_channels, self.n_classes) = kinds.pop()
        self.bilinear = any(member.bilinear for member in members)
        self.members = nn.ModuleList(members)
        self.views: Views = views

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W), at least fp32, whose softmax or sigmoid is the mean of the members'."""
        logits = []
        for turns, mirrored in _VIEWS[self.views]:
            seen_BCHW = _turned(x_BCHW, turns, mirrored)
            logits += [_turned_back(_wide(member(seen_BCHW)), turns, mirrored) for member in self.members]
        if self.n_classes == 1:
            return _mean([F.logsigmoid(z) for z in logits]) - _mean([F.logsigmoid(-z) for z in logits])
        return _mean([z.log_softmax(dim=1) for z in logits])


def _wide(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW.to(torch.promote_types(logits_BKHW.dtype, torch.float32))


def _mean(logs: list[Tensor]) -> Tensor:
    """Logarithm of the mean of what these are the logarithms of."""
    return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))


def _turned(x_BCHW: Tensor, turns: int, mirrored: bool) -> Tensor:
    x_BCHW = x_BCHW.rot90(turns, (2, 3))
    return x_BCHW.flip(3) if mirrored else x_BCHW


def _turned_back(x_BCHW: Tensor, turns: int, mirrored: bool) -> Tensor:
    x_BCHW = x_BCHW.flip(3) if mirrored else x_BCHW
    return x_BCHW.rot90(-turns, (2, 3))
