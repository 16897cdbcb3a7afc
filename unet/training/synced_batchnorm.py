"""Batch normalisation over all ranks' shares of a batch, for results independent of the number of ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronize(model: nn.Module, device: torch.device) -> None:
    """Replace every batch normalisation of a network by one over all ranks. State-dict keys stay the same.

    On a GPU it is torch's `SyncBatchNorm`, which does not support CPUs.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            synchronize(child, device)
        elif device.type == "cuda":
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
        else:
            child.__class__ = SyncedBatchNorm2d


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that uses mean and variance of all ranks' pixels in training.

    All ranks' shares have the same shape. It computes in fp32 for any input type, as torch's own does internally.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        over = (0, 2, 3)
        wide_BCHW = x_BCHW.float()
        ranks = dist.get_world_size()
        mean_C = _sum_over_ranks(wide_BCHW.mean(over)) / ranks
        centred_BCHW = wide_BCHW - mean_C[:, None, None]
        # A second message, because the mean of squares less the square of the mean loses significant digits.
        variance_C = _sum_over_ranks(centred_BCHW.square().mean(over)) / ranks
        self._follow(mean_C.detach(), variance_C.detach(), ranks * x_BCHW.numel() // x_BCHW.shape[1])
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return (centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]).to(x_BCHW.dtype)

    def _follow(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * (count / max(1, count - 1)), self.momentum)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's value.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(value: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(value)  # type: ignore[no-untyped-call]
    return summed
