"""What inference needs of a network, and the table of the kinds of networks.

Knows no kind by itself. Whatever a network's geometry is (where its tiles may start, how far a logit sees, how small
an image may be), the network states it; nothing else assumes it.

Shape letters used in all of `unet`: B images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

KINDS = {"unet": "maskfleet.unet.model", "program": "maskfleet.unet.programs.network"}
"""Kinds of networks in weights files. Each names the module of its `Kind`. A file that names no kind holds a "unet"."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class WeightsError(ValueError):
    """The weights cannot be used; the message states the reason and the remedy."""


class Network(Protocol):
    """A convolutional network that labels every pixel. In practice an `nn.Module`; its methods here are that class's.

    `Network(x)` takes floating-point pixels (B, n_channels, H, W) and returns logits (B, n_classes, H, W).
    """

    @property
    def n_channels(self) -> int:
        """Channels of the input."""

    @property
    def n_classes(self) -> int:
        """Logits per pixel. One is a foreground logit for a sigmoid; several are one logit per class."""

    @property
    def grid(self) -> int:
        """Period in px of the network's shift equivariance: tiles must start at multiples of it."""

    @property
    def halo(self) -> int:
        """Border of a tile in px whose logits are not the whole image's, if the tile starts on the grid.

        With `untileable`, tiles with this border approximate the whole image's logits.
        """

    @property
    def untileable(self) -> str | None:
        """Why no tile gives the whole image's logits, as a clause ("it ..."); None if stitched tiles are exact."""

    @property
    def min_side(self) -> int:
        """Smallest height and width of an image in px."""

    def __call__(self, x_BCHW: Tensor, /) -> Tensor: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True, /) -> Self: ...

    def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...


class StoredNetwork(Network, Protocol):
    """A network that can be written to a weights file."""

    @property
    def kind(self) -> str:
        """Its entry in `KINDS`."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Everything but its tensors: one JSON value for each of the kind's `CONFIGURATION`."""


class Kind(Protocol):
    """The module of one kind of networks."""

    @property
    def CONFIGURATION(self) -> tuple[str, ...]:
        """Names of the metadata that configure a network."""

    def build(self, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StoredNetwork:
        """Return the network of a configuration with these tensors, fp32, on the CPU, in eval mode.

        Raises:
            WeightsError: The configuration is none of this kind, or the tensors do not fit it.
        """


def kind_of(name: str) -> Kind:
    """Return the module of a kind of networks.

    Raises:
        WeightsError: There is no such kind.
    """
    if name not in KINDS:
        raise WeightsError(
            f"the weights contain a network of the unknown kind {name!r}; this release knows {', '.join(KINDS)}; "
            "update maskfleet or convert the network again"
        )
    return cast("Kind", import_module(KINDS[name]))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, described: str) -> None:
    """Give a module on the "meta" device its tensors, floating-point ones in fp32, and put it in eval mode.

    Args:
        model: Network without data.
        tensors: Its state dict, in any floating-point type.
        described: The network in words, with an article, for messages.

    Raises:
        WeightsError: A tensor is missing, unknown, not finite, or of another shape. The first such tensor is named.
    """
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise WeightsError(f"tensor {name} is missing, but {described} has it; use complete weights")
        if name not in expected:
            raise WeightsError(f"unexpected tensor {name}: {described} does not have it; use other weights")
        if tensors[name].shape != expected[name].shape:
            raise WeightsError(
                f"tensor {name} has the shape {tuple(tensors[name].shape)}, but {described} needs "
                f"{tuple(expected[name].shape)}; use other weights"
            )
        if tensors[name].is_floating_point():
            if tensors[name].dtype not in _DTYPES:
                raise WeightsError(f"tensor {name} is {tensors[name].dtype}; save it as float32, float16 or bfloat16")
            if not tensors[name].isfinite().all():
                raise WeightsError(f"tensor {name} contains NaN or infinity; use an earlier checkpoint")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    model.load_state_dict(floats, assign=True)
    model.requires_grad_(False).eval()
