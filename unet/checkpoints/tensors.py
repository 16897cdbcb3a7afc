"""The tensors of a PyTorch checkpoint: records of a pickle that name a storage, and views of that storage's bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from maskfleet.unet.checkpoints.pickled import Global, Persistent, Record
from maskfleet.unet.network import WeightsError

_STORAGES: Final = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""Types of storages by the class that a pickle names, in `torch`, `torch.cuda` or `torch.storage`."""

_WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_PLAIN, _TYPED = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"

Bytes = Callable[[str], bytes | None]
"""Returns the bytes of a storage by its key, or None if the file has no such storage."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint, not read yet.

    Attributes:
        key: Key of its storage.
        dtype: Its type.
        offset: Offset of its first element, in elements.
        shape: Its shape.
        strides: Its strides, in elements.
    """

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements of the storage up to the tensor's last one."""
        if 0 in self.shape:
            return self.offset
        return self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) + 1

    @property
    def size(self) -> int:
        """Size of its elements in bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def tensor_of(value: Any) -> StoredTensor | None:
    """Return a stored tensor, or the one that a record asks for; None for anything else."""
    if isinstance(value, StoredTensor):
        return value
    for _ in range(4):  # a parameter of a subclass's tensor
        if not isinstance(value, Record):
            return None
        if value.of in _WRAPPERS and value.arguments:
            value = value.arguments[0]
        elif value.of == _SUBCLASS and len(value.arguments) > 2 and isinstance(value.arguments[0], Global):
            inner = value.arguments[2]
            value = Record(value.arguments[0].name, inner if isinstance(inner, tuple) else ())
        else:
            break
    return _plain(value) if value.of in (_PLAIN, _TYPED) else None


def storage_of(reference: Persistent) -> tuple[str, torch.dtype | None]:
    """Return key and type of a storage; "" and None if a reference is to something else."""
    match reference.id:
        case ("storage", Global(name), str(key), _, _) | ("storage", Global(name), str(key), _, _, None):
            return key, _STORAGES.get(name.rpartition(".")[2])
        case _:
            return "", None


def _plain(record: Record) -> StoredTensor | None:
    arguments: tuple[Any, ...] = (*record.arguments, None, None, None, None)
    storage, offset, stated_shape, stated_strides, *rest = arguments
    shape, strides = _numbers(stated_shape), _numbers(stated_strides)
    if not isinstance(storage, Persistent) or shape is None or strides is None or len(shape) != len(strides):
        return None
    key, dtype = storage_of(storage)
    if record.of == _TYPED:
        stated = rest[2] if len(rest) > 2 else None
        dtype = getattr(torch, stated.name.removeprefix("torch."), None) if isinstance(stated, Global) else None
    if not key or not isinstance(dtype, torch.dtype) or type(offset) is not int or offset < 0:
        return None
    return StoredTensor(key, dtype, offset, shape, strides)


def _numbers(value: Any) -> tuple[int, ...] | None:
    """Return a shape or strides; None if they are none. `torch.Size` is a record around a tuple."""
    if isinstance(value, Record) and value.of == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**48 for n in value):
        return None
    return value


def read(tensors: dict[str, StoredTensor], storage: Bytes) -> dict[str, Tensor]:
    """Read tensors. Those that share a storage share memory.

    Raises:
        WeightsError: A storage is missing, or smaller than a tensor in it, or serves several of its size that differ.
    """
    stored: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.key not in stored:
            data = storage(tensor.key)
            if data is None:
                raise WeightsError(f"the data of tensor {name} are missing; copy the file again")
            stored[tensor.key] = _bytes(data)
        available = stored[tensor.key].numel() // tensor.dtype.itemsize
        if tensor.extent > available or tensor.size > stored[tensor.key].numel():
            raise WeightsError(f"tensor {name} is larger than its data; copy the file again")
        whole = stored[tensor.key][: available * tensor.dtype.itemsize].view(tensor.dtype)
        found[name] = torch.as_strided(whole, tensor.shape, tensor.strides, tensor.offset)
    if sum(tensor.size for tensor in set(tensors.values())) > 2 * sum(data.numel() for data in stored.values()):
        raise WeightsError("its tensors share their data too often; save copies of them")
    return found


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
