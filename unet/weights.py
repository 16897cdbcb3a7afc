"""Weights as files: safetensors with the network's configuration inside, and the way there from a checkpoint.

Takes and gives bytes, so it needs no storage. Only `convert` ever reads a pickle, and only with
`weights_only=True`.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskfleet.unet.ensemble import Ensemble, Views
from maskfleet.unet.model import UNet

FORMAT = "maskfleet.unet/1"
BUILTIN = ("nuclei",)
"""Names of the models in this package."""

CHECKPOINT = "Pytorch-UNet checkpoint"
"""The `origin` in the metadata of converted weights."""

_CONFIGURATION = ("n_channels", "n_classes", "bilinear", "width")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


Normalize = tuple[tuple[float, ...], tuple[float, ...]]


class WeightsError(ValueError):
    """The weights cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Weights:
    """A network with what belongs to it.

    Attributes:
        model: The network or networks, fp32, on the CPU, in eval mode.
        id: Content id, 64 hexadecimal digits: equal for equal tensors, configuration and mask values,
            whatever else the file's metadata say.
        mask_values: The pixel value that a mask shows for each class (an int, or a list of three for
            RGB), or None where the file states none.
        normalize: Mean and standard deviation of each channel, in [0, 1], that the network was trained with;
            None where it was trained on [0, 1] itself.
        metadata: The rest of the file's metadata, such as scores and data.
    """

    model: UNet | Ensemble
    id: str
    mask_values: tuple[Any, ...] | None = None
    normalize: Normalize | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def save(
    model: UNet,
    *,
    mask_values: tuple[Any, ...] | None = None,
    normalize: Normalize | None = None,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """A safetensors file of a network.

    Args:
        model: The network to save.
        mask_values: See `Weights.mask_values`; one per class.
        normalize: See `Weights.normalize`.
        metadata: More to keep in the file's metadata, text to text.
        dtype: The floating-point type in the file; integers stay as they are.
    """
    header = {name: str(value) for name, value in (metadata or {}).items()}
    header |= {name: json.dumps(getattr(model, name)) for name in _CONFIGURATION}
    header["format"] = FORMAT
    if mask_values is not None:
        header["mask_values"] = json.dumps(list(mask_values))
    if normalize is not None:
        header["normalize"] = json.dumps(normalize)
    tensors = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    return _in_order(safetensors.torch.save(tensors, header))


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata in the order of their names: safetensors writes them in any."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def load(data: bytes) -> Weights:
    """The network in a safetensors file.

    Raises:
        WeightsError: Not a safetensors file, no U-Net of this package, or tensors that do not fit
            the configuration (the first that does not is named).
    """
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise WeightsError(
            "these weights are a PyTorch checkpoint, a pickle, which a job never opens; "
            "run 'maskfleet convert model.pth model.safetensors' once and name the result"
        )
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"not a safetensors file ({error}); convert a checkpoint with 'maskfleet convert'"
        ) from error
    header = _header(data)
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"the safetensors file holds no '{FORMAT}' network (its format is {header.get('format', 'not stated')!r}); "
            "make one with 'maskfleet convert'"
        )
    try:
        configuration = {name: json.loads(header.pop(name)) for name in _CONFIGURATION}
        mask_values = json.loads(header.pop("mask_values", "null"))
        normalize = _checked(json.loads(header.pop("normalize", "null")), configuration["n_channels"])
    except (KeyError, json.JSONDecodeError) as error:
        raise WeightsError(f"the file's metadata lack a readable {error}; convert the checkpoint again") from error
    header.pop("format")
    model = _build(configuration, tensors)
    values = None if mask_values is None else tuple(mask_values)
    return Weights(model, _content_id(configuration, values, normalize, tensors), values, normalize, header)


def _checked(normalize: Any, n_channels: int) -> Normalize | None:
    if normalize is None:
        return None
    mean, std = (tuple(float(value) for value in values) for values in normalize)
    if len(mean) != n_channels or len(std) != n_channels or min(std) <= 0:
        raise WeightsError(
            f"mean and standard deviation must be {n_channels} numbers each, the latter above 0, got {normalize}; "
            "convert the checkpoint again with --mean and --std"
        )
    return mean, std


def together(members: Sequence[Weights], views: Views) -> Weights:
    """Several weights, or several views of an image, as one network.

    Raises:
        WeightsError: They differ in channels, classes, mask values or normalisation.
    """
    first = members[0]
    if len(members) == 1 and views == "off":
        return first
    for name, value in (("mask values", "mask_values"), ("normalisation", "normalize")):
        if len({json.dumps(getattr(member, value)) for member in members}) > 1:
            raise WeightsError(f"the networks of an ensemble must have the same {name}; convert them alike")
    try:
        model = Ensemble([member.model for member in members if isinstance(member.model, UNet)], views)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    ids = [member.id for member in members]
    together_id = ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()
    metadata = dict(first.metadata) if len(ids) == 1 else {"members": " ".join(ids)}
    return Weights(model, together_id, first.mask_values, first.normalize, metadata)


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))


def _build(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UNet:
    with torch.device("meta"):
        model = UNet(**configuration)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise WeightsError(f"tensor {name} is missing; this is not a complete U-Net of {dict(configuration)}")
        if name not in expected:
            raise WeightsError(f"tensor {name} belongs to no U-Net of {dict(configuration)}")
        if tensors[name].shape != expected[name].shape:
            raise WeightsError(
                f"tensor {name} has the shape {tuple(tensors[name].shape)}; "
                f"a U-Net of {dict(configuration)} needs {tuple(expected[name].shape)}"
            )
        if tensors[name].is_floating_point():
            if tensors[name].dtype not in _DTYPES:
                raise WeightsError(f"tensor {name} is {tensors[name].dtype}; save it as float32, float16 or bfloat16")
            if not tensors[name].isfinite().all():
                raise WeightsError(f"tensor {name} holds values that are not finite; use an earlier checkpoint")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    model.load_state_dict(floats, assign=True)
    return model.requires_grad_(False).eval()


def _content_id(
    configuration: Mapping[str, Any],
    mask_values: tuple[Any, ...] | None,
    normalize: Normalize | None,
    tensors: Mapping[str, Tensor],
) -> str:
    parts = [dict(configuration), mask_values, *([normalize] if normalize else [])]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def builtin(name: str) -> bytes:
    """The safetensors file of a built-in model (one of `BUILTIN`)."""
    return (resources.files("maskfleet.unet") / "models" / f"{name}.safetensors").read_bytes()


def convert(checkpoint: bytes, *, normalize: Normalize | None = None, scale: float | None = None) -> bytes:
    """A Pytorch-UNet checkpoint (`.pth`) of any release as a safetensors file.

    Channels, classes, width and up-sampling follow from the shapes. Releases 1 and 2 carry biases in
    the 3×3 convolutions; each is folded into the batch normalisation behind it
    (`running_mean -= bias`), which gives the same function.

    Args:
        checkpoint: The file.
        normalize: See `Weights.normalize`; Pytorch-UNet's own training knows none.
        scale: That it was trained at, for the doctor; Pytorch-UNet's default is 0.5.

    Raises:
        WeightsError: Not such a checkpoint; or one that needs arbitrary code to load.
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
        raise WeightsError(f"tensor {error} is missing: this is not a Pytorch-UNet checkpoint") from error
    configuration = {
        "n_channels": first.shape[1],
        "n_classes": last.shape[0],
        "bilinear": "up1.up.weight" not in tensors,
        "width": first.shape[0],
    }
    if mask_values is not None and len(mask_values) != max(2, configuration["n_classes"]):
        raise WeightsError(
            f"mask_values names {len(mask_values)} classes and the network has {configuration['n_classes']}; "
            "was the checkpoint edited?"
        )
    return save(
        _build(configuration, tensors),
        mask_values=mask_values,
        normalize=_checked(normalize, configuration["n_channels"]),
        metadata={"origin": CHECKPOINT} | ({} if scale is None else {"scale": f"{scale:g}"}),
    )


def _read_checkpoint(checkpoint: bytes) -> tuple[dict[str, Tensor], tuple[Any, ...] | None]:
    try:
        state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "the checkpoint holds more than tensors, or is no checkpoint, and is not opened; "
            "save it with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # bytes that are no pickle make the unpickler raise anything
        raise WeightsError(f"not a readable PyTorch checkpoint ({type(error).__name__}); save it again") from error
    if not isinstance(state, Mapping):
        raise WeightsError("the checkpoint is no state dict; save it with torch.save(model.state_dict(), path)")
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    mask_values = state.pop("mask_values", None)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"entry {name} is no tensor; save the checkpoint with torch.save(model.state_dict(), path)"
            )
    return state, None if mask_values is None else tuple(mask_values)


def _is_legacy_bias(name: str) -> bool:
    return name.endswith((".double_conv.0.bias", ".double_conv.3.bias"))
