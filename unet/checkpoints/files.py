"""The files in which checkpoints come: `torch.save`'s archive and its older form, TorchScript, safetensors.

Each gives a value, as the pickle states it, and the bytes of its storages. Nothing in a file is imported or called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import safetensors
import safetensors.torch
import torch

from maskfleet.unet.checkpoints.archive import DAMAGED, Archive
from maskfleet.unet.checkpoints.pickled import read
from maskfleet.unet.checkpoints.tensors import Bytes, StoredTensor, storage_of
from maskfleet.unet.network import WeightsError
from maskfleet.unet.weights import is_safetensors

_PICKLE_BYTES = 64 * 2**20
"""Largest pickle in an archive. The tensors' data are not part of it."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a file by `torch.save` before PyTorch 1.6 (torch/serialization.py)."""

_SAVE = "save one with torch.save(model.state_dict(), path)"

_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    (b"\x1f\x8b", "compressed by gzip; decompress it first"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with 'git lfs pull'"),
    (b"<", "a web page or XML; download the file itself"),
)
"""Beginnings of other files, and what they are."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        value: What was saved, with records in place of objects.
        storage: Returns the bytes of a storage.
    """

    value: Any
    storage: Bytes


def opened(data: bytes) -> Checkpoint:
    """Read a checkpoint's structure. Its tensors are read when they are asked for.

    Raises:
        WeightsError: The file is none, or is damaged.
    """
    for is_kind, read_kind in _KINDS:
        if is_kind(data):
            return read_kind(data)
    for beginning, name in _FOREIGN:
        if data.startswith(beginning):
            raise WeightsError(f"the file is no PyTorch checkpoint, but {name}")
    raise WeightsError(f"the file is no PyTorch checkpoint; {_SAVE}")


def _archive(data: bytes) -> Checkpoint:
    """Read an archive of `torch.save` or of TorchScript. Both hold `data.pkl`, and a file for each storage."""
    archive = Archive(data)
    folder = archive.folder_of("data.pkl")
    if folder is None:
        raise WeightsError(f"the archive holds no checkpoint; {_SAVE}")
    if (archive.read(f"{folder}byteorder") or b"little") != b"little":
        raise WeightsError("the checkpoint was saved on a big-endian machine; save it on another")
    if archive.sizes[f"{folder}data.pkl"] > _PICKLE_BYTES:
        raise WeightsError("the checkpoint holds more than 64 MiB beside its tensors; save the state dict alone")
    value, _ = read(BytesIO(archive.read(f"{folder}data.pkl") or b""))
    return Checkpoint(value, lambda key: archive.read(f"{folder}data/{key}"))


def _legacy(data: bytes) -> Checkpoint:
    """Read a file of `torch.save` before PyTorch 1.6: five pickles, then the storages one after the other."""
    file = BytesIO(data)
    magic, _ = read(file)
    if magic != _LEGACY_MAGIC:
        raise WeightsError(f"the file is a pickle, but no PyTorch checkpoint; {_SAVE}")
    read(file)  # version
    system, _ = read(file)
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise WeightsError("the checkpoint was saved on a big-endian machine; save it on another")
    value, references = read(file)
    keys, _ = read(file)
    dtypes = dict(storage_of(reference) for reference in references)
    stored: dict[str, bytes] = {}
    for key in keys if isinstance(keys, list) else []:
        count, dtype = int.from_bytes(file.read(8), "little"), dtypes.get(str(key))
        length = 0 if dtype is None else count * dtype.itemsize
        if file.tell() + length > len(data):
            raise WeightsError(DAMAGED)
        stored[str(key)] = file.read(length)
    return Checkpoint(value, stored.get)


def _safetensors(data: bytes) -> Checkpoint:
    try:
        tensors = {name: tensor.contiguous() for name, tensor in safetensors.torch.load(data).items()}
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(DAMAGED) from error
    value = {
        name: StoredTensor(name, tensor.dtype, 0, tuple(tensor.shape), tensor.stride())
        for name, tensor in tensors.items()
    }
    return Checkpoint(value, lambda key: tensors[key].flatten().view(torch.uint8).numpy().tobytes())


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Checkpoint]], ...] = (
    (is_safetensors, _safetensors),
    (lambda data: data[:4] == b"PK\x03\x04", _archive),
    (lambda data: data[:1] == b"\x80", _legacy),
)
"""Kinds of files: whether one begins so, and its reader. Safetensors go first: their length may look like others."""
