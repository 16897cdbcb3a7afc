"""A network on a device in two forms: the fast pass, and the plain pass that decides close calls."""

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskfleet.unet.folded import folded
from maskfleet.unet.inference.statistics import Statistics
from maskfleet.unet.network import Network
from maskfleet.unet.pixels.batch import WHITE
from maskfleet.unet.precision import DTYPES, Resolved
from maskfleet.unet.process_state import cpu_threads

Forward = Callable[[Tensor], Tensor]
"""From numbers on the device, (B, H, W, C), fp32, to logits (B, K, H, W). It may overwrite the numbers."""

_LARGEST = 1e6
"""Magnitude that a declared normalisation is taken to stay below."""


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
        declared: Whether images come normalised as declared, to numbers of any size.
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
        declared: bool,
        plain_threads: int | None,
        fused: bool | None,
    ) -> None:
        self.device = device
        self.n_channels, self.classes = network.n_channels, max(2, network.n_classes)
        self.dtype = DTYPES[precision]
        self._normalize = _normalization(normalize, device)
        # Torch on a GPU multiplies by the inverse of a number on the host instead of dividing by it.
        self._white = WHITE if device.type == "cpu" else torch.tensor(WHITE, device=device)
        self._plain_threads = plain_threads or torch.get_num_threads()
        self._moving = threading.Lock()
        self._plain_is_away = precision != "fp32"
        self.plain: Any = copy.deepcopy(network).requires_grad_(False).eval()
        if not self._plain_is_away:
            self.plain = self.plain.to(device)
        fast = folded(
            self.plain, device, self.dtype, largest=_LARGEST if declared else self._largest_input(), fused=fused
        )
        self.fast: Any = fast.to(device, self.dtype, memory_format=torch.channels_last)

    def fast_pass(self, threads: int, white: float) -> Forward:
        """Return the fast pass with this number of CPU threads, for numbers of this white."""
        return partial(self.forward, threads=threads, white=white)

    def plain_pass(self, white: float) -> Forward:
        """Return the plain pass, for numbers of this white."""
        return partial(self.plain_forward, white=white)

    def forward(self, pixels_BHWC: Tensor, threads: int, white: float = WHITE) -> Tensor:
        """Return the fast pass's logits, fp32; see `Forward`."""
        x_BCHW = self.scaled(pixels_BHWC, white).to(self.dtype)
        with cpu_threads(threads):
            logits_BKHW: Tensor = self.fast(x_BCHW)
        return logits_BKHW.float()

    def plain_forward(self, pixels_BHWC: Tensor, white: float = WHITE) -> Tensor:
        """Return the plain pass's logits, fp32; see `Forward`."""
        with cpu_threads(self._plain_threads):
            logits_BKHW: Tensor = self._plain_on_device()(self.scaled(pixels_BHWC, white).contiguous())
        return logits_BKHW

    def scaled(self, pixels_BHWC: Tensor, white: float = WHITE) -> Tensor:
        """Return the network's input, (B, C, H, W), overwriting the numbers.

        Args:
            pixels_BHWC: Numbers on the device.
            white: The number seen as 1; see `unet.pixels.batch.Pixels.white`.
        """
        # Divided, not multiplied by 1/255: the product differs from Pytorch-UNet's quotient for 126 of 256 values.
        x_BHWC = pixels_BHWC.div_(self._white) if white == WHITE else pixels_BHWC
        if self._normalize is not None:
            mean_C, std_C = self._normalize
            x_BHWC = x_BHWC.sub_(mean_C).div_(std_C)
        if white != WHITE:  # no data is seen as 0
            x_BHWC = x_BHWC.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        return x_BHWC.permute(0, 3, 1, 2)

    def no_statistics(self, images: int) -> Statistics:
        """Return the statistics of images before anything is known of them."""
        return Statistics.none(images, self.classes, self.n_channels)

    def _largest_input(self) -> float:
        """Largest magnitude of the network's input."""
        ends_BHWC = torch.tensor([0.0, WHITE], device=self.device).view(2, 1, 1, 1).repeat(1, 1, 1, self.n_channels)
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


def _normalization(
    normalize: tuple[Sequence[float], Sequence[float]] | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    if normalize is None:
        return None
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in normalize)
    return mean, std
