"""The U-Net and its geometry. Knows no device, no file, no image format, no training.

Architecture of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation" (2015), in the form of the Pytorch-UNet project: padded convolutions, batch normalisation, four levels.
Module names give that project's state-dict keys, so its checkpoints load.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskfleet.unet.checkpointing import checkpointed
from maskfleet.unet.network import WeightsError, load_tensors

CONFIGURATION = ("n_channels", "n_classes", "bilinear", "width")
"""Metadata that configure a U-Net: its constructor's arguments."""

_LEVELS = 4
_BILINEAR = "it up-samples bilinearly with aligned corners, on a grid that depends on the image's size"


class DoubleConv(nn.Module):
    """3×3 convolution, batch normalisation and ReLU, twice. Keeps H and W."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None) -> None:
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.second(self.first(x_BCHW))

    def first(self, x_BCHW: Tensor) -> Tensor:
        """Compute the first half, up to the first ReLU."""
        return self.double_conv[:3](x_BCHW)

    def second(self, x_BCHW: Tensor) -> Tensor:
        """Compute the second half."""
        return self.double_conv[3:](x_BCHW)


class Down(nn.Module):
    """Halve H and W (rounding down) by max pooling, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.maxpool_conv(x_BCHW)


class Up(nn.Module):
    """Double H and W, pad to the skip's size, join with the skip, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int, *, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
            self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        return self.conv.second(self.first(x_BCHW, skip_BCHW))

    def first(self, x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        """Compute everything up to the first ReLU."""
        up_BCHW = self.up(x_BCHW)
        rows = skip_BCHW.shape[-2] - up_BCHW.shape[-2]
        columns = skip_BCHW.shape[-1] - up_BCHW.shape[-1]
        if rows or columns:
            left, top = columns // 2, rows // 2
            up_BCHW = F.pad(up_BCHW, (left, columns - left, top, rows - top))
        return self.conv.first(torch.cat((skip_BCHW, up_BCHW), dim=1))


class OutConv(nn.Module):
    """1×1 convolution from features to one logit per class."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW)


class UNet(nn.Module):
    """A four-level U-Net.

    Args:
        n_channels: Channels of the input images.
        n_classes: Logits per pixel. One is a foreground logit for a sigmoid and a threshold; several are one logit
            per class for an argmax.
        bilinear: Whether to up-sample by bilinear interpolation (`align_corners=True`) instead of transposed
            convolutions. This takes fewer parameters, and the result depends on the image's size.
        width: Channels of the first level; each level below doubles them.

    With `width=64` the parameters are Pytorch-UNet's: 31,037,698 in 118 tensors for 3 → 2
    transposed, 17,263,042 in 110 for 3 → 2 bilinear.
    """

    kind: ClassVar[str] = "unet"

    grid: int = 2**_LEVELS
    """Product of the poolings' strides, in px."""

    halo: int = 96
    """Reach of a logit in px, rounded up to the grid.

    Two 3×3 convolutions a level reach 2 · (1 + 2 + 4 + 8) px going down, 2 · 16 px at the bottom and 30 px going up,
    92 px in all.
    """

    min_side: int = 2**_LEVELS
    """Shortest side in px that survives four halvings."""

    def __init__(self, n_channels: int, n_classes: int, bilinear: bool = False, width: int = 64) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.n_classes = n_classes
        self.bilinear = bilinear
        self.width = width
        self.untileable = _BILINEAR if bilinear else None
        self.checkpointing = False
        factor = 2 if bilinear else 1
        self.inc = DoubleConv(n_channels, width)
        self.down1 = Down(width, width * 2)
        self.down2 = Down(width * 2, width * 4)
        self.down3 = Down(width * 4, width * 8)
        self.down4 = Down(width * 8, width * 16 // factor)
        self.up1 = Up(width * 16, width * 8 // factor, bilinear=bilinear)
        self.up2 = Up(width * 8, width * 4 // factor, bilinear=bilinear)
        self.up3 = Up(width * 4, width * 2 // factor, bilinear=bilinear)
        self.up4 = Up(width * 2, width, bilinear=bilinear)
        self.outc = OutConv(width, n_classes)

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in CONFIGURATION}

    def use_checkpointing(self, on: bool = True) -> None:
        """Train in less memory and more time by recomputing activations in the backward pass, block by block.

        State dict, gradients and running statistics stay the same. Savings, costs and the reason for halving only the
        last block are in tests/benchmarks/README.md.
        """
        self.checkpointing = on

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            x_BCHW: Floating-point pixels, (B, n_channels, H, W), H and W at least `min_side`.

        Returns:
            Logits, (B, n_classes, H, W), of the input's dtype.

        Raises:
            ValueError: A side is shorter than `min_side`.
        """
        if min(x_BCHW.shape[-2:]) < self.min_side:
            height, width = x_BCHW.shape[-2:]
            raise ValueError(
                f"the U-Net needs sides of at least {self.min_side} px, got {width}×{height}; enlarge the image"
            )
        if self.checkpointing and torch.is_grad_enabled():
            return self._checkpointed(x_BCHW)
        x1 = self.inc(x_BCHW)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)
        return self.outc(x)

    def _checkpointed(self, x_BCHW: Tensor) -> Tensor:
        x1 = checkpointed(self.inc, x_BCHW, owner=self.inc)
        x2 = checkpointed(self.down1, x1, owner=self.down1)
        x3 = checkpointed(self.down2, x2, owner=self.down2)
        x4 = checkpointed(self.down3, x3, owner=self.down3)
        x = checkpointed(self.down4, x4, owner=self.down4)
        x = checkpointed(self.up1, x, x4, owner=self.up1)
        x = checkpointed(self.up2, x, x3, owner=self.up2)
        x = checkpointed(self.up3, x, x2, owner=self.up3)
        # The step's peak of memory: the widest maps at full size, recomputed while everything else is still kept.
        x = checkpointed(self.up4.first, x, x1, owner=self.up4)
        x = checkpointed(self.up4.conv.second, x, owner=self.up4)
        return self.outc(x)


def build(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UNet:
    """Return the U-Net of a configuration with these tensors; see `unet.network.Kind`.

    Raises:
        WeightsError: The tensors do not fit the configuration.
    """
    try:
        with torch.device("meta"):
            model = UNet(**configuration)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{dict(configuration)} is not a valid U-Net configuration; convert the checkpoint again"
        ) from error
    load_tensors(model, tensors, described=f"a U-Net of {dict(configuration)}")
    return model
