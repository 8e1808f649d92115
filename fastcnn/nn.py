"""Layers that take the place of torch's own, subclass by subclass.

Constructor, parameters, initialisation, state_dict, repr and pickling are torch's; the computation is ours.
"""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor

from fastcnn import functional
from fastcnn._arguments import real
from fastcnn._checks import activation_problem

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "ConvAct2d",
    "ConvActPool2d",
    "MaxPool2d",
]


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` on our kernels; see `fastcnn.functional.conv2d`."""

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, and the padding that is left to the kernel: all of it, where it is zeros."""
        if self.padding_mode == "zeros":
            return input, self.padding
        sides = self._reversed_padding_repeated_twice
        return torch.nn.functional.pad(input, sides, mode=self.padding_mode), 0

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvAct2d(Conv2d):
    """Convolution, bias, residual and activation in one kernel; see `fastcnn.functional.conv2d_act`.

    Parameters and state_dict are those of `Conv2d`.

    Args:
        activation: "none", "relu", "sigmoid", "tanh", "silu", "gelu", "hardswish" or "leaky_relu" (keyword
            only, like the next); the others are `torch.nn.Conv2d`'s.
        negative_slope: of leaky_relu.

    Raises:
        TypeError: a `negative_slope` that is no real number.
        ValueError: an unknown `activation`, or a `negative_slope` that is negative or not finite.
    """

    #: For layers pickled as a whole before they had one.
    negative_slope = 0.01

    def __init__(
        self, *args: Any, activation: str = "relu", negative_slope: float = 0.01, **kwargs: Any
    ) -> None:
        negative_slope = real("negative_slope", negative_slope)
        problem = activation_problem(activation, negative_slope)
        if problem is not None:
            raise ValueError(problem)
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The output for `input`; `residual`, of the output's size, is added before the activation."""
        input, padding = self._padded(input)
        return functional.conv2d_act(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            residual=residual,
            negative_slope=self.negative_slope,
        )

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}"


class ConvActPool2d(ConvAct2d):
    """Convolution, bias, activation and a 2x2 max pool of stride 2 in one kernel; see
    `fastcnn.functional.conv2d_act_max_pool2d`.

    Constructor, parameters and state_dict are those of `ConvAct2d`; there is no residual.
    """

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self._padded(input)
        return functional.conv2d_act_max_pool2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on our kernels; see `fastcnn.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on our kernels; see `fastcnn.functional.avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` on our kernels; see `fastcnn.functional.adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` on our kernels; see `fastcnn.functional.adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)
