"""Our own calls: the public functions where there is one, the raw operators (fastcnn/ops.py) elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcnn import functional
from fastcnn.bench.suites import ConvRow, PoolRow

_ops = torch.ops.fastcnn


def _raw(operator, *arguments):
    """Straight to the kernel, as the backward passes of `fastcnn.functional` call it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def conv2d(row: ConvRow, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Forward, bias and activation in the kernel."""
    return functional.conv2d(
        x, weight, bias, row.stride, row.padding, row.dilation, row.groups, activation=activation
    )


def conv2d_act_max_pool2d(row: ConvRow, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Forward, bias, relu and a 2x2 max pool in the kernel."""
    return functional.conv2d_act_max_pool2d(
        x, weight, bias, row.stride, row.padding, row.dilation, row.groups, activation="relu"
    )


def conv2d_dgrad(row: ConvRow, dy: Tensor, weight: Tensor, channels_last: bool, tf32: bool) -> Tensor:
    """The gradient of the input, in the wanted layout."""
    return _raw(_ops.conv2d_dgrad.default, dy, weight, row.h, row.w, *row.geometry, channels_last, tf32)


def conv2d_wgrad(row: ConvRow, dy: Tensor, x: Tensor, channels_last: bool, tf32: bool) -> Tensor:
    """The gradient of the weight, in the wanted layout."""
    return _raw(_ops.conv2d_wgrad.default, dy, x, row.r, row.s, *row.geometry, channels_last, tf32)


def pool2d(row: PoolRow, x: Tensor) -> Tensor:
    """Forward."""
    function = getattr(functional, row.op)
    if row.adaptive:
        return function(x, row.kernel)
    if row.op == "avg_pool2d":
        return function(x, row.kernel, row.stride, row.padding, row.ceil_mode)
    return function(x, row.kernel, row.stride, row.padding, row.dilation, row.ceil_mode)


def max_pool2d_offsets(row: PoolRow, x: Tensor) -> Tensor:
    """What the backward pass remembers: where each window's maximum is."""
    return _raw(_ops.max_pool2d_with_offsets.default, x, *_max_window(row))[1]


def pool2d_backward(row: PoolRow, dy: Tensor, indices: Tensor | None, channels_last: bool) -> Tensor:
    """The gradient of the input; `indices` for max pools, of the kind that our forward pass keeps."""
    image = (row.h, row.w)
    if row.op == "max_pool2d":
        return _raw(_ops.max_pool2d_backward.default, dy, indices, *image, *_max_window(row), channels_last)
    if row.op == "avg_pool2d":
        window = (*row.kernel, *row.stride, *row.padding, row.ceil_mode, True, 0)
        return _raw(_ops.avg_pool2d_backward.default, dy, *image, *window, channels_last)
    if row.op == "adaptive_max_pool2d":
        return _raw(_ops.adaptive_max_pool2d_backward.default, dy, indices, *image, channels_last)
    return _raw(_ops.adaptive_avg_pool2d_backward.default, dy, *image, channels_last)


def _max_window(row: PoolRow) -> tuple:
    return (*row.kernel, *row.stride, *row.padding, *row.dilation, row.ceil_mode)
