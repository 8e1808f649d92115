"""One call for each way of stating the same operation: ours and torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn import functional

from .shapes import Conv, Pool

#: torch's own functions of the fused activations; the slope is `conv2d_act`'s own default.
ACTIVATE = {
    "none": lambda t: t,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "leaky_relu": lambda t: F.leaky_relu(t, 0.01),
}


def conv2d(case: Conv, activation: str = "none"):
    """Ours: through `functional` where it can say the padding, else through the operator."""

    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if case.symmetric:
            padding = (case.padding[0], case.padding[2])
            return functional.conv2d(
                input, weight, bias, case.stride, padding, case.dilation, case.groups, activation=activation
            )
        return torch.ops.fastcnn.conv2d(input, weight, bias, None, *case.geometry, activation, 0.01, False)

    return call


def torch_conv2d(case: Conv, activation: str = "none"):
    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        top, bottom, left, right = case.padding
        if case.symmetric:
            output = F.conv2d(input, weight, bias, case.stride, (top, left), case.dilation, case.groups)
            return ACTIVATE[activation](output)
        padded = F.pad(input, (left, right, top, bottom))
        return ACTIVATE[activation](
            F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.groups)
        )

    return call


def max_pool2d(case: Pool, return_indices: bool = False, module=functional):
    def call(input: Tensor):
        return module.max_pool2d(
            input, case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode, return_indices
        )

    return call


def avg_pool2d(case: Pool, module=functional):
    def call(input: Tensor) -> Tensor:
        return module.avg_pool2d(
            input,
            case.kernel,
            case.stride,
            case.padding,
            case.ceil_mode,
            case.count_include_pad,
            case.divisor,
        )

    return call
