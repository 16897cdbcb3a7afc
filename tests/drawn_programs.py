"""Programs for tests, made by hand: no export, so that hundreds can be drawn in a second."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from maskfleet.unet.programs.operators import operator_of
from maskfleet.unet.programs.program import Constant, Node, Program, Value, checked


@dataclass
class Builder:
    """Adds operators one by one, and keeps their weights, in fp64."""

    channels: int = 3
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    count: int = 0

    def constant(self, *shape: int) -> Constant:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return Constant(name)

    def add(self, name: str, *arguments, results: int = 1, **named) -> Value:
        self.nodes.append(checked(Node(operator_of(name), arguments, named, results)))
        self.count += results
        return Value(self.count - results + 1)

    def conv(self, x, before, after, kernel=3, stride=1, dilation=1, padding=None) -> Value:
        padding = dilation * (kernel - 1) // 2 if padding is None else padding
        weight = self.constant(after, before, kernel, kernel)
        self.tensors[weight.name] /= kernel * before**0.5
        pairs = [stride] * 2, [padding] * 2, [dilation] * 2
        return self.add("conv2d.default", x, weight, self.constant(after), *pairs)

    def program(self, output: Value) -> Program:
        return Program(tuple(self.nodes), output)


@st.composite
def networks(draw) -> tuple[Program, dict[str, torch.Tensor], int]:
    """Draw an encoder and decoder of allowed operators. Returns program, tensors and the product of its strides."""
    made, widths, skips = Builder(), [3], []
    x, levels = Value(0), draw(st.integers(1, 2))

    def block(x, before, after):
        kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
        if draw(st.booleans()):
            border = dilation * (kernel - 1) // 2
            x = made.add("pad.default", x, [border] * 4, "constant", 0.0)
            x = made.conv(x, before, after, kernel, 1, dilation, padding=0)
        else:
            x = made.conv(x, before, after, kernel, 1, dilation)
        return made.add(
            draw(st.sampled_from(["relu.default", "silu.default", "leaky_relu.default", "tanh.default"])), x
        )

    for level in range(levels):
        x = block(x, widths[-1], 4 + level)
        widths.append(4 + level)
        skips.append((x, widths[-1]))
        match draw(st.sampled_from(["max", "average", "wide", "strided", "even"])):
            case "max":
                x = made.add("max_pool2d.default", x, [2, 2], [2, 2])
            case "average":
                x = made.add("avg_pool2d.default", x, [2, 2], [2, 2])
            case "wide":
                x = made.add("max_pool2d.default", x, [3, 3], [2, 2], [1, 1])
            case "strided":
                x = made.conv(x, widths[-1], widths[-1], 3, 2)
            case "even":
                x = made.conv(x, widths[-1], widths[-1], 2, 2, padding=0)
    x = block(x, widths[-1], 6)
    width = 6
    for skip, channels in reversed(skips):
        match draw(st.sampled_from(["nearest", "bilinear", "transposed", "overlapping"])):
            case "nearest":
                x = made.add("upsample_nearest2d.vec", x, None, [2.0, 2.0])
            case "bilinear":
                x = made.add("upsample_bilinear2d.vec", x, None, False, [2.0, 2.0])
            case "transposed":
                weight = made.constant(width, width, 2, 2)
                x = made.add("conv_transpose2d.input", x, weight, None, [2, 2], [0, 0], [0, 0], 1, [1, 1])
            case "overlapping":
                weight = made.constant(width, width, 4, 4)
                x = made.add("conv_transpose2d.input", x, weight, None, [2, 2], [1, 1], [0, 0], 1, [1, 1])
        x = made.add("cat.default", [x, skip], 1)
        x = block(x, width + channels, 5)
        width = 5
    x = made.conv(x, width, 2, 1)
    return made.program(x), made.tensors, 2**levels
