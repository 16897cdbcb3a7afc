"""The operators that a program may use. Each is a function of tensors alone: none reads a file, and none runs text.

An operator is added by one line of a group below. The group says how a value depends on its neighbours, which
`unet.programs.reach` turns into the tiles of a network.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from maskfleet.unet.network import WeightsError


class Group(Enum):
    """How an element of a result depends on the elements of its operands."""

    POINTWISE = "the element at its own place"
    CHANNELS = "elements of other channels, along one axis"
    WINDOW = "a window"
    TRANSPOSED = "a transposed window"
    RESIZE = "its neighbours in a finer or coarser grid"
    PAD = "the element at its own place, moved by a border"
    IDENTITY = "itself, in inference"
    SIZE = "the size of a value"
    WHOLE = "the whole image, or unknown"


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        name: Its name and overload in ATen, such as `conv2d.default`, or `operator.` and a name for whole numbers.
        group: How a result depends on operands.
        call: The function.
    """

    name: str
    group: Group
    call: Callable[..., Any]


_GROUPS = {
    Group.POINTWISE: """relu.default relu6.default leaky_relu.default silu.default gelu.default sigmoid.default
        tanh.default elu.default hardswish.default hardsigmoid.default hardtanh.default prelu.default mish.default
        softplus.default clamp.default exp.default neg.default abs.default sqrt.default rsqrt.default
        pow.Tensor_Scalar add.Tensor sub.Tensor mul.Tensor div.Tensor rsub.Scalar batch_norm.default""",
    Group.CHANNELS: """cat.default softmax.int log_softmax.int chunk.default split.Tensor split_with_sizes.default
        slice.Tensor""",
    Group.WINDOW: "conv2d.default conv2d.padding max_pool2d.default avg_pool2d.default",
    Group.TRANSPOSED: "conv_transpose2d.input",
    Group.RESIZE: "upsample_nearest2d.vec upsample_bilinear2d.vec",
    Group.PAD: "pad.default",
    Group.IDENTITY: """dropout.default feature_dropout.default clone.default contiguous.default detach.default
        lift_fresh_copy.default alias.default""",
    Group.SIZE: "sym_size.int operator.add operator.sub operator.mul operator.floordiv operator.mod operator.neg",
    Group.WHOLE: """adaptive_avg_pool2d.default mean.dim sum.dim_IntList instance_norm.default group_norm.default
        layer_norm.default linear.default matmul.default reshape.default permute.default transpose.int
        flatten.using_ints unsqueeze.default squeeze.dim select.int unbind.int stack.default
        scaled_dot_product_attention.default upsample_bicubic2d.vec linalg_vector_norm.default roll.default""",
}

LAYERS = {
    "instance_norm": "instance normalisation",
    "group_norm": "group normalisation",
    "layer_norm": "layer normalisation",
    "adaptive_avg_pool2d": "pooling over the whole image, as squeeze-and-excitation has",
    "mean": "a mean over the whole image, as squeeze-and-excitation has",
    "scaled_dot_product_attention": "attention",
    "matmul": "a product of matrices, as attention has",
    "upsample_bicubic2d": "bicubic resizing",
    **dict.fromkeys(("reshape", "flatten", "permute", "transpose"), "axes rearranged, as transformers have them"),
}
"""Layers by their operators, for messages."""


def _function(name: str) -> Callable[..., Any]:
    packet, overload = name.split(".")
    if packet == "operator":
        function: Callable[..., Any] = getattr(operator, overload)
        return function
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


OPERATORS = {name: Operator(name, group, _function(name)) for group, names in _GROUPS.items() for name in names.split()}
"""All operators by name."""


def operator_of(name: str) -> Operator:
    """Return an operator.

    Raises:
        WeightsError: It is not allowed.
    """
    if name not in OPERATORS:
        raise WeightsError(f"the network uses the operator {name}, which maskfleet does not run; use another layer")
    return OPERATORS[name]


def layer_of(name: str) -> str:
    """Return the layer of an operator in words."""
    return LAYERS.get(name.split(".", maxsplit=1)[0], f"the operator {name}")
