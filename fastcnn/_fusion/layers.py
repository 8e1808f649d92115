"""The layer that a convolution becomes when an addition is fused into it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcnn import nn
from fastcnn._activations import activate
from fastcnn._shapes import conv_output_size

__all__ = ["ConvAddAct2d"]


class ConvAddAct2d(nn.ConvAct2d):
    """``activation(conv(input) + residual)`` with all that torch's ``+`` takes.

    A residual of the output's size and dtype goes into the kernel; any other (one that is broadcast, a
    number, another dtype) is added as it was before the fusion. `in_place` says that this was ``+=``, which
    keeps the convolution's dtype and size. Only `convert` makes such layers, out of a convolution.
    """

    in_place = False

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        if self._fits(input, residual):
            return super().forward(input, residual)
        output = self._conv_forward(input, self.weight, self.bias)
        output = output.add_(residual) if self.in_place else output + residual
        return activate(output, self.activation, self.negative_slope)

    def _fits(self, input: Tensor, residual: Tensor) -> bool:
        if not isinstance(residual, Tensor) or residual.dim() != input.dim():
            return False
        dtype, device = input.dtype, input.device
        if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
        if residual.dtype != dtype or residual.device != device:
            return False
        left, right, top, bottom = self._reversed_padding_repeated_twice
        size = (
            self.out_channels,
            *(
                conv_output_size(extent, kernel, stride, pad, dilation)
                for extent, kernel, stride, pad, dilation in zip(
                    input.shape[-2:],
                    self.kernel_size,
                    self.stride,
                    (top + bottom, left + right),
                    self.dilation,
                    strict=True,
                )
            ),
        )
        return tuple(residual.shape) == (*input.shape[:-3], *size)
