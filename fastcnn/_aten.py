"""The operators in terms of ATen: what runs wherever no kernel of ours serves the device.

Each function takes its operator's own arguments, makes the same checks as the kernels, and returns the same
layout. Determinism is ATen's own here.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastcnn import _checks
from fastcnn._activations import activate, activation_grad
from fastcnn._shapes import (
    HALVING_POOL,
    conv_channels_last,
    memory_format,
    offset_dtype,
    suggests_channels_last,
)

_aten = torch.ops.aten


def _tf32(tensor: Tensor, allow: bool) -> contextlib.AbstractContextManager:
    """The operator's own TF32 choice, where it differs from what the process has set."""
    if tensor.is_cuda and torch.backends.cudnn.allow_tf32 != allow:
        return torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=allow,
        )
    return contextlib.nullcontext()


def _shape_only(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """A tensor that stands for its sizes: ATen's backward operators ask for an input they never read."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last)
    )


def _split_padding(conv: tuple) -> tuple[list[int], list[int] | None]:
    """Padding as ATen can take it: (symmetric padding, None), or (zero, the four sides for `pad`)."""
    _, _, top, bottom, left, right = conv[:6]
    if top == bottom and left == right:
        return [top, left], None
    return [0, 0], [left, right, top, bottom]


def _preactivation(input, weight, bias, residual, conv, allow_tf32):
    """Dense, in the layout of a convolution's output."""
    channels_last = conv_channels_last(input, weight)
    stride, dilation, groups = conv[:2], conv[6:8], conv[8]
    padding, sides = _split_padding(conv)
    if sides is not None:
        input = pad(input, sides)
    with _tf32(input, allow_tf32):
        output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output = output.contiguous(memory_format=memory_format(channels_last))
    return output if residual is None else output.add_(residual)


def conv2d(input, weight, bias, residual, *args):
    *conv, activation, negative_slope, allow_tf32 = args
    _checks.conv2d("conv2d", input, weight, bias, residual, tuple(conv), activation, negative_slope)
    return activate(
        _preactivation(input, weight, bias, residual, conv, allow_tf32), activation, negative_slope
    )


def conv2d_with_preactivation(input, weight, bias, residual, *args):
    *conv, activation, negative_slope, allow_tf32 = args
    op = "conv2d_with_preactivation"
    _checks.conv2d(op, input, weight, bias, residual, tuple(conv), activation, negative_slope)
    preactivation = _preactivation(input, weight, bias, residual, conv, allow_tf32)
    if activation == "none":
        return preactivation.clone(), preactivation
    return activate(preactivation, activation, negative_slope), preactivation


def _convolution_backward(grad_output, input, weight, conv, padding, mask, allow_tf32):
    stride, dilation, groups = conv[:2], conv[6:8], conv[8]
    with _tf32(grad_output, allow_tf32):
        return _aten.convolution_backward(
            grad_output, input, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )


def conv2d_dgrad(grad_output, weight, height, width, *args):
    *conv, channels_last, allow_tf32 = args
    _checks.conv2d_dgrad(grad_output, weight, height, width, tuple(conv))
    padding, sides = _split_padding(conv)
    left, right, top, bottom = sides or (0, 0, 0, 0)
    shape = (grad_output.shape[0], weight.shape[1] * conv[8], height + top + bottom, width + left + right)
    input = _shape_only(grad_output, shape, channels_last)
    grad = _convolution_backward(grad_output, input, weight, conv, padding, [True, False, False], allow_tf32)[
        0
    ]
    if sides is not None:
        # The copy makes the result own its memory densely, as the operator promises.
        grad = grad[:, :, top : top + height, left : left + width].clone()
    return grad.contiguous(memory_format=memory_format(channels_last))


def conv2d_wgrad(grad_output, input, kernel_h, kernel_w, *args):
    *conv, channels_last, allow_tf32 = args
    _checks.conv2d_wgrad(grad_output, input, kernel_h, kernel_w, tuple(conv))
    padding, sides = _split_padding(conv)
    if sides is not None:
        input = pad(input, sides)
    shape = (grad_output.shape[1], input.shape[1] // conv[8], kernel_h, kernel_w)
    weight = _shape_only(grad_output, shape, channels_last)
    grad = _convolution_backward(grad_output, input, weight, conv, padding, [False, True, False], allow_tf32)[
        1
    ]
    return grad.contiguous(memory_format=memory_format(channels_last))


def conv2d_act_dgrad(grad_output, saved, weight, height, width, *args):
    *conv, activation, negative_slope, channels_last, allow_tf32 = args
    _checks.conv2d_act_dgrad(
        grad_output, saved, weight, height, width, tuple(conv), activation, negative_slope
    )
    grad = activation_grad(grad_output, saved, activation, negative_slope)
    return conv2d_dgrad(grad, weight, height, width, *conv, channels_last, allow_tf32)


def conv2d_act_wgrad(grad_output, saved, input, kernel_h, kernel_w, *args):
    *conv, activation, negative_slope, bias, channels_last, allow_tf32 = args
    _checks.conv2d_act_wgrad(
        grad_output, saved, input, kernel_h, kernel_w, tuple(conv), activation, negative_slope
    )
    grad = grad_output
    if saved is not None:
        grad = activation_grad(grad_output, saved, activation, negative_slope)
    weight_grad = conv2d_wgrad(grad, input, kernel_h, kernel_w, *conv, channels_last, allow_tf32)
    return weight_grad, conv2d_bias_grad(grad) if bias else grad.new_empty((0,))


def conv2d_bias_grad(grad_output):
    _checks.conv2d_bias_grad(grad_output)
    return grad_output.sum((0, 2, 3))


def _max_pool(input, pool):
    kernel, stride, padding, dilation, ceil_mode = pool[:2], pool[2:4], pool[4:6], pool[6:8], pool[8]
    output, indices = _aten.max_pool2d_with_indices(input, kernel, stride, padding, dilation, ceil_mode)
    layout = memory_format(suggests_channels_last(input))
    return output.contiguous(memory_format=layout), indices.contiguous(memory_format=layout)


def max_pool2d(input, *pool):
    _checks.max_pool2d(input, pool)
    return _max_pool(input, pool)[0]


def max_pool2d_with_indices(input, *pool):
    _checks.max_pool2d(input, pool)
    return _max_pool(input, pool)


def conv2d_act_max_pool2d(input, weight, bias, *args):
    _checks.conv2d_act_max_pool2d("conv2d_act_max_pool2d", input, weight, bias, tuple(args[:9]), *args[9:11])
    return _max_pool(conv2d(input, weight, bias, None, *args), HALVING_POOL)[0]


def conv2d_act_max_pool2d_with_offsets(input, weight, bias, *args):
    op = "conv2d_act_max_pool2d_with_offsets"
    _checks.conv2d_act_max_pool2d(op, input, weight, bias, tuple(args[:9]), *args[9:11])
    return max_pool2d_with_offsets(conv2d(input, weight, bias, None, *args), *HALVING_POOL)


def _first_positions(count: int, stride: int, pad: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) * stride - pad


def max_pool2d_with_offsets(input, *pool):
    _checks.max_pool2d(input, pool)
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = pool
    output, indices = _max_pool(input, pool)
    rows = _first_positions(output.shape[2], stride_h, pad_h, input.device)[:, None]
    columns = _first_positions(output.shape[3], stride_w, pad_w, input.device)
    r = (indices // input.shape[3] - rows) // dilation_h
    s = (indices % input.shape[3] - columns) // dilation_w
    return output, (r * kernel_w + s).to(offset_dtype(kernel_h, kernel_w))


def _flat_indices(indices: Tensor, width: int, pool: tuple) -> Tensor:
    """Positions h * width + w in the plane, from positions in the plane (int64) or in the window."""
    if indices.dtype == torch.int64:
        return indices
    _, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = pool
    rows = _first_positions(indices.shape[2], stride_h, pad_h, indices.device)[:, None]
    columns = _first_positions(indices.shape[3], stride_w, pad_w, indices.device)
    offsets = indices.to(torch.int64)
    return (offsets // kernel_w * dilation_h + rows) * width + offsets % kernel_w * dilation_w + columns


def max_pool2d_backward(grad_output, indices, height, width, *args):
    *pool, channels_last = args
    _checks.max_pool2d_backward(grad_output, indices, height, width, tuple(pool))
    kernel, stride, padding, dilation, ceil_mode = pool[:2], pool[2:4], pool[4:6], pool[6:8], pool[8]
    input = _shape_only(grad_output, (*grad_output.shape[:2], height, width), channels_last)
    grad = _aten.max_pool2d_with_indices_backward(
        grad_output, input, kernel, stride, padding, dilation, ceil_mode, _flat_indices(indices, width, pool)
    )
    return grad.contiguous(memory_format=memory_format(channels_last))


def _gather(input: Tensor, flat: Tensor) -> Tensor:
    picked = input.flatten(2).gather(2, flat.flatten(2)).reshape(flat.shape)
    return picked.contiguous(memory_format=memory_format(suggests_channels_last(input)))


def max_pool2d_gather(input, indices, *pool):
    _checks.max_pool2d_gather(input, indices, pool)
    return _gather(input, _flat_indices(indices, input.shape[3], pool))


def avg_pool2d(input, *pool):
    _checks.avg_pool2d(input, pool)
    kernel, stride, padding, (ceil_mode, include_pad, divisor) = pool[:2], pool[2:4], pool[4:6], pool[6:]
    output = _aten.avg_pool2d(input, kernel, stride, padding, ceil_mode, include_pad, divisor or None)
    return output.contiguous(memory_format=memory_format(suggests_channels_last(input)))


def avg_pool2d_backward(grad_output, height, width, *args):
    *pool, channels_last = args
    _checks.avg_pool2d_backward(grad_output, height, width, tuple(pool))
    kernel, stride, padding, (ceil_mode, include_pad, divisor) = pool[:2], pool[2:4], pool[4:6], pool[6:]
    input = _shape_only(grad_output, (*grad_output.shape[:2], height, width), channels_last)
    grad = _aten.avg_pool2d_backward(
        grad_output, input, kernel, stride, padding, ceil_mode, include_pad, divisor or None
    )
    return grad.contiguous(memory_format=memory_format(channels_last))


def adaptive_avg_pool2d(input, output_h, output_w):
    _checks.adaptive_pool2d("adaptive_avg_pool2d", input, output_h, output_w)
    output = _aten._adaptive_avg_pool2d(input, [output_h, output_w])
    return output.contiguous(memory_format=memory_format(suggests_channels_last(input)))


def adaptive_avg_pool2d_backward(grad_output, height, width, channels_last):
    _checks.adaptive_pool2d_backward("adaptive_avg_pool2d_backward", grad_output, None, height, width)
    shape = (*grad_output.shape[:2], height, width)
    if grad_output.numel() == 0:
        return _shape_only(grad_output, shape, channels_last).zero_()
    input = _shape_only(grad_output, shape, channels_last)
    grad = _aten._adaptive_avg_pool2d_backward(grad_output, input)
    return grad.contiguous(memory_format=memory_format(channels_last))


def adaptive_max_pool2d(input, output_h, output_w):
    _checks.adaptive_pool2d("adaptive_max_pool2d", input, output_h, output_w)
    output, indices = _aten.adaptive_max_pool2d(input, [output_h, output_w])
    layout = memory_format(suggests_channels_last(input))
    return output.contiguous(memory_format=layout), indices.contiguous(memory_format=layout)


def adaptive_max_pool2d_backward(grad_output, indices, height, width, channels_last):
    _checks.adaptive_pool2d_backward("adaptive_max_pool2d_backward", grad_output, indices, height, width)
    shape = (*grad_output.shape[:2], height, width)
    if grad_output.numel() == 0:
        return _shape_only(grad_output, shape, channels_last).zero_()
    input = _shape_only(grad_output, shape, channels_last)
    grad = _aten.adaptive_max_pool2d_backward(grad_output, input, indices)
    return grad.contiguous(memory_format=memory_format(channels_last))


def adaptive_max_pool2d_gather(input, indices):
    _checks.adaptive_max_pool2d_gather(input, indices)
    return _gather(input, indices)


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
