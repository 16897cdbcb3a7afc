"""A network on a device in two forms: the fast pass, and the plain pass that decides close calls."""

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskfleet.unet.folded import folded
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.network import Network
from maskfleet.unet.precision import DTYPES, Resolved
from maskfleet.unet.process_state import cpu_threads

Forward = Callable[[Tensor], Tensor]
"""From pixels 0 … 255, (B, H, W, C), fp32, to logits (B, K, H, W). It may overwrite the pixels."""

_WHITE = 255.0


class Resident:
    """The two forms of one network on one device.

    The fast pass has batch normalisation folded into the convolutions, lies in memory channels last, and computes in
    the chosen precision. The plain pass is the network as given, in fp32 and contiguous memory: the arithmetic of
    Pytorch-UNet's predict.py.

    Args:
        network: Copied.
        device: The device to use.
        precision: Type of the fast pass's convolutions.
        normalize: Mean and standard deviation of each channel in [0, 1], as used in training; None for a network
            trained on [0, 1].
        plain_threads: CPU threads of the plain pass; None for this process's number.
        fused: Whether convolution and ReLU are one pass; see `unet.folded.folded`.

    Attributes:
        device: The device in use.
        n_channels: Channels of the images.
        classes: Number of classes, two for a network with one logit.
        dtype: Type of the fast pass's convolutions.
        plain: The network as given.
        fast: The network of the fast pass.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        precision: Resolved,
        normalize: tuple[Sequence[float], Sequence[float]] | None,
        plain_threads: int | None,
        fused: bool | None,
    ) -> None:
        self.device = device
        self.n_channels, self.classes = network.n_channels, max(2, network.n_classes)
        self.dtype = DTYPES[precision]
        self._normalize = _normalization(normalize, device)
        # Torch on a GPU multiplies by the inverse of a number on the host instead of dividing by it.
        self._white = _WHITE if device.type == "cpu" else torch.tensor(_WHITE, device=device)
        self._plain_threads = plain_threads or torch.get_num_threads()
        self._moving = threading.Lock()
        self._plain_is_away = precision != "fp32"
        self.plain: Any = copy.deepcopy(network).requires_grad_(False).eval()
        if not self._plain_is_away:
            self.plain = self.plain.to(device)
        fast = folded(self.plain, device, self.dtype, largest=self._largest_input(), fused=fused)
        self.fast: Any = fast.to(device, self.dtype, memory_format=torch.channels_last)

    def on_device(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        """Copy pixels to the device as fp32."""
        return as_tensor(pixels_BHWC).to(self.device, non_blocking=True).float()

    def fast_pass(self, threads: int) -> Forward:
        """Return the fast pass with this number of CPU threads."""
        return partial(self.forward, threads=threads)

    def forward(self, pixels_BHWC: Tensor, threads: int) -> Tensor:
        """Return the fast pass's logits, fp32; see `Forward`."""
        x_BCHW = self.scaled(pixels_BHWC).to(self.dtype)
        with cpu_threads(threads):
            logits_BKHW: Tensor = self.fast(x_BCHW)
        return logits_BKHW.float()

    def plain_forward(self, pixels_BHWC: Tensor) -> Tensor:
        """Return the plain pass's logits, fp32; see `Forward`."""
        with cpu_threads(self._plain_threads):
            logits_BKHW: Tensor = self._plain_on_device()(self.scaled(pixels_BHWC).contiguous())
        return logits_BKHW

    def scaled(self, pixels_BHWC: Tensor) -> Tensor:
        """Return the network's input, (B, C, H, W), from pixels 0 … 255, overwriting them."""
        # Divided, not multiplied by 1/255: the product differs from Pytorch-UNet's quotient for 126 of 256 values.
        x_BHWC = pixels_BHWC.div_(self._white)
        if self._normalize is not None:
            mean_C, std_C = self._normalize
            x_BHWC = x_BHWC.sub_(mean_C).div_(std_C)
        return x_BHWC.permute(0, 3, 1, 2)

    def no_statistics(self, images: int) -> Statistics:
        """Return the statistics of images before anything is known of them."""
        return Statistics.none(images, self.classes, self.n_channels)

    def _largest_input(self) -> float:
        """Largest magnitude of the network's input."""
        ends_BHWC = torch.tensor([0.0, _WHITE], device=self.device).view(2, 1, 1, 1).repeat(1, 1, 1, self.n_channels)
        return float(self.scaled(ends_BHWC).abs().max())

    def _plain_on_device(self) -> Any:
        """Return the network as given, moved to the device on its first use."""
        with self._moving:
            if self._plain_is_away:
                self.plain = self.plain.to(self.device)
                if self.device.type == "cuda":
                    torch.cuda.current_stream(self.device).synchronize()  # other streams do not wait for this copy
                self._plain_is_away = False
        return self.plain


def as_tensor(pixels_BHWC: NDArray[np.uint8]) -> Tensor:
    """Return pixels on the host as a tensor, copied only if they are read-only."""
    return torch.from_numpy(np.require(pixels_BHWC, requirements="W"))


def _normalization(
    normalize: tuple[Sequence[float], Sequence[float]] | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    if normalize is None:
        return None
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in normalize)
    return mean, std
