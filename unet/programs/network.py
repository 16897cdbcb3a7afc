"""A network that is a program: any network that was exported, run by its operators alone."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskfleet.unet.network import WeightsError
from maskfleet.unet.programs.program import Program
from maskfleet.unet.programs.reach import Unproven, reach_of

CONFIGURATION = ("program", "n_channels", "extent", "output")
"""Metadata that configure a program: its operators, its input and its output."""

Padding = Literal["reflect", "replicate", "zero"]
Output = Literal["logits", "probabilities"]

_PADDINGS: dict[str, str] = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}
_TINY = 1e-7
_LARGEST = 2**16
"""Largest number of elements of a value for each px of the input."""


class ProgramNetwork(nn.Module):
    """A network given by a program.

    Args:
        program: Its operators.
        tensors: Its tensors by their names in the program.
        n_channels: Channels of the input.
        multiple: Number of px of which the program's input has multiples.
        padding: How other images are extended at their bottom and right; the logits are cut back to the image.
        output: Whether the program returns logits or probabilities.

    Attributes:
        n_classes: Logits per pixel.
        grid: See `unet.network.Network`; proven from the program.
        halo: Likewise.
        untileable: Why no tiles are proven, or None.
        min_side: Shortest side of an image in px.

    Raises:
        WeightsError: The program does not run, does not return one map of logits, or needs too much memory.
    """

    kind: ClassVar[str] = "program"

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        *,
        n_channels: int,
        multiple: int,
        padding: Padding = "reflect",
        output: Output = "logits",
    ) -> None:
        super().__init__()
        self.program, self.n_channels, self.multiple = program, n_channels, multiple
        self.padding, self.output = padding, output
        for name in program.constants():
            if name not in tensors:
                raise WeightsError(f"tensor {name} of the program is missing; convert the network again")
            self.register_buffer(name, tensors[name].float() if tensors[name].is_floating_point() else tensors[name])
        if unknown := sorted(tensors.keys() - set(program.constants())):
            raise WeightsError(
                f"unexpected tensor {unknown[0]}: the program does not use it; convert the network again"
            )
        self.n_classes, self.min_side = self._checked()
        self.grid, self.halo, self.untileable = self._tiles()
        self.requires_grad_(False).eval()

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The arguments of `build`, as JSON values."""
        extent = {"multiple": self.multiple, "padding": self.padding}
        values = (self.program.to_json(), self.n_channels, extent, self.output)
        return dict(zip(CONFIGURATION, values, strict=True))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            x_BCHW: Floating-point pixels, (B, n_channels, H, W), H and W at least `min_side`.

        Returns:
            Logits, (B, n_classes, H, W).

        Raises:
            ValueError: A side is shorter than `min_side`.
        """
        height, width = x_BCHW.shape[-2:]
        if min(height, width) < self.min_side:
            raise ValueError(
                f"the network needs sides of at least {self.min_side} px, got {width}×{height}; enlarge the image"
            )
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            x_BCHW = F.pad(x_BCHW, (0, right, 0, below), _PADDINGS[self.padding])
        result_BKHW: Tensor = self.program.run(x_BCHW, cast("Mapping[str, Tensor]", self._buffers))
        result_BKHW = result_BKHW[:, :, :height, :width]
        if self.output == "logits":
            return result_BKHW
        if self.n_classes == 1:
            return result_BKHW.clamp(_TINY, 1 - _TINY).logit()
        return result_BKHW.clamp(min=_TINY).log()

    def _checked(self) -> tuple[int, int]:
        """Run the program on shapes alone. Return its classes and the shortest side that runs."""
        reason: Exception | None = None
        side = self.multiple
        while side <= 1024:
            try:
                return self._classes_of(side), side
            except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
                if isinstance(error, WeightsError):
                    raise
                reason, side = error, side * 2
        raise WeightsError("the program does not run on images of up to 1024 px; export the network again") from reason

    def _classes_of(self, side: int) -> int:
        x_BCHW = torch.empty(2, self.n_channels, side, 2 * side, device="meta")

        def small(_node: Any, _arguments: Any, _named: Any, results: Any) -> None:
            if any(isinstance(one, Tensor) and one.numel() > _LARGEST * 4 * side * side for one in results):
                raise WeightsError("the program makes values far larger than its image; export another network")

        found = self.program.run(x_BCHW, self._meta(), observed=cast("Any", small))
        if (
            not isinstance(found, Tensor)
            or found.ndim != 4
            or found.shape[0] != 2
            or found.shape[2:] != x_BCHW.shape[2:]
        ):
            shape = tuple(found.shape) if isinstance(found, Tensor) else "no tensor"
            raise WeightsError(
                f"the network makes {shape} of images {tuple(x_BCHW.shape)}, not (B, classes, H, W); "
                "resize its logits to the image in its forward method"
            )
        return int(found.shape[1])

    def _tiles(self) -> tuple[int, int, str | None]:
        try:
            found = reach_of(self.program, self._meta(), channels=self.n_channels, multiple=self.multiple)
        except Unproven as error:
            return self.multiple, -(-256 // self.multiple) * self.multiple, str(error)
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
            raise WeightsError(
                "the network runs on images of one size alone; export it with maskfleet.export_network"
            ) from error
        return found.grid, found.halo, None

    def _meta(self) -> dict[str, Tensor]:
        return {name: cast("Tensor", tensor).to("meta") for name, tensor in self._buffers.items()}


def build(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ProgramNetwork:
    """Return the network of a configuration with these tensors; see `unet.network.Kind`.

    Raises:
        WeightsError: The program is damaged, uses what is not allowed, or the tensors do not fit it.
    """
    program, channels, extent, output = (configuration[name] for name in CONFIGURATION)
    multiple, padding = (extent.get("multiple"), extent.get("padding")) if isinstance(extent, dict) else (None, None)
    if type(multiple) is not int or not 1 <= multiple <= 1024 or padding not in _PADDINGS:
        raise WeightsError(f"extent is {json.dumps(extent)}, not a multiple and a padding; convert the network again")
    if type(channels) is not int or not 1 <= channels <= 4096 or output not in ("logits", "probabilities"):
        raise WeightsError("the network's channels or output are not stated; convert it again")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"tensor {name} contains NaN or infinity; use an earlier checkpoint")
    return ProgramNetwork(
        Program.from_json(program), tensors, n_channels=channels, multiple=multiple, padding=padding, output=output
    )
