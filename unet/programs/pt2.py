"""From a file of `torch.export.save` (.pt2) to a program, without `torch.export.load`, which runs what a file holds.

A .pt2 is an archive of the graph as JSON (torch/_export/serde/schema.py, major version 8) and of raw tensors. Its
pickles (sample inputs), its guards (Python code) and its expressions of sizes (SymPy code) are never looked at, but for
the multiple that an input's side is declared to have.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from maskfleet.unet.checkpoints.archive import DAMAGED, Archive
from maskfleet.unet.checkpoints.tensors import StoredTensor, read
from maskfleet.unet.network import WeightsError
from maskfleet.unet.programs.operators import Group, operator_of
from maskfleet.unet.programs.program import Constant, Node, Program, Value, checked

_SCHEMA = 8
_JSON_BYTES = 64 * 2**20

_DTYPES: Final = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Types by their numbers in the schema."""

_SYMBOL = r"Symbol\('\w+'(?:, (?:positive|integer)=True)*\)"
_MULTIPLE = re.compile(rf"^Mul\(Integer\((\d{{1,4}})\), {_SYMBOL}\)$")
_FREE = re.compile(rf"^{_SYMBOL}$")

_VIEWS = frozenset({
    "reshape", "select", "slice", "permute", "transpose", "chunk", "split", "split_with_sizes", "unbind", "squeeze",
    "unsqueeze", "flatten",
})  # fmt: skip
"""Operators whose results share their operand's memory."""


@dataclass(frozen=True)
class Exported:
    """A network as exported.

    Attributes:
        program: Its operators.
        tensors: Its tensors by their names in the program.
        channels: Channels of its input.
        multiple: Number of px of which its input's sides must be multiples.
    """

    program: Program
    tensors: dict[str, Tensor]
    channels: int
    multiple: int


def is_program(data: bytes) -> bool:
    """Return whether a file is a .pt2."""
    return data[:4] == b"PK\x03\x04" and Archive(data).folder_of("models/model.json") is not None


def read_pt2(data: bytes) -> Exported:
    """Read a .pt2.

    Raises:
        WeightsError: It is damaged, of another version, uses an operator that is not allowed, takes or returns other
            than one image, or was exported for one size only.
    """
    archive = Archive(data)
    folder = archive.folder_of("models/model.json") or ""
    try:
        model = _json(archive, f"{folder}models/model.json")
        if model["schema_version"]["major"] != _SCHEMA:
            raise WeightsError(
                f"the program has version {model['schema_version']['major']} of its format, not {_SCHEMA}; "
                "export it with PyTorch 2.8 or newer"
            )
        graph, signature = model["graph_module"]["graph"], model["graph_module"]["signature"]
        names = _Names(signature)
        channels, multiple = _input(graph["tensor_values"][names.input])
        nodes = _Nodes(names)
        for stored in graph["nodes"]:
            nodes.add(stored)
        tensors = _tensors(archive, folder)
        return _renamed(Program(tuple(nodes.nodes), nodes.value(names.output)), tensors, channels, multiple)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(DAMAGED) from error


class _Names:
    """Input, output and tensors of a graph by their names in it."""

    def __init__(self, signature: Any) -> None:
        inputs: list[str] = []
        self.tensors: dict[str, str] = {}
        for spec in signature["input_specs"]:
            ((kind, stated),) = spec.items()
            if kind == "user_input":
                inputs.append(stated["arg"]["as_tensor"]["name"])
            else:
                keys = ("parameter_name", "buffer_name", "tensor_constant_name")
                (name,) = (stated[key] for key in keys if key in stated)
                self.tensors[stated["arg"]["name"]] = name
        outputs = [spec for spec in signature["output_specs"] if "user_output" in spec]
        if len(inputs) != 1 or len(outputs) != 1 or len(signature["output_specs"]) != 1:
            raise WeightsError(
                "the network takes or returns more than one tensor; export one image to one map of logits"
            )
        self.input: str = inputs[0]
        self.output: str = outputs[0]["user_output"]["arg"]["as_tensor"]["name"]


class _Nodes:
    """The nodes of a program while they are read.

    Operators that work in place become those that do not: whoever reads the changed value later reads the result.
    """

    def __init__(self, names: _Names) -> None:
        self.nodes: list[Node] = []
        self._names = names
        self._values: dict[str, int] = {names.input: 0}
        self._changed: dict[int, int] = {}
        self._shared: set[int] = set()
        self._count = 1

    def value(self, name: str) -> Value:
        number = self._values[name]
        while number in self._changed:
            number = self._changed[number]
        return Value(number)

    def add(self, stored: Any) -> None:
        target = str(stored["target"])
        name = re.sub(r"^_operator\.", "operator.", target.removeprefix("torch.ops.aten."))
        packet, _, overload = name.partition(".")
        in_place = packet.endswith("_") and not packet.startswith("_")
        name = f"{packet.rstrip('_')}.{overload}" if in_place else name.replace("view.default", "reshape.default")
        operator = operator_of(name)
        arguments = tuple(self._argument(item["arg"]) for item in stored["inputs"] if item["kind"] == 1)
        named = {item["name"]: self._argument(item["arg"]) for item in stored["inputs"] if item["kind"] == 2}
        named = {key: value for key, value in named.items() if value is not None}
        results = _results(stored["outputs"])
        if operator.group is Group.IDENTITY:
            checked(Node(operator, arguments, named))
            self._alias(results[0], arguments[0])
            return
        self.nodes.append(checked(Node(operator, arguments, named, len(results))))
        first = self._count
        for result in results:
            self._values[result] = self._count
            self._count += 1
        changed = arguments[0] if arguments and isinstance(arguments[0], Value) else None
        if packet in _VIEWS and changed is not None:
            self._shared |= {changed.number, *range(first, self._count)}
        if in_place:
            if changed is None or changed.number in self._shared:
                raise WeightsError(f"the network changes a view of another value by {packet}; export it without")
            self._changed[changed.number] = first

    def _alias(self, name: str, value: Any) -> None:
        if isinstance(value, Constant):
            self._names.tensors[name] = value.name
        else:
            self._values[name] = value.number

    def _argument(self, stored: Any) -> Any:
        ((kind, value),) = stored.items()
        if kind not in _ARGUMENTS:
            raise WeightsError(f"the network has an argument of the kind {kind}, which maskfleet does not read")
        return _ARGUMENTS[kind](self, value)

    def _named(self, name: str) -> Value | Constant:
        if name in self._names.tensors:
            return Constant(self._names.tensors[name])
        return self.value(name)

    def _size(self, value: Any) -> Any:
        return self._named(value["as_name"]) if "as_name" in value else value["as_int"]

    def _optional(self, value: Any) -> Any:
        return None if "as_none" in value else self._named(value["as_tensor"]["name"])


_ARGUMENTS: dict[str, Callable[[_Nodes, Any], Any]] = {
    "as_tensor": lambda nodes, value: nodes._named(value["name"]),
    "as_tensors": lambda nodes, value: [nodes._named(item["name"]) for item in value],
    "as_optional_tensors": lambda nodes, value: [nodes._optional(item) for item in value],
    "as_sym_int": lambda nodes, value: nodes._size(value),
    "as_sym_ints": lambda nodes, value: [nodes._size(item) for item in value],
    "as_int": lambda _, value: int(value),
    "as_ints": lambda _, value: [int(item) for item in value],
    "as_float": lambda _, value: float(value),
    "as_floats": lambda _, value: [float(item) for item in value],
    "as_bool": lambda _, value: bool(value),
    "as_bools": lambda _, value: [bool(item) for item in value],
    "as_string": lambda _, value: str(value),
    "as_scalar_type": lambda _, value: _DTYPES[value],
    "as_none": lambda _, __: None,
    "as_device": lambda _, __: None,  # the input's
    "as_memory_format": lambda _, __: None,
    "as_layout": lambda _, __: None,
}
"""Kinds of arguments, and how each is read."""


def _results(outputs: Any) -> list[str]:
    (output,) = outputs
    match output:
        case {"as_tensor": {"name": str(name)}} | {"as_sym_int": {"as_name": str(name)}}:
            return [name]
        case {"as_tensors": list(tensors)}:
            return [str(tensor["name"]) for tensor in tensors]
        case _:
            raise WeightsError("the network has an operator that returns neither tensors nor a size")


def _input(meta: Any) -> tuple[int, int]:
    """Return channels and multiple of the input: (B, C, H, W), of which all but C are free."""
    sizes = meta["sizes"]
    if meta["dtype"] != 7 or len(sizes) != 4 or "as_int" not in sizes[1]:
        raise WeightsError("the network takes no images of shape (B, C, H, W) in float32; export it so")
    multiples = []
    for size in (sizes[0], sizes[2], sizes[3]):
        stated = str(size.get("as_expr", {}).get("expr_str", ""))
        found = _MULTIPLE.match(stated)
        if not found and not _FREE.match(stated):
            raise WeightsError(
                "the network was exported for one size of batch and image; export it with maskfleet.export_network"
            )
        multiples.append(int(found[1]) if found else 1)
    if multiples[0] != 1:
        raise WeightsError(
            "the network was exported for some sizes of batch alone; export it with maskfleet.export_network"
        )
    return int(sizes[1]["as_int"]), max(multiples[1:]) if multiples[1] == multiples[2] else multiples[1] * multiples[2]


def _tensors(archive: Archive, folder: str) -> dict[str, Tensor]:
    """Return the tensors of a .pt2 by name."""
    stored: dict[str, StoredTensor] = {}
    for kind, config in (("weights", "model_weights_config.json"), ("constants", "model_constants_config.json")):
        path = f"{folder}data/{kind}/{config}"
        if path not in archive.sizes:
            continue
        for name, item in _json(archive, path)["config"].items():
            if item["use_pickle"]:
                raise WeightsError(f"the tensor {name} is stored as a pickle, which maskfleet does not load")
            meta = item["tensor_meta"]
            shape, strides = (tuple(int(size["as_int"]) for size in meta[key]) for key in ("sizes", "strides"))
            if min((*shape, *strides, int(meta["storage_offset"]["as_int"])), default=0) < 0 or len(shape) != len(
                strides
            ):
                raise ValueError
            key = f"{folder}data/{kind}/{item['path_name']}"
            stored[str(name)] = StoredTensor(
                key, _DTYPES[meta["dtype"]], int(meta["storage_offset"]["as_int"]), shape, strides
            )
    return read(stored, archive.read)


def _renamed(program: Program, tensors: dict[str, Tensor], channels: int, multiple: int) -> Exported:
    """Return the program with its tensors numbered in the order of their use, each distinct tensor once."""
    number: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    by_content: dict[tuple[Any, ...], str] = {}
    for name in program.constants():
        tensor = tensors[name].contiguous()
        digest = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).digest()
        content = (digest, tensor.dtype, tuple(tensor.shape))
        number[name] = by_content.setdefault(content, f"t{len(by_content)}")
        kept[number[name]] = tensor
    stored = json.dumps(program.to_json())
    renamed = json.loads(stored, object_hook=lambda item: _renamed_item(item, number))
    return Exported(Program.from_json(renamed), kept, channels, multiple)


def _renamed_item(item: dict[str, Any], number: dict[str, str]) -> dict[str, Any]:
    return {"tensor": number[item["tensor"]]} if item.keys() == {"tensor"} else item


def _json(archive: Archive, path: str) -> Any:
    if archive.sizes.get(path, 0) > _JSON_BYTES:
        raise WeightsError("the program is larger than 64 MiB; export a smaller network")
    return json.loads(archive.read(path) or b"")
