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

from fastcnn._activations import activation_grad, activation_grad_at_saved
from fastcnn._checks import DERIVED_FROM_OUTPUT
from fastcnn._shapes import HALVING_POOL, conv_channels_last, conv_output_shape, suggests_channels_last

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


def _conv2d_save(ctx, input, weight, saved, conv, activation, negative_slope, allow_tf32) -> None:
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None, saved)
    _conv2d_remember(ctx, input, weight, conv, activation, negative_slope, allow_tf32)


def _conv2d_remember(ctx, input, weight, conv, activation, negative_slope, allow_tf32) -> None:
    ctx.image, ctx.kernel = input.shape[2:], weight.shape[2:]
    ctx.input_channels_last = conv_channels_last(input, weight)
    ctx.weight_channels_last = suggests_channels_last(weight)
    ctx.conv, ctx.allow_tf32 = conv, allow_tf32
    ctx.activation = (activation, negative_slope)


def _conv2d_grads(ctx, grad, input, weight, saved, preactivation_grad=None):
    """The gradients of input, weight, bias and residual.

    `saved` is what the activation's derivative is taken at, None without activation; the gradients may be
    None. The activation's backward rides in the loads of dgrad and wgrad, unless the gradient behind it is
    wanted for itself too, or this backward is recorded to be differentiated.
    """
    needs_input, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    conv, allow_tf32 = ctx.conv, ctx.allow_tf32
    recorded = torch.is_grad_enabled()
    wanted = needs_residual or preactivation_grad is not None or (needs_bias and not needs_weight)
    if grad is None:
        grad, saved = preactivation_grad, None
    elif saved is not None and (wanted or recorded):
        grad, saved = activation_grad(grad, saved, *ctx.activation), None
        if preactivation_grad is not None:
            grad = grad + preactivation_grad
    elif preactivation_grad is not None:
        grad = grad + preactivation_grad
    if grad is None:
        return None, None, None, None

    input_grad = weight_grad = bias_grad = None
    if needs_input:
        rest = (*ctx.image, *conv)
        layout = (ctx.input_channels_last, allow_tf32)
        if saved is None:
            input_grad = _call(_ops.conv2d_dgrad.default, grad, weight, *rest, *layout)
        else:
            input_grad = _call(
                _ops.conv2d_act_dgrad.default, grad, saved, weight, *rest, *ctx.activation, *layout
            )
    if needs_weight:
        rest = (*ctx.kernel, *conv)
        layout = (ctx.weight_channels_last, allow_tf32)
        if saved is not None or (needs_bias and not recorded):
            weight_grad, bias_grad = _call(
                _ops.conv2d_act_wgrad.default, grad, saved, input, *rest, *ctx.activation, needs_bias, *layout
            )
        else:
            weight_grad = _call(_ops.conv2d_wgrad.default, grad, input, *rest, *layout)
    if not needs_bias:
        bias_grad = None
    elif bias_grad is None:
        bias_grad = _call(_ops.conv2d_bias_grad.default, grad)
    return input_grad, weight_grad, bias_grad, grad if needs_residual else None


def _conv2d_setup(ctx, inputs, output):
    input, weight, bias, residual, *rest = inputs
    activation = rest[9]
    if activation in DERIVED_FROM_OUTPUT:
        saved = None if activation == "none" else output
        _conv2d_save(ctx, input, weight, saved, tuple(rest[:9]), *rest[9:])
    else:
        # The preactivation was not kept: it is computed again.
        ctx.save_for_backward(input, weight, bias, residual)
        _conv2d_remember(ctx, input, weight, tuple(rest[:9]), *rest[9:])


def _conv2d_backward(ctx, grad):
    if ctx.activation[0] in DERIVED_FROM_OUTPUT:
        input, weight, saved = ctx.saved_tensors
    else:
        input, weight, bias, residual = ctx.saved_tensors
        saved = _call(
            _ops.conv2d.default, input, weight, bias, residual, *ctx.conv, "none", 0.0, ctx.allow_tf32
        )
    return (*_conv2d_grads(ctx, grad, input, weight, saved), *(None,) * 12)


def _preactivation_setup(ctx, inputs, output):
    input, weight, _, _, *rest = inputs
    saved = _saved_of(output, rest[9])
    _conv2d_save(ctx, input, weight, saved, tuple(rest[:9]), *rest[9:])
    ctx.set_materialize_grads(False)


def _saved_of(outputs: tuple[Tensor, Tensor], activation: str) -> Tensor | None:
    if activation == "none":
        return None
    return outputs[0] if activation in DERIVED_FROM_OUTPUT else outputs[1]


def _preactivation_backward(ctx, grad, preactivation_grad):
    return (*_conv2d_grads(ctx, grad, *ctx.saved_tensors, preactivation_grad), *(None,) * 12)


def _act_dgrad_setup(ctx, inputs, output):
    grad_output, saved, weight, _, _, *rest = inputs
    ctx.save_for_backward(grad_output, saved, weight)
    ctx.conv, ctx.activation, ctx.allow_tf32 = tuple(rest[:9]), tuple(rest[9:11]), rest[12]


def _act_dgrad_backward(ctx, grad):
    grad_output, saved, weight = ctx.saved_tensors
    to_grad_output = to_saved = to_weight = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        along = _call(_ops.conv2d.default, grad, weight, None, None, *ctx.conv, "none", 0.0, ctx.allow_tf32)
        to_grad_output = activation_grad(along, saved, *ctx.activation)
        to_saved = activation_grad_at_saved(along, grad_output, saved, ctx.activation[0])
    if ctx.needs_input_grad[2]:
        behind = activation_grad(grad_output, saved, *ctx.activation)
        layout = suggests_channels_last(weight)
        to_weight = _call(
            _ops.conv2d_wgrad.default, behind, grad, *weight.shape[2:], *ctx.conv, layout, ctx.allow_tf32
        )
    return (to_grad_output, to_saved, to_weight, *(None,) * 15)


def _act_wgrad_setup(ctx, inputs, output):
    grad_output, saved, input, _, _, *rest = inputs
    ctx.save_for_backward(grad_output, saved, input)
    ctx.conv, ctx.activation, ctx.bias, ctx.allow_tf32 = (
        tuple(rest[:9]),
        tuple(rest[9:11]),
        rest[11],
        rest[13],
    )


def _act_wgrad_backward(ctx, weight_grad, bias_grad):
    grad_output, saved, input = ctx.saved_tensors
    to_grad_output = to_saved = to_input = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        along = _call(
            _ops.conv2d.default, input, weight_grad, None, None, *ctx.conv, "none", 0.0, ctx.allow_tf32
        )
        if ctx.bias:
            along = along + bias_grad[:, None, None]
        to_grad_output = along
        if saved is not None:
            to_grad_output = activation_grad(along, saved, *ctx.activation)
            to_saved = activation_grad_at_saved(along, grad_output, saved, ctx.activation[0])
    if ctx.needs_input_grad[2]:
        behind = grad_output if saved is None else activation_grad(grad_output, saved, *ctx.activation)
        layout = suggests_channels_last(input)
        to_input = _call(
            _ops.conv2d_dgrad.default,
            behind,
            weight_grad,
            *input.shape[2:],
            *ctx.conv,
            layout,
            ctx.allow_tf32,
        )
    return (to_grad_output, to_saved, to_input, *(None,) * 16)


def _dgrad_setup(ctx, inputs, output):
    grad_output, weight, _, _, *rest = inputs
    ctx.save_for_backward(grad_output, weight)
    ctx.conv, ctx.allow_tf32 = tuple(rest[:9]), rest[10]


def _dgrad_backward(ctx, grad):
    grad_output, weight = ctx.saved_tensors
    to_grad_output = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad_output = _call(
            _ops.conv2d.default, grad, weight, None, None, *ctx.conv, "none", 0.0, ctx.allow_tf32
        )
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
        to_grad_output = _call(
            _ops.conv2d.default, input, grad, None, None, *ctx.conv, "none", 0.0, ctx.allow_tf32
        )
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


# --- convolution, activation and 2x2 max pool in one -----------------------------------------------


def _conv_pool_remember(ctx, input, weight, conv, activation, negative_slope, allow_tf32) -> None:
    _conv2d_remember(ctx, input, weight, conv, activation, negative_slope, allow_tf32)
    ctx.convolved = conv_output_shape(input.shape, weight.shape, conv)[2:]


def _conv_pool_grads(ctx, grad, input, weight, saved, offsets):
    """The gradients of input, weight and bias.

    `saved` is what the activation's derivative is taken at, where the maxima were: of the pooled size, like
    `grad`, which goes through the activation before the pool spreads it.
    """
    if saved is not None:
        grad = activation_grad(grad, saved, *ctx.activation)
    grad = _call(
        _ops.max_pool2d_backward.default,
        grad,
        offsets,
        *ctx.convolved,
        *HALVING_POOL,
        ctx.input_channels_last,
    )
    return _conv2d_grads(ctx, grad, input, weight, None)[:3]


def _conv_pool_setup(ctx, inputs, output):
    input, weight, bias, *rest = inputs
    if isinstance(output, tuple):
        pooled, offsets = output
        ctx.mark_non_differentiable(offsets)
    else:
        pooled, offsets = output, None
    ctx.save_for_backward(input, weight, bias, pooled, offsets)
    _conv_pool_remember(ctx, input, weight, tuple(rest[:9]), *rest[9:])


def _conv_pool_backward(ctx, grad, _=None):
    input, weight, bias, saved, offsets = ctx.saved_tensors
    operands = (input, weight, bias)
    if offsets is None:
        with torch.no_grad():
            op = _ops.conv2d_act_max_pool2d_with_offsets.default
            offsets = _call(op, *operands, *ctx.conv, *ctx.activation, ctx.allow_tf32)[1]
    if ctx.activation[0] == "none":
        saved = None
    elif ctx.activation[0] not in DERIVED_FROM_OUTPUT:
        # The preactivation was not kept: it is computed again.
        rest = (*ctx.conv, "none", 0.0, ctx.allow_tf32)
        preactivation = _call(_ops.conv2d.default, *operands, None, *rest)
        saved = _call(_ops.max_pool2d_gather.default, preactivation, offsets, *HALVING_POOL)
    return (*_conv_pool_grads(ctx, grad, input, weight, saved, offsets), *(None,) * 12)


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
    "conv2d_with_preactivation": Formula(_preactivation_setup, _preactivation_backward),
    "conv2d_act_dgrad": Formula(_act_dgrad_setup, _act_dgrad_backward),
    "conv2d_act_wgrad": Formula(_act_wgrad_setup, _act_wgrad_backward),
    "conv2d_act_max_pool2d": Formula(_conv_pool_setup, _conv_pool_backward),
    "conv2d_act_max_pool2d_with_offsets": Formula(_conv_pool_setup, _conv_pool_backward),
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
    """For the activations of DERIVED_FROM_OUTPUT, which need nothing kept but the output."""

    @staticmethod
    def forward(ctx, input, weight, bias, residual, conv, activation, negative_slope, allow_tf32):
        rest = (activation, negative_slope, allow_tf32)
        with torch._C._AutoDispatchBelowAutograd():
            output = _ops.conv2d.default(input, weight, bias, residual, *conv, *rest)
        _conv2d_save(ctx, input, weight, None if activation == "none" else output, conv, *rest)
        return output

    @staticmethod
    def backward(ctx, grad):
        return (*_conv2d_grads(ctx, grad, *ctx.saved_tensors), None, None, None, None)


class Conv2dWithPreactivation(Function):
    @staticmethod
    def forward(ctx, input, weight, bias, residual, conv, activation, negative_slope, allow_tf32):
        rest = (activation, negative_slope, allow_tf32)
        with torch._C._AutoDispatchBelowAutograd():
            outputs = _ops.conv2d_with_preactivation.default(input, weight, bias, residual, *conv, *rest)
        _conv2d_save(ctx, input, weight, _saved_of(outputs, activation), conv, *rest)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, grad, preactivation_grad):
        grads = _conv2d_grads(ctx, grad, *ctx.saved_tensors, preactivation_grad)
        return (*grads, None, None, None, None)


class ConvActMaxPool2d(Function):
    """For the activations of DERIVED_FROM_OUTPUT: beside its operands it keeps the pooled result and one byte
    for each window, never the convolution's output."""

    @staticmethod
    def forward(ctx, input, weight, bias, conv, activation, negative_slope, allow_tf32):
        rest = (activation, negative_slope, allow_tf32)
        with torch._C._AutoDispatchBelowAutograd():
            op = _ops.conv2d_act_max_pool2d_with_offsets.default
            output, offsets = op(input, weight, bias, *conv, *rest)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            input if needs_weight else None,
            weight if needs_input else None,
            None if activation == "none" else output,
            offsets,
        )
        _conv_pool_remember(ctx, input, weight, conv, *rest)
        return output

    @staticmethod
    def backward(ctx, grad):
        return (*_conv_pool_grads(ctx, grad, *ctx.saved_tensors), None, None, None, None)


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
