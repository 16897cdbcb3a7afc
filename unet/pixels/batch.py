"""Images of one shape and dtype on their way to a network: numbers as stored, and the levels of each image.

Numbers become fp32 on the device, tile by tile, so that no image is held twice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.unet.pixels.normalization import Levels

WHITE = 255.0
"""The number of 8-bit pixels that counts as 1."""


class Pixels(NamedTuple):
    """Images of one shape, or one part of each.

    Attributes:
        values: Numbers as stored, (B, H, W, C).
        levels: High and low part of the offset, and the divisor, of each image and band, (B, 3, 1, C), fp32. None for
            8-bit images without a declared normalisation, whose numbers are 0 … 255, and for numbers that are
            normalised already, fp32.
    """

    values: NDArray[Any]
    levels: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, values: NDArray[Any], levels: Sequence[Levels] | None = None) -> "Pixels":
        """Return images with the levels of each."""
        if levels is None:
            return cls(values)
        offset_BC, divisor_BC = (np.array([each[part] for each in levels], np.float64) for part in (0, 1))
        # An offset in two parts: numbers minus the high part are exact in fp32 where they are close to it.
        high_BC = offset_BC.astype(np.float32)
        low_BC = (offset_BC - high_BC).astype(np.float32)
        stacked = np.stack([high_BC, low_BC, divisor_BC.astype(np.float32)], axis=1)
        return cls(values, stacked[:, :, None, :])

    @property
    def white(self) -> float:
        """The number seen as 1, once on the device: 255 for 8-bit pixels, 1 for normalised ones."""
        return WHITE if self.levels is None and self.values.dtype == np.uint8 else 1.0

    def part(self, images: slice) -> "Pixels":
        """Return some of the images."""
        return Pixels(self.values[images], None if self.levels is None else self.levels[images])

    def crop(self, rows: slice, columns: slice = slice(None)) -> "Pixels":
        """Return some rows and columns of each image."""
        return self._replace(values=self.values[:, rows, columns])

    @classmethod
    def joined(cls, parts: "Sequence[Pixels]") -> "Pixels":
        """Return several parts of one shape and dtype as one."""
        if len(parts) == 1:
            return parts[0]
        levels = [part.levels for part in parts if part.levels is not None]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate(levels) if levels else None)

    def on_device(self, device: torch.device) -> Tensor:
        """Return fp32 numbers (B, H, W, C) on the device: 0 … 255, or normalised. No data stays NaN."""
        # A copy in any case: the network's passes overwrite it.
        values_BHWC = as_tensor(self.values).to(device, non_blocking=True).to(torch.float32, copy=True)
        if self.levels is None:
            return values_BHWC
        high, low, divisor = as_tensor(self.levels).to(device, non_blocking=True).unbind(1)
        return values_BHWC.sub_(high[:, :, None]).sub_(low[:, :, None]).div_(divisor[:, :, None])


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return an array on the host as a tensor, copied only if it is read-only."""
    return torch.from_numpy(np.require(values, requirements="W"))
