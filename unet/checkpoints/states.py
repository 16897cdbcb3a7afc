"""State dicts in a checkpoint: mappings of names to tensors, wherever they lie, and modules that were saved whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maskfleet.unet.checkpoints.pickled import Record
from maskfleet.unet.checkpoints.tensors import StoredTensor, tensor_of

_DEPTH = 6
"""Levels of containers around a state dict."""

_MODULES = 32
"""Levels of modules within modules."""

_VALUES = 200_000
"""Largest number of values looked at."""


@dataclass(frozen=True)
class State:
    """A state dict in a checkpoint.

    Attributes:
        path: Keys that lead to it, joined by dots; "" for the checkpoint itself.
        tensors: Its tensors by name.
        others: Its other entries by name.
    """

    path: str
    tensors: Mapping[str, StoredTensor]
    others: Mapping[str, Any]


def states(value: Any) -> Iterator[State]:
    """Yield the state dicts in a checkpoint, the outermost first."""
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    seen: set[int] = set()
    while waiting:
        path, item, depth = waiting.pop(0)
        if id(item) in seen or len(seen) > _VALUES:
            continue
        seen.add(id(item))
        if isinstance(item, Record) and (tensors := dict(_of_module(item, "", _MODULES))):
            yield State(path, tensors, {})
            continue
        children = _children(item)
        found = {name: tensor for name, child in children if (tensor := tensor_of(child))}
        if found:
            yield State(path, found, {name: child for name, child in children if name not in found})
        if depth < _DEPTH:
            waiting.extend(
                (f"{path}.{name}".strip("."), child, depth + 1) for name, child in children if name not in found
            )


def _children(item: Any) -> list[tuple[str, Any]]:
    match item:
        case dict():
            return [(str(name), child) for name, child in item.items()]
        case list() | tuple():
            return [(str(position), child) for position, child in enumerate(item[:1000])]
        case Record(state=dict() as state):
            return [(str(name), child) for name, child in state.items()]
        case _:
            return []


def _of_module(record: Record, prefix: str, levels: int) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of a module saved whole, as its state dict names them.

    A module keeps them in `_parameters`, `_buffers` and `_modules`. TorchScript keeps all three as attributes.
    """
    state = record.state if isinstance(record.state, dict) else {}
    tensors, modules = [state.get("_parameters"), state.get("_buffers")], state.get("_modules")
    if record.of.startswith("__torch__."):
        tensors, modules = [state], state
    for mapping in tensors:
        for name, value in mapping.items() if isinstance(mapping, dict) else ():
            if tensor := tensor_of(value):
                yield f"{prefix}{name}", tensor
    for name, value in modules.items() if isinstance(modules, dict) and levels else ():
        if isinstance(value, Record):
            yield from _of_module(value, f"{prefix}{name}.", levels - 1)
