"""A program: operators in their order, as data. It becomes JSON and comes back from it, checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskfleet.unet.network import WeightsError
from maskfleet.unet.programs.operators import Group, Operator, operator_of

_NODES = 20_000
_LARGEST = 4096
"""Largest whole number in a program, such as a stride or a border. It bounds what a small image can become."""

_END = 2**63 - 1
"""End of a slice without an end."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Value:
    """A value of a program: 0 is the input, the others are the results of operators in their order."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor stored beside a program, such as a layer's weights."""

    name: str


@dataclass(frozen=True)
class Node:
    """One use of an operator.

    Attributes:
        operator: The operator.
        arguments: Its arguments by position: values, constants, numbers, text, and lists of them.
        named: Its arguments by name.
        results: Number of its results.
    """

    operator: Operator
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    results: int = 1

    def operands(self) -> list[Any]:
        """Return all values and constants among the arguments."""
        return [item for item in _flat([*self.arguments, *self.named.values()]) if isinstance(item, Value | Constant)]


@dataclass(frozen=True)
class Program:
    """A network without its tensors.

    Attributes:
        nodes: Its operators in their order.
        output: The value that it returns.
    """

    nodes: tuple[Node, ...]
    output: Value

    def run(self, x: Any, constants: Mapping[str, Tensor], *, observed: "Observer | None" = None) -> Any:
        """Compute the output for an input. Values are freed after their last use."""
        last = self._last_uses()
        values: dict[int, Any] = {0: x}
        number = 0
        for position, node in enumerate(self.nodes):
            arguments = [_given(argument, values, constants) for argument in node.arguments]
            named = {name: _given(argument, values, constants) for name, argument in node.named.items()}
            result = node.operator.call(*arguments, **named)
            results = (result,) if node.results == 1 else tuple(result)
            if len(results) != node.results:
                raise WeightsError(f"{node.operator.name} gives {len(results)} results, not {node.results}")
            if observed is not None:
                observed(node, arguments, named, results)
            del arguments, named, result
            for one in results:
                number += 1
                values[number] = one
            del results
            for done in last.get(position, ()):
                values.pop(done, None)
        return values[self.output.number]

    def _last_uses(self) -> dict[int, list[int]]:
        """Return the values that nobody needs after a node, by the node's position."""
        used: dict[int, int] = {}
        number = 0
        for position, node in enumerate(self.nodes):
            for operand in node.operands():
                if isinstance(operand, Value):
                    used[operand.number] = position
            for _ in range(node.results):
                number += 1
                used.setdefault(number, position)
        used.pop(self.output.number, None)
        found: dict[int, list[int]] = {}
        for value, position in used.items():
            found.setdefault(position, []).append(value)
        return found

    def constants(self) -> list[str]:
        """Return the names of its tensors in the order of their first use."""
        names = [op.name for node in self.nodes for op in node.operands() if isinstance(op, Constant)]
        return list(dict.fromkeys(names))

    def to_json(self) -> dict[str, Any]:
        """Return the program as JSON: numbered values, no names."""
        nodes = [
            [node.operator.name, _encoded(list(node.arguments)), _encoded(dict(node.named)), node.results]
            for node in self.nodes
        ]
        return {"nodes": nodes, "output": self.output.number}

    @classmethod
    def from_json(cls, data: Any) -> "Program":
        """Return the program of JSON.

        Raises:
            WeightsError: An operator is not allowed, a value is used before it is there, or a number is too large.
        """
        try:
            stored, output = data["nodes"], data["output"]
            if not isinstance(stored, list) or len(stored) > _NODES or type(output) is not int:
                raise WeightsError(f"the program has more than {_NODES:,} operators, or no output")
            nodes, known = [], 1
            for name, arguments, named, results in stored:
                if type(results) is not int or not 1 <= results <= _LARGEST or not isinstance(arguments, list):
                    raise TypeError
                decoded = tuple(_decoded(argument, known) for argument in arguments)
                by_name = {str(key): _decoded(argument, known) for key, argument in named.items()}
                nodes.append(checked(Node(operator_of(str(name)), decoded, by_name, results)))
                known += results
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError("the program is damaged; convert the network again") from error
        if not 0 < output < known:
            raise WeightsError("the program has no output; convert the network again")
        return cls(tuple(nodes), Value(output))


class Observer:
    """Sees each operator of a run: the node, its arguments as given, and its results."""

    def __call__(self, node: Node, arguments: Sequence[Any], named: Mapping[str, Any], results: Sequence[Any]) -> None:
        raise NotImplementedError


def checked(node: Node) -> Node:
    """Return a node whose numbers are small and whose layers are set for inference.

    Raises:
        WeightsError: They are not.
    """
    name = node.operator.name
    for item in _flat([*node.arguments, *node.named.values()]):
        if type(item) is int and abs(item) > _LARGEST and item != _END and name != "reshape.default":
            raise WeightsError(f"{name} has the number {item}, above {_LARGEST}; use a smaller one")
    training = {"batch_norm.default": 5, "dropout.default": 2, "feature_dropout.default": 2}.get(name)
    if training is not None and len(node.arguments) > training and node.arguments[training] is not False:
        raise WeightsError("the network was exported in training mode; call model.eval() before the export")
    if node.operator.group is Group.RESIZE and any(factor > 64 for factor in _floats(node)):
        raise WeightsError(f"{name} enlarges more than 64 times; use smaller steps")
    return node


def _floats(node: Node) -> list[float]:
    return [item for item in _flat([*node.arguments, *node.named.values()]) if isinstance(item, float)]


def _flat(items: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found.extend(_flat(item) if isinstance(item, list | tuple) else [item])
    return found


def _given(argument: Any, values: Mapping[int, Any], constants: Mapping[str, Tensor]) -> Any:
    match argument:
        case Value(number):
            return values[number]
        case Constant(name):
            return constants[name]
        case list() | tuple():
            return [_given(item, values, constants) for item in argument]
        case _:
            return argument


def _encoded(argument: Any) -> Any:
    match argument:
        case Value(number):
            return {"value": number}
        case Constant(name):
            return {"tensor": name}
        case torch.dtype():
            return {"dtype": str(argument).removeprefix("torch.")}
        case list() | tuple():
            return [_encoded(item) for item in argument]
        case dict():
            return {name: _encoded(item) for name, item in argument.items()}
        case _:
            return argument


def _decoded(argument: Any, known: int) -> Any:
    match argument:
        case {"value": int(number)}:
            if not 0 <= number < known:
                raise WeightsError("the program uses a value before it is there; convert the network again")
            return Value(number)
        case {"tensor": str(name)}:
            return Constant(name)
        case {"dtype": str(name)}:
            return _DTYPES[name]
        case list():
            return [_decoded(item, known) for item in argument]
        case None | bool() | int() | float() | str():
            return argument
        case _:
            raise TypeError


def dumped(program: Program) -> str:
    """Return a program as text: equal for equal programs."""
    return json.dumps(program.to_json(), separators=(",", ":"))
