"""From a network in memory, of any library, to a weights file. Needs torch alone."""

import io
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskfleet.unet.network import WeightsError
from maskfleet.unet.programs.network import Output, Padding, ProgramNetwork
from maskfleet.unet.programs.pt2 import read_pt2
from maskfleet.unet.weights import Normalize, checked, load, save

ORIGIN = "exported network"
"""The `origin` in the metadata of exported networks."""

_TOLERANCE = 1e-4
"""Largest difference of the program's output from the network's own, as a share of its largest."""


def export_network(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    channels: int,
    multiple: int = 32,
    padding: Padding = "reflect",
    output: Output = "logits",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask_values: Sequence[Any] | None = None,
) -> str:
    """Write a network of any library as a weights file that `maskfleet run` takes.

    The network is traced by `torch.export` for any number of images and any sides that are multiples of `multiple`. It
    must consist of operators that maskfleet runs; the first other one is named. The file holds them as data: nothing of
    the model's code goes into it. The program is run on two images and compared with the model.

    Args:
        model: Network from pixels (B, channels, H, W), float32, to one logit or probability per class and pixel,
            (B, classes, H, W). A copy in eval mode is exported.
        path: Safetensors file to write.
        channels: Channels of the images.
        multiple: Number of px of which the network needs multiples: 2 to the number of its halvings.
        padding: How images of other sides are extended at their bottom and right; their masks are cut back.
        output: Whether the network returns logits or probabilities (a softmax, or a sigmoid of one class).
        mean: Mean of each channel in [0, 1] that was subtracted in training; None for none.
        std: Standard deviation of each channel that was divided by in training; None for none.
        mask_values: Pixel value of each class in a mask; see `Weights.mask_values`.

    Returns:
        The weights' content id, 64 hexadecimal digits.

    Raises:
        WeightsError: The network cannot be exported, or its program gives other logits.
        ValueError: Only one of `mean` and `std` is given.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together; give both or neither")
    was_training = model.training
    model.eval()
    try:
        exported = read_pt2(_pt2(model, channels, multiple))
        network = ProgramNetwork(
            exported.program, exported.tensors, n_channels=channels, multiple=multiple, padding=padding, output=output
        )
        _compare(model, network, channels, multiple)
    finally:
        model.train(was_training)
    normalize: Normalize | None = None
    if mean is not None and std is not None:
        normalize = checked((tuple(mean), tuple(std)), channels)
    values = None if mask_values is None else tuple(mask_values)
    data = save(network, normalize=normalize, mask_values=values, metadata={"origin": ORIGIN})
    with open(path, "wb") as file:
        file.write(data)
    return load(data).id


def _pt2(model: nn.Module, channels: int, multiple: int) -> bytes:
    """Return the model as a .pt2, for any number of images and all multiples of `multiple`."""
    height, width = torch.export.Dim("height", min=1, max=4096), torch.export.Dim("width", min=1, max=4096)
    images = torch.export.Dim("images", min=1, max=4096)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    example = (torch.rand(2, channels, 4 * multiple, 6 * multiple, device=device),)
    sizes = ({0: images, 2: multiple * height, 3: multiple * width},)
    try:
        with torch.no_grad():
            program = torch.export.export(model, example, dynamic_shapes=sizes)
    except Exception as error:  # whatever the model's own code raises while it is traced
        raise WeightsError(
            f"torch.export cannot trace {type(model).__name__} for images of any size ({type(error).__name__}); "
            "export it with a larger multiple, or write its forward method without conditions on sizes"
        ) from error
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _compare(model: nn.Module, network: ProgramNetwork, channels: int, multiple: int) -> None:
    """Raise if the program gives other values than the model, on images of two sizes."""
    generator = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    for count, height, width in ((1, 4, 3), (2, 5, 4)):
        images = torch.rand(count, channels, height * multiple, width * multiple, generator=generator)
        with torch.no_grad():
            expected: Tensor = model(images.to(device)).float().cpu()
            found = network.program.run(images, dict(network.named_buffers()))
        if expected.shape != found.shape or (expected - found).abs().max() > _TOLERANCE * expected.abs().max():
            raise WeightsError(
                f"the exported program gives other values than {type(model).__name__} for images of {width * multiple}×"
                f"{height * multiple} px; write its forward method without conditions on sizes"
            )
