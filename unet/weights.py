"""Weights as files: safetensors whose metadata state the network's kind and configuration.

Takes and returns bytes, so it needs no storage; `load_local` alone reads files. It never reads a pickle.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskfleet.unet.ensemble import Ensemble, Views
from maskfleet.unet.network import Network, StoredNetwork, WeightsError, kind_of
from maskfleet.unet.pixels.normalization import Normalization

FORMAT = "maskfleet.unet/1"
BUILTIN = ("nuclei",)
"""Names of the models in this package."""

_DEFAULT_KIND = "unet"

Normalize = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Weights:
    """A network and its accompanying settings.

    Attributes:
        model: The network or ensemble, fp32, on the CPU, in eval mode.
        id: Content id, 64 hexadecimal digits: equal for equal tensors, configuration, mask values and normalisation,
            whatever the other metadata.
        mask_values: Pixel value of each class in a mask (an int, or a list of three for RGB), or None if the file
            states none.
        normalize: Mean and standard deviation of each channel, in [0, 1], used in training; None if the network was
            trained on [0, 1] itself.
        input: Declared normalisation of every image, instead of `normalize`; None for [0, 1].
        metadata: Other metadata of the file, such as scores and data.
    """

    model: Network
    id: str
    mask_values: tuple[Any, ...] | None = None
    normalize: Normalize | None = None
    input: Normalization | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def save(
    model: StoredNetwork,
    *,
    mask_values: tuple[Any, ...] | None = None,
    normalize: Normalize | None = None,
    input: Normalization | None = None,  # noqa: A002 - the name of the metadata
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """Write a network as a safetensors file.

    Args:
        model: The network.
        mask_values: See `Weights.mask_values`; one per class.
        normalize: See `Weights.normalize`.
        input: See `Weights.input`.
        metadata: Further metadata, text to text.
        dtype: Floating-point type in the file; integers stay as they are.
    """
    header = {name: str(value) for name, value in (metadata or {}).items()}
    header |= {name: json.dumps(value) for name, value in model.configuration.items()}
    header["format"] = FORMAT
    if model.kind != _DEFAULT_KIND:
        header["kind"] = model.kind
    if mask_values is not None:
        header["mask_values"] = json.dumps(list(mask_values))
    if normalize is not None:
        header["normalize"] = json.dumps(normalize)
    if input is not None:
        header["input"] = json.dumps(input.table)
    tensors = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    return _in_order(safetensors.torch.save(tensors, header))


def _in_order(data: bytes) -> bytes:
    """Return the same file with its metadata sorted by name; safetensors writes them in any order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def load(data: bytes) -> Weights:
    """Read the network in a safetensors file.

    Raises:
        WeightsError: This is no safetensors file, holds no network of this package, or its tensors do not fit the
            configuration. The first unfit tensor is named.
    """
    if not is_safetensors(data) and data[:1] in (b"P", b"\x80"):
        raise WeightsError(
            "these weights are a PyTorch checkpoint (a pickle), and a job never loads pickles; "
            "convert them with 'maskfleet convert model.pth model.safetensors' and name the result"
        )
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            "not a safetensors file, or a damaged one; convert a checkpoint with 'maskfleet convert'"
        ) from error
    header = _header(data)
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"the safetensors file contains no '{FORMAT}' network (its format is "
            f"{header.get('format', 'not stated')!r}); make one with 'maskfleet convert'"
        )
    kind_name = header.pop("kind", _DEFAULT_KIND)
    kind = kind_of(kind_name)
    try:
        configuration = {name: json.loads(header.pop(name)) for name in kind.CONFIGURATION}
        mask_values = json.loads(header.pop("mask_values", "null"))
        stated = json.loads(header.pop("normalize", "null"))
        declared = json.loads(header.pop("input", "null"))
    except (KeyError, json.JSONDecodeError) as error:
        missing = f"no {error.args[0]!r}" if isinstance(error, KeyError) else "an unreadable value"
        raise WeightsError(f"the file's metadata has {missing}; convert the checkpoint again") from error
    header.pop("format")
    model = kind.build(configuration, tensors)
    normalize = checked(stated, model.n_channels)
    values = None if mask_values is None else tuple(mask_values)
    named = configuration if kind_name == _DEFAULT_KIND else configuration | {"kind": kind_name}
    input_ = None if declared is None else _declared(declared, model.n_channels)
    return Weights(model, _content_id(named, values, normalize, input_, tensors), values, normalize, input_, header)


def is_safetensors(data: bytes) -> bool:
    """Return whether a file begins as safetensors do: the length of a JSON object, and the object.

    Such a length may look like the beginning of an archive or a pickle.
    """
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def load_local(name: str | os.PathLike[str]) -> Weights:
    """Read a built-in model, or the network in a local safetensors file.

    Raises:
        FileNotFoundError: There is neither.
        WeightsError: See `load`.
    """
    if name in BUILTIN:
        return load(builtin(str(name)))
    try:
        with open(name, "rb") as file:
            return load(file.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"weights {name} do not exist; name a safetensors file or a built-in model ({', '.join(BUILTIN)})"
        ) from error
    except WeightsError as error:
        raise WeightsError(f"weights {name}: {error}") from error


def checked(normalize: Any, n_channels: int) -> Normalize | None:
    """Return a normalisation for this number of channels as tuples of floats.

    Raises:
        WeightsError: There are not as many numbers as channels, or a standard deviation is not above 0.
    """
    if normalize is None:
        return None
    mean, std = (tuple(float(value) for value in values) for values in normalize)
    if len(mean) != n_channels or len(std) != n_channels or min(std) <= 0:
        raise WeightsError(
            f"mean and standard deviation must be {n_channels} numbers each, the latter above 0, got {normalize}; "
            "convert the checkpoint again with --mean and --std"
        )
    return mean, std


def _declared(table: Any, n_channels: int) -> Normalization:
    try:
        declared = Normalization.of_table(table)
        misfit = declared.misfit(n_channels)
    except (ValueError, TypeError, AttributeError) as error:
        misfit = str(error)
    if misfit is not None:
        raise WeightsError(f"the normalisation of the input in the file's metadata is wrong ({misfit}); write it again")
    return declared


def together(members: Sequence[Weights], views: Views) -> Weights:
    """Return several weights, or several views of an image, as one network.

    Raises:
        WeightsError: They differ in channels, classes, mask values or normalisation.
    """
    first = members[0]
    if len(members) == 1 and views == "off":
        return first
    for name, value in (("mask values", "mask_values"), ("normalisation", "normalize"), ("normalisation", "input")):
        if len({repr(getattr(member, value)) for member in members}) > 1:
            raise WeightsError(f"the networks of an ensemble must have the same {name}; convert them alike")
    try:
        model = Ensemble([member.model for member in members], views)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    ids = [member.id for member in members]
    together_id = ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()
    metadata = dict(first.metadata) if len(ids) == 1 else {"members": " ".join(ids)}
    return Weights(model, together_id, first.mask_values, first.normalize, first.input, metadata)


def builtin(name: str) -> bytes:
    """Return the safetensors file of a built-in model, one of `BUILTIN`."""
    return (resources.files("maskfleet.unet") / "models" / f"{name}.safetensors").read_bytes()


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))


def _content_id(
    configuration: Mapping[str, Any],
    mask_values: tuple[Any, ...] | None,
    normalize: Normalize | None,
    declared: Normalization | None,
    tensors: Mapping[str, Tensor],
) -> str:
    parts = [
        dict(configuration),
        mask_values,
        *([normalize] if normalize else []),
        *([{"input": declared.table}] if declared else []),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
