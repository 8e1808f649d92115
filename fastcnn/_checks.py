"""Argument checks shared by the fakes and the ATen implementations.

Each raises what torch raises in the same situation (RuntimeError), and says which argument was wrong, what it
was and what is allowed. The compiled kernels make the same checks in C++.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcnn import _shapes
from fastcnn._shapes import AvgPoolGeometry, ConvGeometry, MaxPoolGeometry

DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "silu", "gelu", "hardswish", "leaky_relu")
#: Activations whose derivative is taken at their result; for the others it is taken at their argument.
DERIVED_FROM_OUTPUT = frozenset(("none", "relu", "sigmoid", "tanh", "leaky_relu"))


def _fail(op: str, message: str) -> None:
    raise RuntimeError(f"{op}(): {message}")


def _four_dimensional(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dim() != 4:
        _fail(op, f"{name} must be 4-D, but has {tensor.dim()} dimensions: {list(tensor.shape)}")


def _floating(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        _fail(op, f"{name} must be float32, float16, bfloat16 or float64, but is {tensor.dtype}")


def _like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        _fail(
            op,
            f"{name} has dtype {tensor.dtype}, but {other_name} has {other.dtype}; they should be the same",
        )
    if tensor.device != other.device:
        _fail(
            op,
            f"{name} is on {tensor.device}, but {other_name} is on {other.device}; "
            "expected all tensors to be on the same device",
        )


def _conv_geometry(op: str, conv: ConvGeometry) -> None:
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups = conv
    if stride_h <= 0 or stride_w <= 0:
        _fail(
            op,
            f"stride must be positive (non-positive stride is not supported), but is {(stride_h, stride_w)}",
        )
    if top < 0 or bottom < 0 or left < 0 or right < 0:
        _fail(
            op,
            "padding must not be negative (negative padding is not supported), "
            f"but is top {top}, bottom {bottom}, left {left}, right {right}",
        )
    if dilation_h <= 0 or dilation_w <= 0:
        _fail(
            op,
            "dilation must be positive (non-positive dilation is not supported), "
            f"but is {(dilation_h, dilation_w)}",
        )
    if groups <= 0:
        _fail(op, f"groups must be positive (non-positive groups is not supported), but is {groups}")


def _conv_shapes(op: str, input: tuple[int, ...], weight: tuple[int, ...], conv: ConvGeometry) -> None:
    _, _, top, bottom, left, right, dilation_h, dilation_w, groups = conv
    if weight[2] < 1 or weight[3] < 1:
        _fail(op, f"the kernel of weight must be at least 1x1, but weight has size {list(weight)}")
    if weight[0] < 1 or weight[0] % groups != 0:
        _fail(
            op,
            f"given groups={groups}, the first dimension of weight must be a positive multiple of {groups}, "
            f"but weight has size {list(weight)}",
        )
    if input[1] != weight[1] * groups:
        _fail(
            op,
            f"given groups={groups}, weight of size {list(weight)}, expected input{list(input)} to have "
            f"{weight[1] * groups} channels, but got {input[1]} channels instead",
        )
    if input[1] == 0 or input[2] == 0 or input[3] == 0:
        _fail(op, f"only the batch of input may be empty, but input has size {list(input)}")
    height, width = input[2] + top + bottom, input[3] + left + right
    reach_h, reach_w = dilation_h * (weight[2] - 1) + 1, dilation_w * (weight[3] - 1) + 1
    if reach_h > height or reach_w > width:
        _fail(
            op,
            f"kernel size can't be greater than actual input size: the padded input is ({height} x {width}), "
            f"the dilated kernel ({reach_h} x {reach_w})",
        )


def conv_problem(op: str, input: tuple[int, ...], weight: tuple[int, ...], conv: ConvGeometry) -> None:
    """A convolution by its sizes alone."""
    _conv_geometry(op, conv)
    _conv_shapes(op, input, weight, conv)


def pooled_conv_problem(op: str, input: tuple[int, ...], weight: tuple[int, ...], conv: ConvGeometry) -> None:
    """Whether a convolution that fits leaves anything for a 2x2 window."""
    _, _, height, width = _shapes.conv_output_shape(input, weight, conv)
    if height < 2 or width < 2:
        _fail(
            op,
            f"output size is too small: the convolution gives ({height} x {width}) pixels, "
            "the pool's window takes (2 x 2)",
        )


def pool_problem(op: str, input: tuple[int, ...], pool: MaxPoolGeometry) -> None:
    """A pool by its sizes alone."""
    _pool_image(op, input)
    _pool_geometry(op, input, pool)


def activation_problem(activation: str, negative_slope: float) -> str | None:
    """What is wrong with an activation, in words."""
    if activation not in ACTIVATIONS:
        return f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}"
    if activation == "leaky_relu" and not 0 <= negative_slope < float("inf"):
        return f"negative_slope must be finite and not negative, but is {negative_slope}"
    return None


def residual_problem(residual: tuple[int, ...], output: tuple[int, ...]) -> str | None:
    """What is wrong with a residual's size, in words."""
    if tuple(residual) == tuple(output):
        return None
    return (
        f"residual must have the size of the output, {list(output)} (it is not broadcast), "
        f"but has size {list(residual)}"
    )


def _activation(op: str, activation: str, negative_slope: float) -> None:
    problem = activation_problem(activation, negative_slope)
    if problem is not None:
        _fail(op, problem)


def conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    conv: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> None:
    _four_dimensional(op, "input", input)
    _four_dimensional(op, "weight", weight)
    _floating(op, "input", input)
    _like(op, "weight", weight, "input", input)
    conv_problem(op, input.shape, weight.shape, conv)
    if bias is not None:
        _like(op, "bias", bias, "input", input)
        if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
            _fail(
                op,
                f"given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with "
                f"{weight.shape[0]} elements, but got bias of size {list(bias.shape)} instead",
            )
    if residual is not None:
        _like(op, "residual", residual, "input", input)
        output = _shapes.conv_output_shape(input.shape, weight.shape, conv)
        problem = residual_problem(residual.shape, output)
        if problem is not None:
            _fail(op, problem)
    _activation(op, activation, negative_slope)


def conv2d_act_max_pool2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> None:
    conv2d(op, input, weight, bias, None, conv, activation, negative_slope)
    pooled_conv_problem(op, input.shape, weight.shape, conv)


def _saved(op: str, saved: Tensor | None, grad_output: Tensor) -> None:
    if saved is None:
        return
    _like(op, "saved", saved, "grad_output", grad_output)
    if saved.shape != grad_output.shape:
        _fail(
            op,
            f"saved must have the size of grad_output, {list(grad_output.shape)}, "
            f"but has size {list(saved.shape)}",
        )


def _grad_output(op: str, grad_output: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(grad_output.shape) != tuple(expected):
        _fail(
            op, f"grad_output has size {list(grad_output.shape)}, but these arguments give {list(expected)}"
        )


def conv2d_dgrad(
    grad_output: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    conv: ConvGeometry,
    op: str = "conv2d_dgrad",
) -> None:
    _four_dimensional(op, "grad_output", grad_output)
    _four_dimensional(op, "weight", weight)
    _floating(op, "grad_output", grad_output)
    _like(op, "weight", weight, "grad_output", grad_output)
    _conv_geometry(op, conv)
    input = (grad_output.shape[0], weight.shape[1] * conv[-1], height, width)
    _conv_shapes(op, input, weight.shape, conv)
    _grad_output(op, grad_output, _shapes.conv_output_shape(input, weight.shape, conv))


def conv2d_wgrad(
    grad_output: Tensor,
    input: Tensor,
    kernel_h: int,
    kernel_w: int,
    conv: ConvGeometry,
    op: str = "conv2d_wgrad",
) -> None:
    _four_dimensional(op, "grad_output", grad_output)
    _four_dimensional(op, "input", input)
    _floating(op, "grad_output", grad_output)
    _like(op, "input", input, "grad_output", grad_output)
    _conv_geometry(op, conv)
    if input.shape[1] % conv[-1] != 0:
        _fail(op, f"groups={conv[-1]} must divide the channels of input, which has size {list(input.shape)}")
    weight = (grad_output.shape[1], input.shape[1] // conv[-1], kernel_h, kernel_w)
    _conv_shapes(op, input.shape, weight, conv)
    _grad_output(op, grad_output, _shapes.conv_output_shape(input.shape, weight, conv))


def conv2d_act_dgrad(
    grad_output: Tensor,
    saved: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    conv: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> None:
    op = "conv2d_act_dgrad"
    conv2d_dgrad(grad_output, weight, height, width, conv, op)
    _saved(op, saved, grad_output)
    _activation(op, activation, negative_slope)


def conv2d_act_wgrad(
    grad_output: Tensor,
    saved: Tensor | None,
    input: Tensor,
    kernel_h: int,
    kernel_w: int,
    conv: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> None:
    op = "conv2d_act_wgrad"
    conv2d_wgrad(grad_output, input, kernel_h, kernel_w, conv, op)
    _saved(op, saved, grad_output)
    _activation(op, activation, negative_slope)


def conv2d_bias_grad(grad_output: Tensor) -> None:
    _four_dimensional("conv2d_bias_grad", "grad_output", grad_output)
    _floating("conv2d_bias_grad", "grad_output", grad_output)


def _pool_input(op: str, input: Tensor) -> None:
    _four_dimensional(op, "input", input)
    _floating(op, "input", input)
    _pool_image(op, input.shape)


def _pool_image(op: str, shape: tuple[int, ...]) -> None:
    if shape[1] == 0 or shape[2] == 0 or shape[3] == 0:
        _fail(op, f"only the batch of input may be empty, but input has size {list(shape)}")


def _pool_geometry(op: str, shape: tuple[int, ...], pool: MaxPoolGeometry) -> None:
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = pool
    if kernel_h <= 0 or kernel_w <= 0:
        _fail(op, f"kernel_size must be greater than zero, but is {(kernel_h, kernel_w)}")
    if stride_h <= 0 or stride_w <= 0:
        _fail(op, f"stride must be greater than zero, but is {(stride_h, stride_w)}")
    if dilation_h <= 0 or dilation_w <= 0:
        _fail(op, f"dilation must be greater than zero, but is {(dilation_h, dilation_w)}")
    if pad_h < 0 or pad_w < 0:
        _fail(op, f"padding must be non-negative, but is {(pad_h, pad_w)}")
    if pad_h > kernel_h // 2 or pad_w > kernel_w // 2:
        _fail(
            op,
            f"padding (pad) should be at most half of the kernel size, but padding is {(pad_h, pad_w)} "
            f"and kernel_size {(kernel_h, kernel_w)}",
        )
    _, _, out_h, out_w = _shapes.max_pool_output_shape(shape, pool)
    if out_h < 1 or out_w < 1:
        _fail(
            op,
            f"output size is too small: input of size {list(shape)} with kernel_size {(kernel_h, kernel_w)}, "
            f"dilation {(dilation_h, dilation_w)} and padding {(pad_h, pad_w)} gives ({out_h} x {out_w})",
        )


def max_pool2d(input: Tensor, pool: MaxPoolGeometry, op: str = "max_pool2d") -> None:
    _pool_input(op, input)
    _pool_geometry(op, input.shape, pool)


def _indices(op: str, indices: Tensor, name: str, like: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if indices.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        _fail(op, f"indices must be {allowed}, but are {indices.dtype}")
    if indices.device != like.device:
        _fail(op, f"indices are on {indices.device}, but {name} is on {like.device}")


def max_pool2d_backward(
    grad_output: Tensor, indices: Tensor, height: int, width: int, pool: MaxPoolGeometry
) -> None:
    op = "max_pool2d_backward"
    _four_dimensional(op, "grad_output", grad_output)
    _floating(op, "grad_output", grad_output)
    input = (grad_output.shape[0], grad_output.shape[1], height, width)
    _pool_geometry(op, input, pool)
    _grad_output(op, grad_output, _shapes.max_pool_output_shape(input, pool))
    _indices(op, indices, "grad_output", grad_output, (_shapes.offset_dtype(pool[0], pool[1]), torch.int64))
    if indices.shape != grad_output.shape:
        _fail(op, f"indices have size {list(indices.shape)}, but grad_output {list(grad_output.shape)}")


def max_pool2d_gather(input: Tensor, indices: Tensor, pool: MaxPoolGeometry) -> None:
    op = "max_pool2d_gather"
    max_pool2d(input, pool, op)
    _indices(op, indices, "input", input, (_shapes.offset_dtype(pool[0], pool[1]), torch.int64))
    expected = _shapes.max_pool_output_shape(input.shape, pool)
    if tuple(indices.shape) != tuple(expected):
        _fail(op, f"indices have size {list(indices.shape)}, but these arguments give {list(expected)}")


def _as_max_pool(pool: AvgPoolGeometry) -> MaxPoolGeometry:
    return (*pool[:6], 1, 1, pool[6])


def avg_pool2d(input: Tensor, pool: AvgPoolGeometry) -> None:
    _pool_input("avg_pool2d", input)
    _pool_geometry("avg_pool2d", input.shape, _as_max_pool(pool))


def avg_pool2d_backward(grad_output: Tensor, height: int, width: int, pool: AvgPoolGeometry) -> None:
    op = "avg_pool2d_backward"
    _four_dimensional(op, "grad_output", grad_output)
    _floating(op, "grad_output", grad_output)
    input = (grad_output.shape[0], grad_output.shape[1], height, width)
    _pool_geometry(op, input, _as_max_pool(pool))
    _grad_output(op, grad_output, _shapes.avg_pool_output_shape(input, pool))


def adaptive_pool2d(op: str, input: Tensor, output_h: int, output_w: int) -> None:
    _pool_input(op, input)
    if output_h < 0 or output_w < 0:
        _fail(
            op, f"elements of output_size must be greater than or equal to 0, but are {(output_h, output_w)}"
        )


def adaptive_pool2d_backward(
    op: str, grad_output: Tensor, indices: Tensor | None, height: int, width: int
) -> None:
    _four_dimensional(op, "grad_output", grad_output)
    _floating(op, "grad_output", grad_output)
    if height < 1 or width < 1:
        _fail(op, f"height and width must be positive, but are {(height, width)}")
    if indices is not None:
        _indices(op, indices, "grad_output", grad_output, (torch.int64,))
        if indices.shape != grad_output.shape:
            _fail(op, f"indices have size {list(indices.shape)}, but grad_output {list(grad_output.shape)}")


def adaptive_max_pool2d_gather(input: Tensor, indices: Tensor) -> None:
    op = "adaptive_max_pool2d_gather"
    _pool_input(op, input)
    _indices(op, indices, "input", input, (torch.int64,))
    if indices.dim() != 4 or indices.shape[:2] != input.shape[:2]:
        _fail(
            op,
            f"indices must be 4-D with the batch and channels of input {list(input.shape)}, "
            f"but have size {list(indices.shape)}",
        )
