"""What each operator returns, without computing it: shape, dtype, device and strides, for tracing.

The strides are a promise that the kernels keep (opcheck tests it): dense NHWC or dense NCHW.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcnn import _checks, _shapes
from fastcnn._shapes import conv_channels_last, memory_format, suggests_channels_last


def _empty(
    like: Tensor, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format(channels_last)
    )


def _conv2d(op, input, weight, bias, residual, args):
    *geometry, activation, negative_slope, _ = args
    conv = tuple(geometry)
    _checks.conv2d(op, input, weight, bias, residual, conv, activation, negative_slope)
    return _empty(
        input, _shapes.conv_output_shape(input.shape, weight.shape, conv), conv_channels_last(input, weight)
    )


def conv2d(input, weight, bias, residual, *args):
    return _conv2d("conv2d", input, weight, bias, residual, args)


def conv2d_with_preactivation(input, weight, bias, residual, *args):
    output = _conv2d("conv2d_with_preactivation", input, weight, bias, residual, args)
    return output, torch.empty_like(output)


def _conv2d_act_max_pool2d(op, input, weight, bias, args):
    *geometry, activation, negative_slope, _ = args
    conv = tuple(geometry)
    _checks.conv2d_act_max_pool2d(op, input, weight, bias, conv, activation, negative_slope)
    shape = _shapes.pooled_conv_output_shape(input.shape, weight.shape, conv)
    return _empty(input, shape, conv_channels_last(input, weight))


def conv2d_act_max_pool2d(input, weight, bias, *args):
    return _conv2d_act_max_pool2d("conv2d_act_max_pool2d", input, weight, bias, args)


def conv2d_act_max_pool2d_with_offsets(input, weight, bias, *args):
    output = _conv2d_act_max_pool2d("conv2d_act_max_pool2d_with_offsets", input, weight, bias, args)
    return output, torch.empty_like(output, dtype=torch.uint8)


def conv2d_dgrad(grad_output, weight, height, width, *args):
    *geometry, channels_last, _ = args
    conv = tuple(geometry)
    _checks.conv2d_dgrad(grad_output, weight, height, width, conv)
    return _empty(
        grad_output, (grad_output.shape[0], weight.shape[1] * conv[-1], height, width), channels_last
    )


def conv2d_wgrad(grad_output, input, kernel_h, kernel_w, *args):
    *geometry, channels_last, _ = args
    conv = tuple(geometry)
    _checks.conv2d_wgrad(grad_output, input, kernel_h, kernel_w, conv)
    shape = (grad_output.shape[1], input.shape[1] // conv[-1], kernel_h, kernel_w)
    return _empty(grad_output, shape, channels_last)


def conv2d_act_dgrad(grad_output, saved, weight, height, width, *args):
    *geometry, activation, negative_slope, channels_last, allow_tf32 = args
    conv = tuple(geometry)
    _checks.conv2d_act_dgrad(grad_output, saved, weight, height, width, conv, activation, negative_slope)
    return conv2d_dgrad(grad_output, weight, height, width, *conv, channels_last, allow_tf32)


def conv2d_act_wgrad(grad_output, saved, input, kernel_h, kernel_w, *args):
    *geometry, activation, negative_slope, bias, channels_last, allow_tf32 = args
    conv = tuple(geometry)
    _checks.conv2d_act_wgrad(grad_output, saved, input, kernel_h, kernel_w, conv, activation, negative_slope)
    weight_grad = conv2d_wgrad(grad_output, input, kernel_h, kernel_w, *conv, channels_last, allow_tf32)
    return weight_grad, grad_output.new_empty((grad_output.shape[1] if bias else 0,))


def conv2d_bias_grad(grad_output):
    _checks.conv2d_bias_grad(grad_output)
    return grad_output.new_empty((grad_output.shape[1],))


def max_pool2d(input, *pool):
    _checks.max_pool2d(input, pool)
    return _empty(input, _shapes.max_pool_output_shape(input.shape, pool), suggests_channels_last(input))


def max_pool2d_with_offsets(input, *pool):
    output = max_pool2d(input, *pool)
    return output, torch.empty_like(output, dtype=_shapes.offset_dtype(pool[0], pool[1]))


def max_pool2d_with_indices(input, *pool):
    output = max_pool2d(input, *pool)
    return output, torch.empty_like(output, dtype=torch.int64)


def max_pool2d_backward(grad_output, indices, height, width, *args):
    *pool, channels_last = args
    _checks.max_pool2d_backward(grad_output, indices, height, width, tuple(pool))
    return _empty(grad_output, (*grad_output.shape[:2], height, width), channels_last)


def max_pool2d_gather(input, indices, *pool):
    _checks.max_pool2d_gather(input, indices, pool)
    return _empty(input, tuple(indices.shape), suggests_channels_last(input))


def avg_pool2d(input, *pool):
    _checks.avg_pool2d(input, pool)
    return _empty(input, _shapes.avg_pool_output_shape(input.shape, pool), suggests_channels_last(input))


def avg_pool2d_backward(grad_output, height, width, *args):
    *pool, channels_last = args
    _checks.avg_pool2d_backward(grad_output, height, width, tuple(pool))
    return _empty(grad_output, (*grad_output.shape[:2], height, width), channels_last)


def adaptive_avg_pool2d(input, output_h, output_w):
    _checks.adaptive_pool2d("adaptive_avg_pool2d", input, output_h, output_w)
    return _empty(input, (*input.shape[:2], output_h, output_w), suggests_channels_last(input))


def adaptive_avg_pool2d_backward(grad_output, height, width, channels_last):
    _checks.adaptive_pool2d_backward("adaptive_avg_pool2d_backward", grad_output, None, height, width)
    return _empty(grad_output, (*grad_output.shape[:2], height, width), channels_last)


def adaptive_max_pool2d(input, output_h, output_w):
    _checks.adaptive_pool2d("adaptive_max_pool2d", input, output_h, output_w)
    output = _empty(input, (*input.shape[:2], output_h, output_w), suggests_channels_last(input))
    return output, torch.empty_like(output, dtype=torch.int64)


def adaptive_max_pool2d_backward(grad_output, indices, height, width, channels_last):
    _checks.adaptive_pool2d_backward("adaptive_max_pool2d_backward", grad_output, indices, height, width)
    return _empty(grad_output, (*grad_output.shape[:2], height, width), channels_last)


def adaptive_max_pool2d_gather(input, indices):
    _checks.adaptive_max_pool2d_gather(input, indices)
    return _empty(input, tuple(indices.shape), suggests_channels_last(input))


IMPLEMENTATIONS = {
    function.__name__: function
    for function in (
        conv2d,
        conv2d_with_preactivation,
        conv2d_act_max_pool2d,
        conv2d_act_max_pool2d_with_offsets,
        conv2d_act_dgrad,
        conv2d_act_wgrad,
        conv2d_dgrad,
        conv2d_wgrad,
        conv2d_bias_grad,
        max_pool2d,
        max_pool2d_with_offsets,
        max_pool2d_with_indices,
        max_pool2d_backward,
        max_pool2d_gather,
        avg_pool2d,
        avg_pool2d_backward,
        adaptive_avg_pool2d,
        adaptive_avg_pool2d_backward,
        adaptive_max_pool2d,
        adaptive_max_pool2d_backward,
        adaptive_max_pool2d_gather,
    )
}
