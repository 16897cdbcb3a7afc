"""Processes training one network: each computes a share of every batch, and all make the same step.

They are the ranks of torch's default process group; a process without one is alone. Every method is a collective: all
ranks call it in the same order, or wait for each other.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class PeerFailed(RuntimeError):
    """Another rank failed in this step; its own message states the reason."""


class Peers:
    """All ranks, seen from one of them.

    Attributes:
        rank: Rank of this process, from 0. Only rank 0 writes.
        count: Number of ranks.
    """

    def __init__(self) -> None:
        self._together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self._together else 0
        self.count = dist.get_world_size() if self._together else 1
        nccl = self._together and dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def share(self) -> slice:
        """This rank's images of a batch."""
        return slice(self.rank, None, self.count)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one message. All are floating point, on one device."""
        if self.count == 1:
            return
        joined = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).to(self._device)
        dist.all_reduce(joined)
        parts = torch.split(joined / self.count, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=self._device)
        dist.all_reduce(flags)
        return bool(flags)

    def number_of_first(self, value: float) -> float:
        """Return rank 0's value, to the last bit."""
        if self.count == 1:
            return value
        sent = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.broadcast(sent, 0)
        return float(sent)

    def bytes_of_first(self, data: bytes) -> bytes:
        """Return rank 0's bytes."""
        if self.count == 1:
            return data
        sent = torch.empty(int(self.number_of_first(len(data))), dtype=torch.uint8, device=self._device)
        if self.rank == 0 and data:
            sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()
