"""The operators' derivatives, once, used in two ways.

`FORMULAS` is what `ops.py` registers on the operators themselves: torch.compile, torch.export and a second
derivative need it there. The `autograd.Function`s at the end are the eager fast path of `functional.py`: the
same formulas around the raw kernel calls, for less time per call.

The set is closed: every derivative is another operator of the set (conv2d, dgrad and wgrad are each other's;
a pool's backward has the pool, or a gather, as its derivative), so any order of differentiation works.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastcnn._shapes import conv_channels_last, suggests_channels_last

_ops = torch.ops.fastcnn


class Formula(NamedTuple):
    setup_context: Any
    backward: Any


def refuse_duals(op: str, *tensors: Any) -> None:
    """Raise where a forward-mode tangent would be dropped silently."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{op}(): fastcnn's kernels have no forward-mode derivative (jvp); use reverse mode, or "
                "torch.nn.functional (fastcnn.revert for a model) where forward mode is needed"
            )


def _call(op, *args):
    """Call an operator inside a backward: straight to its kernel unless this backward is itself recorded."""
    if forward_ad._current_level >= 0:
        refuse_duals(op.name(), *args)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


# --- convolution ----------------------------------------------------------------------------------


def _activation_grad(grad: Tensor, output: Tensor, activation: str) -> Tensor:
    """The gradient before the activation, from the activation's own output."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, output, 0)
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(grad, output)
    return torch.ops.aten.tanh_backward(grad, output)


def _conv2d_save(ctx, input, weight, output, conv, activation, allow_tf32) -> None:
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        None if activation == "none" else output,
    )
    ctx.image, ctx.kernel = input.shape[2:], weight.shape[2:]
    ctx.input_channels_last = conv_channels_last(input, weight)
    ctx.weight_channels_last = suggests_channels_last(weight)
    ctx.conv, ctx.activation, ctx.allow_tf32 = conv, activation, allow_tf32


def _conv2d_grads(ctx, grad):
    input, weight, output = ctx.saved_tensors
    if output is not None:
        grad = _activation_grad(grad, output, ctx.activation)
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    conv, allow_tf32 = ctx.conv, ctx.allow_tf32
    input_grad = weight_grad = bias_grad = None
    if needs_input:
        input_grad = _call(
            _ops.conv2d_dgrad.default, grad, weight, *ctx.image, *conv, ctx.input_channels_last, allow_tf32
        )
    if needs_weight:
        weight_grad = _call(
            _ops.conv2d_wgrad.default, grad, input, *ctx.kernel, *conv, ctx.weight_channels_last, allow_tf32
        )
    if needs_bias:
        bias_grad = _call(_ops.conv2d_bias_grad.default, grad)
    return input_grad, weight_grad, bias_grad


def _conv2d_setup(ctx, inputs, output):
    input, weight, _, *rest = inputs
    _conv2d_save(ctx, input, weight, output, tuple(rest[:9]), rest[9], rest[10])


def _conv2d_backward(ctx, grad):
    return (*_conv2d_grads(ctx, grad), *(None,) * 11)


def _dgrad_setup(ctx, inputs, output):
    grad_output, weight, _, _, *rest = inputs
    ctx.save_for_backward(grad_output, weight)
    ctx.conv, ctx.allow_tf32 = tuple(rest[:9]), rest[10]


def _dgrad_backward(ctx, grad):
    grad_output, weight = ctx.saved_tensors
    to_grad_output = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad_output = _call(_ops.conv2d.default, grad, weight, None, *ctx.conv, "none", ctx.allow_tf32)
    if ctx.needs_input_grad[1]:
        layout = suggests_channels_last(weight)
        to_weight = _call(
            _ops.conv2d_wgrad.default, grad_output, grad, *weight.shape[2:], *ctx.conv, layout, ctx.allow_tf32
        )
    return (to_grad_output, to_weight, *(None,) * 13)


def _wgrad_setup(ctx, inputs, output):
    grad_output, input, _, _, *rest = inputs
    ctx.save_for_backward(grad_output, input)
    ctx.conv, ctx.allow_tf32 = tuple(rest[:9]), rest[10]


def _wgrad_backward(ctx, grad):
    grad_output, input = ctx.saved_tensors
    to_grad_output = to_input = None
    if ctx.needs_input_grad[0]:
        to_grad_output = _call(_ops.conv2d.default, input, grad, None, *ctx.conv, "none", ctx.allow_tf32)
    if ctx.needs_input_grad[1]:
        layout = suggests_channels_last(input)
        to_input = _call(
            _ops.conv2d_dgrad.default, grad_output, grad, *input.shape[2:], *ctx.conv, layout, ctx.allow_tf32
        )
    return (to_grad_output, to_input, *(None,) * 13)


def _bias_grad_setup(ctx, inputs, output):
    ctx.shape = inputs[0].shape


def _bias_grad_backward(ctx, grad):
    return grad[:, None, None].expand(ctx.shape)


# --- max pooling ----------------------------------------------------------------------------------


def _max_pool_remember(ctx, input, pool) -> None:
    ctx.pool, ctx.image, ctx.channels_last = pool, input.shape[2:], suggests_channels_last(input)


def _max_pool_spread(ctx, grad, indices):
    return _call(_ops.max_pool2d_backward.default, grad, indices, *ctx.image, *ctx.pool, ctx.channels_last)


def _max_pool_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.pool = tuple(inputs[1:])


def _max_pool_backward(ctx, grad):
    (input,) = ctx.saved_tensors
    with torch.no_grad():
        offsets = _call(_ops.max_pool2d_with_offsets.default, input, *ctx.pool)[1]
    ctx.image, ctx.channels_last = input.shape[2:], suggests_channels_last(input)
    return (_max_pool_spread(ctx, grad, offsets), *(None,) * 9)


def _max_pool_indexed_setup(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    _max_pool_remember(ctx, inputs[0], tuple(inputs[1:]))


def _max_pool_indexed_backward(ctx, grad, _):
    return (_max_pool_spread(ctx, grad, *ctx.saved_tensors), *(None,) * 9)


def _max_pool_backward_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.pool = tuple(inputs[4:13])


def _max_pool_backward_backward(ctx, grad):
    return (_call(_ops.max_pool2d_gather.default, grad, *ctx.saved_tensors, *ctx.pool), *(None,) * 13)


def _max_pool_gather_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    _max_pool_remember(ctx, inputs[0], tuple(inputs[2:]))


def _max_pool_gather_backward(ctx, grad):
    return (_max_pool_spread(ctx, grad, *ctx.saved_tensors), *(None,) * 10)


# --- average pooling ------------------------------------------------------------------------------


def _avg_pool_remember(ctx, input, pool) -> None:
    ctx.pool, ctx.image, ctx.channels_last = pool, input.shape[2:], suggests_channels_last(input)


def _avg_pool_grad(ctx, grad):
    return _call(_ops.avg_pool2d_backward.default, grad, *ctx.image, *ctx.pool, ctx.channels_last)


def _avg_pool_setup(ctx, inputs, output):
    _avg_pool_remember(ctx, inputs[0], tuple(inputs[1:]))


def _avg_pool_backward(ctx, grad):
    return (_avg_pool_grad(ctx, grad), *(None,) * 9)


def _avg_pool_backward_setup(ctx, inputs, output):
    ctx.pool = tuple(inputs[3:12])


def _avg_pool_backward_backward(ctx, grad):
    return (_call(_ops.avg_pool2d.default, grad, *ctx.pool), *(None,) * 12)


# --- adaptive pooling -----------------------------------------------------------------------------


def _adaptive_remember(ctx, input) -> None:
    ctx.image, ctx.channels_last = input.shape[2:], suggests_channels_last(input)


def _adaptive_avg_grad(ctx, grad):
    return _call(_ops.adaptive_avg_pool2d_backward.default, grad, *ctx.image, ctx.channels_last)


def _adaptive_avg_setup(ctx, inputs, output):
    _adaptive_remember(ctx, inputs[0])


def _adaptive_avg_backward(ctx, grad):
    return _adaptive_avg_grad(ctx, grad), None, None


def _adaptive_avg_backward_setup(ctx, inputs, output):
    ctx.output_size = inputs[0].shape[2:]


def _adaptive_avg_backward_backward(ctx, grad):
    return _call(_ops.adaptive_avg_pool2d.default, grad, *ctx.output_size), None, None, None


def _adaptive_max_spread(ctx, grad, indices):
    return _call(_ops.adaptive_max_pool2d_backward.default, grad, indices, *ctx.image, ctx.channels_last)


def _adaptive_max_setup(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    _adaptive_remember(ctx, inputs[0])


def _adaptive_max_backward(ctx, grad, _):
    return _adaptive_max_spread(ctx, grad, *ctx.saved_tensors), None, None


def _adaptive_max_backward_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _adaptive_max_backward_backward(ctx, grad):
    picked = _call(_ops.adaptive_max_pool2d_gather.default, grad, *ctx.saved_tensors)
    return picked, None, None, None, None


def _adaptive_max_gather_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    _adaptive_remember(ctx, inputs[0])


def _adaptive_max_gather_backward(ctx, grad):
    return _adaptive_max_spread(ctx, grad, *ctx.saved_tensors), None


FORMULAS = {
    "conv2d": Formula(_conv2d_setup, _conv2d_backward),
    "conv2d_dgrad": Formula(_dgrad_setup, _dgrad_backward),
    "conv2d_wgrad": Formula(_wgrad_setup, _wgrad_backward),
    "conv2d_bias_grad": Formula(_bias_grad_setup, _bias_grad_backward),
    "max_pool2d": Formula(_max_pool_setup, _max_pool_backward),
    "max_pool2d_with_offsets": Formula(_max_pool_indexed_setup, _max_pool_indexed_backward),
    "max_pool2d_with_indices": Formula(_max_pool_indexed_setup, _max_pool_indexed_backward),
    "max_pool2d_backward": Formula(_max_pool_backward_setup, _max_pool_backward_backward),
    "max_pool2d_gather": Formula(_max_pool_gather_setup, _max_pool_gather_backward),
    "avg_pool2d": Formula(_avg_pool_setup, _avg_pool_backward),
    "avg_pool2d_backward": Formula(_avg_pool_backward_setup, _avg_pool_backward_backward),
    "adaptive_avg_pool2d": Formula(_adaptive_avg_setup, _adaptive_avg_backward),
    "adaptive_avg_pool2d_backward": Formula(_adaptive_avg_backward_setup, _adaptive_avg_backward_backward),
    "adaptive_max_pool2d": Formula(_adaptive_max_setup, _adaptive_max_backward),
    "adaptive_max_pool2d_backward": Formula(_adaptive_max_backward_setup, _adaptive_max_backward_backward),
    "adaptive_max_pool2d_gather": Formula(_adaptive_max_gather_setup, _adaptive_max_gather_backward),
}


# --- the eager fast path --------------------------------------------------------------------------


class Conv2d(Function):
    @staticmethod
    def forward(ctx, input, weight, bias, conv, activation, allow_tf32):
        with torch._C._AutoDispatchBelowAutograd():
            output = _ops.conv2d.default(input, weight, bias, *conv, activation, allow_tf32)
        _conv2d_save(ctx, input, weight, output, conv, activation, allow_tf32)
        return output

    @staticmethod
    def backward(ctx, grad):
        return (*_conv2d_grads(ctx, grad), None, None, None)


class MaxPool2d(Function):
    """Remembers one byte per window instead of torch's eight."""

    @staticmethod
    def forward(ctx, input, pool):
        with torch._C._AutoDispatchBelowAutograd():
            output, offsets = _ops.max_pool2d_with_offsets.default(input, *pool)
        ctx.save_for_backward(offsets)
        _max_pool_remember(ctx, input, pool)
        return output

    @staticmethod
    def backward(ctx, grad):
        return _max_pool_spread(ctx, grad, *ctx.saved_tensors), None


class MaxPool2dWithIndices(Function):
    @staticmethod
    def forward(ctx, input, pool):
        with torch._C._AutoDispatchBelowAutograd():
            output, indices = _ops.max_pool2d_with_indices.default(input, *pool)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        _max_pool_remember(ctx, input, pool)
        return output, indices

    @staticmethod
    def backward(ctx, grad, _):
        return _max_pool_spread(ctx, grad, *ctx.saved_tensors), None


class AvgPool2d(Function):
    @staticmethod
    def forward(ctx, input, pool):
        with torch._C._AutoDispatchBelowAutograd():
            output = _ops.avg_pool2d.default(input, *pool)
        _avg_pool_remember(ctx, input, pool)
        return output

    @staticmethod
    def backward(ctx, grad):
        return _avg_pool_grad(ctx, grad), None


class AdaptiveAvgPool2d(Function):
    @staticmethod
    def forward(ctx, input, output_h, output_w):
        with torch._C._AutoDispatchBelowAutograd():
            output = _ops.adaptive_avg_pool2d.default(input, output_h, output_w)
        _adaptive_remember(ctx, input)
        return output

    @staticmethod
    def backward(ctx, grad):
        return _adaptive_avg_grad(ctx, grad), None, None


class AdaptiveMaxPool2d(Function):
    @staticmethod
    def forward(ctx, input, output_h, output_w):
        with torch._C._AutoDispatchBelowAutograd():
            output, indices = _ops.adaptive_max_pool2d.default(input, output_h, output_w)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        _adaptive_remember(ctx, input)
        return output, indices

    @staticmethod
    def backward(ctx, grad, _):
        return _adaptive_max_spread(ctx, grad, *ctx.saved_tensors), None, None
