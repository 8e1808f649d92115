"""Output sizes and output layout: one place, used by the fakes, the ATen implementations and autograd.

Everything here works with SymInts as well, so that a compiled or exported program keeps its sizes symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# (stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, groups)
ConvGeometry = tuple[int, int, int, int, int, int, int, int, int]
# (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, ceil_mode)
MaxPoolGeometry = tuple[int, int, int, int, int, int, int, int, bool]
# (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, count_include_pad, divisor_override)
AvgPoolGeometry = tuple[int, int, int, int, int, int, bool, bool, int]

#: The max pool that the fused operator applies to a convolution's output: 2x2, stride 2, floor mode.
HALVING_POOL: MaxPoolGeometry = (2, 2, 2, 2, 0, 0, 1, 1, False)


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether a 4-D tensor's strides say NHWC: the rule of ATen's ``suggest_memory_format``.

    Strides must not fall when walked in the order C, W, H, N; ambiguous cases (a trivial channel dimension,
    N111) are NCHW.
    """
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        stride = strides[dim]
        if sizes[dim] == 0 or stride < least or (dim == 0 and least == strides[1]):
            return False
        least = stride * sizes[dim] if sizes[dim] > 1 else stride
    return True


def conv_channels_last(input: Tensor, weight: Tensor) -> bool:
    """The layout of a convolution's output: NHWC if either operand is."""
    return suggests_channels_last(input) or suggests_channels_last(weight)


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def conv_output_size(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """One spatial extent of a convolution's output; `pad` is the sum of both sides."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def conv_output_shape(
    input: Sequence[int], weight: Sequence[int], conv: ConvGeometry
) -> tuple[int, int, int, int]:
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, _ = conv
    return (
        input[0],
        weight[0],
        conv_output_size(input[2], weight[2], stride_h, top + bottom, dilation_h),
        conv_output_size(input[3], weight[3], stride_w, left + right, dilation_w),
    )


def pooled_conv_output_shape(
    input: Sequence[int], weight: Sequence[int], conv: ConvGeometry
) -> tuple[int, int, int, int]:
    """Of a convolution whose output goes through `HALVING_POOL`."""
    n, k, p, q = conv_output_shape(input, weight, conv)
    return n, k, p // 2, q // 2


def pool_output_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """One spatial extent of a pool's output; the last window starts inside the image or its left padding."""
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    out = (room + stride - 1) // stride + 1
    if (out - 1) * stride >= size + pad:
        out -= 1
    return out


def max_pool_output_shape(input: Sequence[int], pool: MaxPoolGeometry) -> tuple[int, int, int, int]:
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, ceil_mode = pool
    return (
        input[0],
        input[1],
        pool_output_size(input[2], kernel_h, stride_h, pad_h, dilation_h, ceil_mode),
        pool_output_size(input[3], kernel_w, stride_w, pad_w, dilation_w, ceil_mode),
    )


def avg_pool_output_shape(input: Sequence[int], pool: AvgPoolGeometry) -> tuple[int, int, int, int]:
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, _, _ = pool
    return max_pool_output_shape(
        input, (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, ceil_mode)
    )


def offset_dtype(kernel_h: int, kernel_w: int) -> torch.dtype:
    """The type that holds an offset inside a pooling window: one byte where that is enough."""
    return torch.uint8 if kernel_h * kernel_w <= 256 else torch.int32
