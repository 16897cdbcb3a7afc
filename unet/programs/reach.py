"""Grid and halo of a network, proven from its program: how far a cut through an image spoils the values beside it.

Each value is an image of its own with a stride in px of the input. Beside an aligned cut some of its first or last rows
differ from those of the whole image. An operator moves these numbers on: a convolution spoils as many rows as its
window takes from beyond. What the output has spoiled at most is the halo. Rows and columns are followed alike. The
least common multiple of all strides is the grid.

The rules of a window follow from `out[j] = sum over t of w[t] * in[j * stride - padding + t * dilation]`, those of its
transpose from `out[i * stride - padding + t]`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from maskfleet.unet.programs.operators import Group, layer_of
from maskfleet.unet.programs.program import Constant, Node, Observer, Program, Value


class Unproven(Exception):
    """No tile is proven to give the whole image's logits; the message is a clause ("it ...")."""


@dataclass(frozen=True)
class Reach:
    """Geometry of a network's tiles.

    Attributes:
        grid: Period in px at which tiles may start.
        halo: Border of a tile in px, a multiple of the grid, beyond which logits are the whole image's.
    """

    grid: int
    halo: int


@dataclass(frozen=True)
class _Rows:
    """Rows of a value beside a cut.

    Attributes:
        stride: Distance of its rows in px of the input.
        first: Rows behind a cut at the start that differ from the whole image's.
        last: Rows before a cut at the end that differ.
        border: Rows that padding added, for the next window to take back.
    """

    stride: Fraction = Fraction(1)
    first: int = 0
    last: int = 0
    border: int = 0


@dataclass(frozen=True)
class _Seen:
    """A node as it ran: its arguments by position, and the shapes of its results."""

    arguments: Sequence[Any]
    named: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...] | None]


@dataclass
class _Record(Observer):
    seen: list[_Seen] = field(default_factory=list)

    def __call__(self, node: Node, arguments: Sequence[Any], named: Mapping[str, Any], results: Sequence[Any]) -> None:
        shapes = [tuple(result.shape) if isinstance(result, Tensor) else None for result in results]
        kept = [argument.shape if isinstance(argument, Tensor) else argument for argument in arguments]
        self.seen.append(_Seen(kept, dict(named), shapes))


def reach_of(program: Program, constants: Mapping[str, Tensor], *, channels: int, multiple: int) -> Reach:
    """Return grid and halo of a network.

    Args:
        program: The network.
        constants: Its tensors, on the "meta" device.
        channels: Channels of the input.
        multiple: Number of px of which every image's sides are multiples.

    Raises:
        Unproven: It has a layer that sees the whole image, or one that is not followed.
    """
    side = multiple * max(1, -(-128 // multiple))
    found = []
    for axis in (2, 3):
        runs = []
        for height, width in ((2 * side, 3 * side), (3 * side, 2 * side)):
            record = _Record()
            program.run(torch.empty(1, channels, height, width, device="meta"), constants, observed=record)
            runs.append(_Run((height, width)[axis - 2], record.seen))
        found.append(_along(program, runs, axis))
    grid = math.lcm(multiple, *(rows_grid for rows_grid, _ in found))
    spoiled = max(rows for _, rows in found)
    return Reach(grid, -(-spoiled // grid) * grid)


@dataclass(frozen=True)
class _Run:
    side: int
    seen: Sequence[_Seen]


def _along(program: Program, runs: Sequence[_Run], axis: int) -> tuple[int, int]:
    """Return the grid of one axis, and the spoiled rows of the output."""
    rows: dict[int, _Rows] = {0: _Rows()}
    grid, number = 1, 0
    for position, node in enumerate(program.nodes):
        steps = [_Step(node, run.seen[position], axis, rows) for run in runs]
        found = None if node.operator.group is Group.SIZE else _followed(steps)
        for result in range(node.results):
            number += 1
            if found is None:
                _check_size(node)
                continue
            rows[number] = found
            grid = math.lcm(grid, found.stride.numerator)
            _check_length(node, runs, position, result, axis, found)
    output = rows.get(program.output.number)
    if output is None or output.stride != 1 or output.border:
        raise Unproven("its output has not the image's size")
    return grid, max(output.first, output.last)


@dataclass(frozen=True)
class _Step:
    """One node of one run, along one axis."""

    node: Node
    seen: _Seen
    axis: int
    rows: Mapping[int, _Rows]

    def operands(self) -> list[_Rows]:
        """Return the rows of the images among its operands."""
        return [self.rows[item.number] for item in self.node.operands() if _is_image(item, self.rows)]

    def given(self, position: int, default: Any) -> Any:
        """Return an argument of one number, or of one for each axis."""
        value = self.seen.arguments[position] if len(self.seen.arguments) > position else None
        if value is None or value == []:
            return default
        if isinstance(value, list | tuple):
            return value[self.axis - 2] if len(value) > 1 else value[0]
        return value


def _is_image(item: Value | Constant, rows: Mapping[int, _Rows]) -> bool:
    return isinstance(item, Value) and item.number in rows


def _followed(steps: Sequence[_Step]) -> _Rows:
    """Return the rows of a node's results."""
    found = {_RULES[step.node.operator.group](step) for step in steps}
    if len(found) > 1:
        raise Unproven(f"its {layer_of(steps[0].node.operator.name)} depends on the image's size")
    return found.pop()


def _joined(step: _Step) -> _Rows:
    """Operands of one place: their strides agree, and what any of them has spoiled is spoiled."""
    operands = step.operands()
    if not operands or len({(rows.stride, rows.border) for rows in operands}) != 1:
        raise Unproven("it joins values of different strides")
    result = step.seen.shapes[0]
    for item, shape in zip(step.node.arguments, step.seen.arguments, strict=True):
        if _is_image(item, step.rows) and result is not None and shape[step.axis] != result[step.axis]:
            raise Unproven("it joins values of different sizes")
    first, last = max(rows.first for rows in operands), max(rows.last for rows in operands)
    return _Rows(operands[0].stride, first, last, operands[0].border)


def _along_channels(step: _Step) -> _Rows:
    position = {"cat": 1, "chunk": 2, "split": 2, "split_with_sizes": 2}.get(step.node.operator.name.split(".")[0], 1)
    arguments = step.seen.arguments
    named = step.seen.named.get("dim", 0)
    dim = arguments[position] if len(arguments) > position else named
    if dim not in (1, -3):
        raise Unproven(f"its {layer_of(step.node.operator.name)} works along the image")
    return _joined(step)


def _window(step: _Step) -> _Rows:
    name, rows = step.node.operator.name, step.operands()[0]
    if name.startswith("conv2d"):
        kernel = step.seen.arguments[1][step.axis]
        stride, padding, dilation = step.given(3, 1), step.given(4, 0), step.given(5, 1)
        if padding in ("same", "valid"):
            padding = dilation * (kernel - 1) // 2 if padding == "same" else 0
    else:
        kernel = step.given(1, 1)
        stride, padding = step.given(2, kernel), step.given(3, 0)
        dilation = step.given(4, 1) if name.startswith("max") else 1
        rounds_up = 5 if name.startswith("max") else 4
        if len(step.seen.arguments) > rounds_up and step.seen.arguments[rounds_up]:
            raise Unproven("its pooling rounds sizes up")
    first = math.ceil(Fraction(rows.first + padding, stride))
    last = math.ceil(Fraction(rows.last + 1 + dilation * (kernel - 1) - padding, stride)) - 1
    return _Rows(rows.stride * stride, max(0, first), max(0, last))


def _transposed(step: _Step) -> _Rows:
    rows, kernel = step.operands()[0], step.seen.arguments[1][step.axis]
    stride, padding, more = step.given(3, 1), step.given(4, 0), step.given(5, 0)
    if kernel - 2 * padding + more != stride or step.given(7, 1) != 1:
        raise Unproven("its transposed convolution makes a size of its own")
    first = stride * (rows.first - 1) + kernel - padding
    return _Rows(rows.stride / stride, max(0, first), max(0, stride * rows.last + padding))


def _resized(step: _Step) -> _Rows:
    rows, name = step.operands()[0], step.node.operator.name
    before, after = step.seen.arguments[0][step.axis], step.seen.shapes[0]
    assert after is not None
    if "bilinear" in name and len(step.seen.arguments) > 2 and step.seen.arguments[2]:
        raise Unproven("it up-samples bilinearly with aligned corners, on a grid that depends on the image's size")
    factor = Fraction(after[step.axis], before)
    if factor.denominator != 1 or factor.numerator & (factor.numerator - 1):
        raise Unproven(f"it resizes {factor} times, which is no power of two")
    times = int(factor)
    beside = times // 2 if "bilinear" in name and times > 1 else 0
    return _Rows(rows.stride / times, times * rows.first + beside, times * rows.last + beside)


def _padded(step: _Step) -> _Rows:
    rows, arguments = step.operands()[0], step.seen.arguments
    borders = [*arguments[1], 0, 0, 0, 0]
    before, after = borders[2 * (3 - step.axis) : 2 * (3 - step.axis) + 2]
    if (before or after) and len(arguments) > 2 and arguments[2] != "constant":
        raise Unproven("it pads by its content")
    if min(before, after) < 0:
        raise Unproven("it cuts off a border")
    return _Rows(rows.stride, rows.first + before, rows.last + after, rows.border + before + after)


def _unknown(step: _Step) -> _Rows:
    raise Unproven(f"it has {layer_of(step.node.operator.name)}")


_RULES = {
    Group.POINTWISE: _joined,
    Group.IDENTITY: _joined,
    Group.CHANNELS: _along_channels,
    Group.WINDOW: _window,
    Group.TRANSPOSED: _transposed,
    Group.RESIZE: _resized,
    Group.PAD: _padded,
    Group.WHOLE: _unknown,
}


def _check_size(node: Node) -> None:
    """Refuse sizes that are not a fixed share of the image's. What is computed from sizes is checked by its ratio."""
    if node.operator.name not in ("sym_size.int", "operator.mul"):
        raise Unproven("it computes with the image's size")


def _check_length(node: Node, runs: Sequence[_Run], position: int, result: int, axis: int, rows: _Rows) -> None:
    """Refuse values that have other rows than the image, beside a border of their own."""
    for run in runs:
        shape = run.seen[position].shapes[result]
        if shape is None or len(shape) != 4:
            raise Unproven(f"its {layer_of(node.operator.name)} makes no image")
        if (shape[axis] - rows.border) * rows.stride != run.side:
            raise Unproven(f"its {layer_of(node.operator.name)} changes the image's size")
