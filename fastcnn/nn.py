"""Layers that take the place of torch's own, subclass by subclass.

Constructor, parameters, initialisation, state_dict, repr and pickling are torch's; the computation is ours.
"""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor

from fastcnn import functional
from fastcnn._checks import ACTIVATIONS

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "Conv2d", "ConvAct2d", "MaxPool2d"]


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` on our kernels; see `fastcnn.functional.conv2d`."""

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = 0
        return functional.conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups, activation=activation
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._convolve(input, weight, bias, "none")


class ConvAct2d(Conv2d):
    """Convolution, bias and activation in one kernel. Parameters and state_dict are those of `Conv2d`.

    Args:
        activation: "none", "relu", "sigmoid" or "tanh" (keyword only); the others are `torch.nn.Conv2d`'s.

    Raises:
        ValueError: an unknown `activation`.
    """

    def __init__(self, *args: Any, activation: str = "relu", **kwargs: Any) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}")
        super().__init__(*args, **kwargs)
        self.activation = activation

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._convolve(input, weight, bias, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


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
