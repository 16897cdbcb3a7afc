"""A network that computes nothing, so that everything around it can be measured."""

from torch import Tensor, nn


class Identity(nn.Module):
    """The image's first channels as logits.

    Args:
        n_channels: Of the images, at least as many as classes.
        n_classes: Of the logits.
    """

    bilinear = False

    def __init__(self, n_channels: int = 3, n_classes: int = 2) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.n_classes = n_classes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W) of images."""
        return x_BCHW[:, : self.n_classes]
