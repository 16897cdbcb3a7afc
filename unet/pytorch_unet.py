"""From a Pytorch-UNet checkpoint to a weights file. The one place that reads a pickle, with `weights_only=True`."""

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskfleet.unet.model import build
from maskfleet.unet.network import WeightsError
from maskfleet.unet.weights import Normalize, checked, save

ORIGIN = "Pytorch-UNet checkpoint"
"""The `origin` in the metadata of converted weights."""


def convert(checkpoint: bytes, *, normalize: Normalize | None = None, scale: float | None = None) -> bytes:
    """Convert a Pytorch-UNet checkpoint (`.pth`) of any release to a safetensors file.

    Channels, classes, width and up-sampling follow from the shapes. Releases 1 and 2 have biases in the 3×3
    convolutions. Each bias is folded into the batch normalisation behind it (`running_mean -= bias`), for the same
    function.

    Args:
        checkpoint: Bytes of the checkpoint.
        normalize: See `Weights.normalize`. Pytorch-UNet's own training does not normalise.
        scale: Scale of the images in training, stored in the metadata. Pytorch-UNet's default is 0.5.

    Raises:
        WeightsError: The file is no such checkpoint, or loading it would run code.
    """
    tensors, mask_values = _read_checkpoint(checkpoint)
    for name in [name for name in tensors if _is_legacy_bias(name)]:
        prefix, position, _ = name.rsplit(".", 2)
        norm = f"{prefix}.{int(position) + 1}.running_mean"
        tensors[norm] = tensors[norm] - tensors.pop(name)
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    try:
        first, last = tensors["inc.double_conv.0.weight"], tensors["outc.conv.weight"]
    except KeyError as error:
        raise WeightsError(
            f"tensor {error} is missing, so this is not a Pytorch-UNet checkpoint; use one from Pytorch-UNet"
        ) from error
    configuration = {
        "n_channels": first.shape[1],
        "n_classes": last.shape[0],
        "bilinear": "up1.up.weight" not in tensors,
        "width": first.shape[0],
    }
    if mask_values is not None and len(mask_values) != max(2, configuration["n_classes"]):
        raise WeightsError(
            f"mask_values names {len(mask_values)} classes, but the network has {configuration['n_classes']}; "
            "correct mask_values in the checkpoint"
        )
    return save(
        build(configuration, tensors),
        mask_values=mask_values,
        normalize=checked(normalize, configuration["n_channels"]),
        metadata={"origin": ORIGIN} | ({} if scale is None else {"scale": f"{scale:g}"}),
    )


def _read_checkpoint(checkpoint: bytes) -> tuple[dict[str, Tensor], tuple[Any, ...] | None]:
    try:
        state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "the file is not a checkpoint, or contains more than tensors; "
            "save one with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # the unpickler raises anything on bytes that are no pickle
        raise WeightsError(f"not a readable PyTorch checkpoint ({type(error).__name__}); save it again") from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            "the checkpoint is not a state dict (a mapping of tensors); "
            "save it with torch.save(model.state_dict(), path)"
        )
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    mask_values = state.pop("mask_values", None)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"entry {name} is not a tensor; save the checkpoint with torch.save(model.state_dict(), path)"
            )
    return state, None if mask_values is None else tuple(mask_values)


def _is_legacy_bias(name: str) -> bool:
    return name.endswith((".double_conv.0.bias", ".double_conv.3.bias"))
