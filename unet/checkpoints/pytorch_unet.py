"""From a checkpoint of a Pytorch-UNet, saved in any way, to a weights file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskfleet.unet.checkpoints.files import Checkpoint, opened
from maskfleet.unet.checkpoints.states import State, states
from maskfleet.unet.checkpoints.tensors import StoredTensor, read
from maskfleet.unet.model import build
from maskfleet.unet.network import WeightsError
from maskfleet.unet.weights import Normalize, checked, save

ORIGIN = "Pytorch-UNet checkpoint"
"""The `origin` in the metadata of converted weights."""

_FIRST = ("inc.double_conv.0.weight", "inc.conv.conv.0.weight")
"""First tensor of a Pytorch-UNet, by today's name and by that of release 1."""

_RELEASE_1 = (
    (re.compile(r"^inc\.conv\.conv\."), "inc.double_conv."),
    (re.compile(r"^(down\d+)\.mpconv\.1\.conv\."), r"\1.maxpool_conv.1.double_conv."),
    (re.compile(r"^(up\d+)\.conv\.conv\."), r"\1.conv.double_conv."),
)
"""Names of release 1, and today's."""


@dataclass(frozen=True)
class _Found:
    """A Pytorch-UNet in a checkpoint.

    Attributes:
        name: What `--key` calls it.
        tensors: Its tensors, named as Pytorch-UNet names them.
        mask_values: Pixel values of its classes, or None if the checkpoint states none.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    mask_values: Any


def convert(
    checkpoint: bytes, *, key: str | None = None, normalize: Normalize | None = None, scale: float | None = None
) -> bytes:
    """Convert a checkpoint of a Pytorch-UNet of any release to a safetensors file.

    The network is found under any keys and prefixes: nested state dicts, Lightning, DataParallel, compiled or whole
    modules, TorchScript, safetensors. Channels, classes, width and up-sampling follow from the shapes. Releases 1 and
    2 have biases in the 3×3 convolutions. Each bias is folded into the batch normalisation behind it
    (`running_mean -= bias`), for the same function.

    Args:
        checkpoint: Bytes of the checkpoint.
        key: Name of the network, such as "model_ema", if the checkpoint holds several that differ.
        normalize: See `Weights.normalize`. Pytorch-UNet's own training does not normalise.
        scale: Scale of the images in training, stored in the metadata. Pytorch-UNet's default is 0.5.

    Raises:
        WeightsError: The file is no checkpoint, or holds no Pytorch-UNet, or several.
    """
    tensors, mask_values = _chosen(opened(checkpoint), key)
    for name in [name for name in tensors if _is_legacy_bias(name)]:
        prefix, position, _ = name.rsplit(".", 2)
        norm = f"{prefix}.{int(position) + 1}.running_mean"
        if norm not in tensors or tensors[norm].shape != tensors[name].shape:
            raise WeightsError(f"tensor {name} has no batch normalisation behind it; use a complete checkpoint")
        tensors[norm] = tensors[norm] - tensors.pop(name)
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    configuration = _configuration(tensors)
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


def _configuration(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first, last = tensors[_FIRST[0]], tensors.get("outc.conv.weight")
    if last is None:
        raise WeightsError("tensor outc.conv.weight is missing; use a complete checkpoint")
    if first.ndim != 4 or last.ndim != 4:
        raise WeightsError("the network is not two-dimensional; maskfleet segments images, not volumes")
    levels = sum(f"down{level}.maxpool_conv.1.double_conv.0.weight" in tensors for level in range(1, 10))
    if levels != 4:
        raise WeightsError(f"the network has {levels} levels; maskfleet runs Pytorch-UNet's four")
    return {
        "n_channels": first.shape[1],
        "n_classes": last.shape[0],
        "bilinear": "up1.up.weight" not in tensors,
        "width": first.shape[0],
    }


def _chosen(checkpoint: Checkpoint, key: str | None) -> tuple[dict[str, Tensor], tuple[Any, ...] | None]:
    """Return the tensors and the mask values of the one network that is meant."""
    seen = list(states(checkpoint.value))
    found = [network for state in seen for network in _networks(state, _mask_values(checkpoint.value))]
    if not found:
        raise WeightsError(_other(seen))
    named = found if key is None else [network for network in found if network.name == key]
    if not named:
        raise WeightsError(f"the checkpoint holds no network {key!r}; give one of {_list(found)} to --key")
    tensors = [read(dict(network.tensors), checkpoint.storage) for network in named]
    if any(not _equal(tensors[0], others) for others in tensors[1:]):
        raise WeightsError(
            f"the checkpoint holds {len(named)} networks that differ; choose one with --key: {_list(named)}"
        )
    return tensors[0], _checked_values(named[0].mask_values)


def _networks(state: State, mask_values: Any) -> Iterator[_Found]:
    """Yield the networks of a state dict, one for each prefix."""
    for name in state.tensors:
        for first in _FIRST:
            if name != first and not name.endswith(f".{first}"):
                continue
            prefix = name.removesuffix(first)
            tensors = {
                _today(other.removeprefix(prefix)): tensor
                for other, tensor in state.tensors.items()
                if other.startswith(prefix)
            }
            label = f"{state.path}.{prefix}".strip(".")
            yield _Found(label, tensors, state.others.get("mask_values", mask_values))


def _today(name: str) -> str:
    """Return today's name of a tensor of release 1."""
    for old, new in _RELEASE_1:
        name = old.sub(new, name)
    return name


def _mask_values(value: Any) -> Any:
    return value.get("mask_values") if isinstance(value, dict) else None


def _checked_values(values: Any) -> tuple[Any, ...] | None:
    """Return the pixel values of the classes: numbers, or colours as lists of three."""
    if values is None:
        return None
    colours = [list(value) if isinstance(value, list | tuple) else [value] for value in _listed(values)]
    if not colours or any(type(number) is not int for colour in colours for number in colour):
        raise WeightsError("mask_values is no list of pixel values; correct it in the checkpoint")
    return tuple(colour if len(colour) > 1 else colour[0] for colour in colours)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else []


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _list(found: list[_Found]) -> str:
    return ", ".join(network.name or '""' for network in found)


def _other(seen: list[State]) -> str:
    """Return why a checkpoint holds no network of ours, as a message."""
    names = max((list(state.tensors) for state in seen), key=len, default=[])
    if not names:
        return "the checkpoint holds no tensors; save the network with torch.save(model.state_dict(), path)"
    return (
        f"the checkpoint holds another network than a Pytorch-UNet, with {len(names)} tensors, the first named "
        f"{names[0]!r}; maskfleet converts Pytorch-UNets"
    )


def _is_legacy_bias(name: str) -> bool:
    return name.endswith((".double_conv.0.bias", ".double_conv.3.bias"))
