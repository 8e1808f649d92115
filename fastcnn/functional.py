"""Convolution and pooling with the signatures of `torch.nn.functional`, on this package's kernels.

A call whose device or dtype has no kernel here (integers, complex numbers, a CPU without the emulated
library, an empty tensor, a `torch.func` transform) is handed to `torch.nn.functional` unchanged, so every
function here accepts whatever torch's does. Results are deterministic on our kernels: same input, same bits.
Forward-mode automatic differentiation is not offered by the kernels and raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastcnn import _autocast, _autograd
from fastcnn._activations import activate
from fastcnn._arguments import kernel_pair, pair, real, same_padding, single, size_pair
from fastcnn._checks import DERIVED_FROM_OUTPUT, DTYPES, activation_problem, residual_problem
from fastcnn._library import KERNEL_DEVICES
from fastcnn._shapes import HALVING_POOL

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "conv2d",
    "conv2d_act",
    "conv2d_act_max_pool2d",
    "max_pool2d",
]

_ops = torch.ops.fastcnn
_below_autograd = torch._C._AutoDispatchBelowAutograd


def _served(input: Tensor) -> bool:
    """Whether our kernels take this input; otherwise the call is torch's.

    Callers look first at whether there are kernels for any device: where there are none, calls stay cheap.
    """
    return (
        isinstance(input, Tensor)
        and input.device.type in KERNEL_DEVICES
        and input.dtype in DTYPES
        and input.layout is torch.strided
        and input.numel() != 0
        and not torch._C._are_functorch_transforms_active()
    )


def _recorded() -> bool:
    """Whether something is recording operators, so that the call must stay visible to the dispatcher."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _batched(op: str, input: Tensor) -> tuple[Tensor, bool]:
    if input.dim() == 4:
        return input, False
    if input.dim() == 3:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"{op}(): expected input to be 3-D (unbatched) or 4-D (batched), but it is {input.dim()}-D, "
        f"size {list(input.shape)}"
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "none",
) -> Tensor:
    """2-D convolution, as `torch.nn.functional.conv2d`, optionally with an activation fused into the kernel.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, float32, float16, bfloat16 or float64 (others go to torch),
            with any strides.
        weight: ``(K, C // groups, R, S)``, in the dtype of `input`.
        bias: ``(K,)`` or None, in the dtype of `input`.
        stride, padding, dilation: an int or two; `padding` may be "valid" or "same" (stride 1 only; of an odd
            total the larger half goes to the bottom and right).
        groups: divides C and K.
        activation: applied to the biased result; see `conv2d_act`, whose names and defaults it has.

    Returns:
        ``(N, K, P, Q)``, channels_last if `input` or `weight` is. Sums are carried in float32 (float64 for
        float64); float32 products use TF32 only if ``torch.backends.cudnn.allow_tf32``. Under autocast the
        call runs in the autocast dtype.

    Raises:
        RuntimeError: sizes, dtypes, devices or parameters that do not fit, as in torch.
        ValueError: an unknown `activation`.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
        )
    return _convolve("conv2d", input, weight, bias, stride, padding, dilation, groups, activation, None, 0.01)


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """``activation(conv2d(input, weight, bias, ...) + residual)`` in one kernel, rounded once.

    In training the backward of the activation runs inside the kernels of the convolution's backward. For
    that relu, sigmoid, tanh and leaky_relu keep nothing but the result; silu, gelu and hardswish keep what
    went into the activation too: one more tensor of the result's size.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for `conv2d`.
        activation: "none", "relu", "sigmoid", "tanh", "silu", "gelu" (the one by erf), "hardswish" or
            "leaky_relu", each as torch's function of that name, NaN and infinities included.
        residual: of the result's size (it is not broadcast), in the dtype of `input`, or None. Where it does
            not lie in memory as the result does, it is copied first.
        negative_slope: of leaky_relu, finite and not negative; the others leave it alone.

    Returns:
        ``(N, K, P, Q)``, or without N where `input` is; layout, accumulation, TF32 and autocast as `conv2d`.

    Raises:
        RuntimeError: sizes, dtypes, devices or parameters that do not fit.
        TypeError: a `residual` that is no tensor, a `negative_slope` of leaky_relu that is no real number.
        ValueError: an unknown `activation`, or a `negative_slope` out of its range.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_variadic(input, weight, bias, residual):
        return handle_torch_function(
            conv2d_act,
            (input, weight, bias, residual),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
            residual=residual,
            negative_slope=negative_slope,
        )
    return _convolve(
        "conv2d_act",
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        activation,
        residual,
        negative_slope,
    )


def _slope_read(op: str, activation: str, negative_slope: float) -> float:
    """leaky_relu's slope as a float. Others' is not looked at: it would be a symbol to torch.compile.

    Raises what is wrong with either.
    """
    slope = real(f"{op}(): negative_slope", negative_slope) if activation == "leaky_relu" else 0.0
    problem = activation_problem(activation, slope)
    if problem is not None:
        raise ValueError(f"{op}(): {problem}")
    return slope


def _convolve(
    op, input, weight, bias, stride, padding, dilation, groups, activation, residual, negative_slope
):
    negative_slope = _slope_read(op, activation, negative_slope)
    if residual is not None and not isinstance(residual, Tensor):
        raise TypeError(f"{op}(): residual must be a Tensor or None, not {type(residual).__name__}")
    if (
        not (KERNEL_DEVICES and _served(input))
        or not isinstance(weight, Tensor)
        or not (bias is None or isinstance(bias, Tensor))
    ):
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        if residual is not None:
            output = output + _added(op, residual, output)
        return activate(output, activation, negative_slope)
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals(op, input, weight, bias, residual)

    input, unbatched = _batched(op, input)
    if unbatched and residual is not None:
        residual = residual.unsqueeze(0)
    conv = _geometry(op, weight, stride, padding, dilation, groups)
    output = _conv2d(input, weight, bias, residual, conv, activation, negative_slope)
    return output.squeeze(0) if unbatched else output


def _geometry(op, weight, stride, padding, dilation, groups):
    stride_h, stride_w = pair(op, "stride", stride)
    dilation_h, dilation_w = pair(op, "dilation", dilation)
    if isinstance(padding, str):
        sides = same_padding(padding, weight, (stride_h, stride_w), (dilation_h, dilation_w))
    else:
        pad_h, pad_w = pair(op, "padding", padding)
        sides = (pad_h, pad_h, pad_w, pad_w)
    return (stride_h, stride_w, *sides, dilation_h, dilation_w, single(op, "groups", groups))


def _added(op: str, residual: Tensor, output: Tensor) -> Tensor:
    """`residual`, held to what the kernels ask of it, for torch to add to `output`."""
    problem = residual_problem(residual.shape, output.shape)
    if problem is not None:
        raise RuntimeError(f"{op}(): {problem}")
    if torch.is_autocast_enabled(output.device.type):
        return _autocast.cast(residual, output.device.type, output.dtype)
    if residual.dtype != output.dtype:
        raise RuntimeError(
            f"{op}(): residual has dtype {residual.dtype}, but input has {output.dtype}; "
            "they should be the same"
        )
    return residual


def _conv2d(input, weight, bias, residual, conv, activation, negative_slope):
    rest = (activation, negative_slope, input.is_cuda and torch.backends.cudnn.allow_tf32)
    needs_grad = torch.is_grad_enabled() and (
        input.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    if _recorded():
        if needs_grad and torch.compiler.is_compiling() and activation not in DERIVED_FROM_OUTPUT:
            return _ops.conv2d_with_preactivation.default(input, weight, bias, residual, *conv, *rest)[0]
        return _ops.conv2d.default(input, weight, bias, residual, *conv, *rest)
    device_type = input.device.type
    if torch.is_autocast_enabled(device_type):
        # Cast outside the Function: the casts' own gradients bring the parameters' dtype back.
        dtype = torch.get_autocast_dtype(device_type)
        input, weight, bias, residual = (
            _autocast.cast(tensor, device_type, dtype) for tensor in (input, weight, bias, residual)
        )
    if needs_grad:
        if activation in DERIVED_FROM_OUTPUT:
            return _autograd.Conv2d.apply(input, weight, bias, residual, conv, *rest)
        return _autograd.Conv2dWithPreactivation.apply(input, weight, bias, residual, conv, *rest)[0]
    with _below_autograd():
        return _ops.conv2d.default(input, weight, bias, residual, *conv, *rest)


def conv2d_act_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """``max_pool2d(conv2d_act(input, weight, ...), 2)`` in one kernel that stores the pooled result only.

    The pool has a 2x2 window, stride 2 and no padding: of an odd number of rows or columns the last is left
    out. float64, groups and very large kernels take the two kernels instead. In training, relu, sigmoid,
    tanh, leaky_relu and none keep the pooled result and one byte for each window; with silu, gelu and
    hardswish, which need more, training is `conv2d_act` and `max_pool2d`.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for `conv2d`.
        activation, negative_slope: as for `conv2d_act`.

    Returns:
        ``(N, K, P // 2, Q // 2)`` for a convolution of P x Q pixels, or without N where `input` is; layout,
        accumulation and autocast as `conv2d`; the maxima are those of values rounded to the dtype. A NaN in a
        window is its maximum.

    Raises:
        RuntimeError: sizes, dtypes, devices or parameters that do not fit, a convolution of less than 2x2
            pixels among them.
        TypeError: a `negative_slope` of leaky_relu that is no real number.
        ValueError: an unknown `activation`, or a `negative_slope` out of its range.
        NotImplementedError: a forward-mode dual tensor.
    """
    op = "conv2d_act_max_pool2d"
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv2d_act_max_pool2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
            negative_slope=negative_slope,
        )
    negative_slope = _slope_read(op, activation, negative_slope)
    if (
        not (KERNEL_DEVICES and _served(input))
        or not isinstance(weight, Tensor)
        or not (bias is None or isinstance(bias, Tensor))
    ):
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return F.max_pool2d(activate(output, activation, negative_slope), 2)
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals(op, input, weight, bias)
    input, unbatched = _batched(op, input)
    conv = _geometry(op, weight, stride, padding, dilation, groups)
    output = _conv2d_act_max_pool2d(input, weight, bias, conv, activation, negative_slope)
    return output.squeeze(0) if unbatched else output


def _conv2d_act_max_pool2d(input, weight, bias, conv, activation, negative_slope):
    rest = (activation, negative_slope, input.is_cuda and torch.backends.cudnn.allow_tf32)
    needs_grad = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if needs_grad and activation not in DERIVED_FROM_OUTPUT:
        return _max_pool2d(_conv2d(input, weight, bias, None, conv, activation, negative_slope), HALVING_POOL)
    if _recorded():
        if needs_grad and torch.compiler.is_compiling():
            return _ops.conv2d_act_max_pool2d_with_offsets.default(input, weight, bias, *conv, *rest)[0]
        return _ops.conv2d_act_max_pool2d.default(input, weight, bias, *conv, *rest)
    device_type = input.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, weight, bias = (_autocast.cast(tensor, device_type, dtype) for tensor in (input, weight, bias))
    if needs_grad:
        return _autograd.ConvActMaxPool2d.apply(input, weight, bias, conv, *rest)
    with _below_autograd():
        return _ops.conv2d_act_max_pool2d.default(input, weight, bias, *conv, *rest)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max pooling, as `torch.nn.functional.max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, with any strides.
        kernel_size, stride, padding, dilation: an int or two; `stride` None is `kernel_size`; `padding` is at
            most half of `kernel_size`.
        ceil_mode: round the output size up.
        return_indices: also return each maximum's position ``h * W + w`` in its plane (int64).

    Returns:
        ``(N, C, P, Q)`` in the layout of `input`, or that and the indices. A NaN in a window is its maximum;
        of equal values the first in row order is taken. Runs in the dtype of `input`, under autocast too. For
        the backward pass one byte per window is kept (four for windows of more than 256).

    Raises:
        RuntimeError: sizes or parameters that do not fit, as in torch.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    if not (KERNEL_DEVICES and _served(input)):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals("max_pool2d", input)

    input, unbatched = _batched("max_pool2d", input)
    kernel, stride = kernel_pair("max_pool2d", kernel_size, stride)
    pool = (
        *kernel,
        *stride,
        *pair("max_pool2d", "padding", padding),
        *pair("max_pool2d", "dilation", dilation),
        bool(ceil_mode),
    )
    if return_indices:
        output, indices = _max_pool2d_with_indices(input, pool)
        return (output.squeeze(0), indices.squeeze(0)) if unbatched else (output, indices)
    output = _max_pool2d(input, pool)
    return output.squeeze(0) if unbatched else output


def _max_pool2d(input, pool):
    needs_grad = torch.is_grad_enabled() and input.requires_grad
    if _recorded():
        if needs_grad and torch.compiler.is_compiling():
            return _ops.max_pool2d_with_offsets.default(input, *pool)[0]
        return _ops.max_pool2d.default(input, *pool)
    if needs_grad:
        return _autograd.MaxPool2d.apply(input, pool)
    with _below_autograd():
        return _ops.max_pool2d.default(input, *pool)


def _max_pool2d_with_indices(input, pool):
    if _recorded():
        return _ops.max_pool2d_with_indices.default(input, *pool)
    if torch.is_grad_enabled() and input.requires_grad:
        return _autograd.MaxPool2dWithIndices.apply(input, pool)
    with _below_autograd():
        return _ops.max_pool2d_with_indices.default(input, *pool)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """2-D average pooling, as `torch.nn.functional.avg_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, with any strides.
        kernel_size, stride, padding: an int or two; `stride` None is `kernel_size`; `padding` is at most half
            of `kernel_size`.
        ceil_mode: round the output size up.
        count_include_pad: count the padding's zeros in the divisor.
        divisor_override: divide by this instead; not zero.

    Returns:
        ``(N, C, P, Q)`` in the layout and dtype of `input`, summed in float32 (float64 for float64).

    Raises:
        RuntimeError: sizes or parameters that do not fit, as in torch.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            avg_pool2d,
            (input,),
            input,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
    if not (KERNEL_DEVICES and _served(input)):
        return F.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals("avg_pool2d", input)

    input, unbatched = _batched("avg_pool2d", input)
    kernel, stride = kernel_pair("avg_pool2d", kernel_size, stride)
    if divisor_override is not None:
        divisor_override = single("avg_pool2d", "divisor_override", divisor_override)
        if divisor_override == 0:
            raise RuntimeError("avg_pool2d(): divisor must be not zero, but divisor_override is 0")
    pool = (
        *kernel,
        *stride,
        *pair("avg_pool2d", "padding", padding),
        bool(ceil_mode),
        bool(count_include_pad),
        divisor_override or 0,
    )
    if _recorded():
        output = _ops.avg_pool2d.default(input, *pool)
    elif torch.is_grad_enabled() and input.requires_grad:
        output = _autograd.AvgPool2d.apply(input, pool)
    else:
        with _below_autograd():
            output = _ops.avg_pool2d.default(input, *pool)
    return output.squeeze(0) if unbatched else output


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """2-D adaptive average pooling, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, with any strides.
        output_size: an int or two; None in a place keeps the input's size there.

    Returns:
        ``(N, C, *output_size)`` in the layout and dtype of `input`, summed in float32 (float64 for float64).

    Raises:
        RuntimeError: sizes that do not fit, as in torch.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    if not (KERNEL_DEVICES and _served(input)):
        return F.adaptive_avg_pool2d(input, output_size)
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals("adaptive_avg_pool2d", input)

    input, unbatched = _batched("adaptive_avg_pool2d", input)
    size = size_pair("adaptive_avg_pool2d", output_size, input)
    if _recorded():
        output = _ops.adaptive_avg_pool2d.default(input, *size)
    elif torch.is_grad_enabled() and input.requires_grad:
        output = _autograd.AdaptiveAvgPool2d.apply(input, *size)
    else:
        with _below_autograd():
            output = _ops.adaptive_avg_pool2d.default(input, *size)
    return output.squeeze(0) if unbatched else output


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D adaptive max pooling, as `torch.nn.functional.adaptive_max_pool2d`.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, with any strides.
        output_size: an int or two; None in a place keeps the input's size there.
        return_indices: also return each maximum's position ``h * W + w`` in its plane (int64).

    Returns:
        ``(N, C, *output_size)`` in the layout and dtype of `input`, or that and the indices. A NaN in a
        window is its maximum; of equal values the first in row order is taken.

    Raises:
        RuntimeError: sizes that do not fit, as in torch.
        NotImplementedError: a forward-mode dual tensor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool2d, (input,), input, output_size, return_indices)
    if not (KERNEL_DEVICES and _served(input)):
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    if forward_ad._current_level >= 0:
        _autograd.refuse_duals("adaptive_max_pool2d", input)

    input, unbatched = _batched("adaptive_max_pool2d", input)
    size = size_pair("adaptive_max_pool2d", output_size, input)
    if _recorded():
        output, indices = _ops.adaptive_max_pool2d.default(input, *size)
    elif torch.is_grad_enabled() and input.requires_grad:
        output, indices = _autograd.AdaptiveMaxPool2d.apply(input, *size)
    else:
        with _below_autograd():
            output, indices = _ops.adaptive_max_pool2d.default(input, *size)
    if unbatched:
        output, indices = output.squeeze(0), indices.squeeze(0)
    return (output, indices) if return_indices else output
