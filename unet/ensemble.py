"""Several networks, or several views of an image, as one network."""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskfleet.unet.network import Network

Views = Literal["off", "flips", "d4"]
"""Test-time augmentation: none, the four flips, or the eight flips and quarter turns (the dihedral group D4)."""

_VIEWS: dict[Views, list[tuple[int, bool]]] = {
    "off": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "d4": [(turns, mirrored) for turns in range(4) for mirrored in (False, True)],
}
"""Number of quarter turns, and whether columns are mirrored afterwards."""


class Ensemble(nn.Module):
    """The mean probabilities of several networks over several views of an image, as logits.

    Args:
        members: Networks with equal channels and classes.
        views: Test-time augmentation.

    Raises:
        ValueError: There are no members, or they differ in channels or classes.
    """

    def __init__(self, members: Sequence[Network], views: Views = "off") -> None:
        super().__init__()
        signatures = {(member.n_channels, member.n_classes) for member in members}
        if len(signatures) != 1:
            raise ValueError(
                "the networks of an ensemble must have the same numbers of channels and classes, "
                f"got {sorted(signatures)} (channels, classes)"
            )
        (self.n_channels, self.n_classes) = signatures.pop()
        self.members = nn.ModuleList(cast("Sequence[nn.Module]", members))
        self.views: Views = views
        self.grid = math.lcm(*(member.grid for member in members))
        # A flipped tile may end, not begin, within a cell of a member's grid, and loses that cell.
        self.halo = max(member.halo + (member.grid if views != "off" else 0) for member in members)
        self.untileable = next((member.untileable for member in members if member.untileable), None)
        self.min_side = max(member.min_side for member in members)

    def extra_repr(self) -> str:
        """State the views; see `nn.Module.extra_repr`."""
        return f"views={self.views}"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits (B, n_classes, H, W), at least fp32, whose softmax or sigmoid is the members' mean."""
        logits = []
        for turns, mirrored in _VIEWS[self.views]:
            view_BCHW = _turned(x_BCHW, turns, mirrored)
            logits += [_turned_back(_wide(member(view_BCHW)), turns, mirrored) for member in self.members]
        if self.n_classes == 1:
            return _mean([F.logsigmoid(z) for z in logits]) - _mean([F.logsigmoid(-z) for z in logits])
        return _mean([z.log_softmax(dim=1) for z in logits])


def _wide(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW.to(torch.promote_types(logits_BKHW.dtype, torch.float32))


def _mean(logs: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean of numbers given by their logarithms."""
    return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))


def _turned(x_BCHW: Tensor, turns: int, mirrored: bool) -> Tensor:
    x_BCHW = x_BCHW.rot90(turns, (2, 3))
    return x_BCHW.flip(3) if mirrored else x_BCHW


def _turned_back(x_BCHW: Tensor, turns: int, mirrored: bool) -> Tensor:
    x_BCHW = x_BCHW.flip(3) if mirrored else x_BCHW
    return x_BCHW.rot90(-turns, (2, 3))
