"""Convolutions: ours beside cuDNN in both layouts and, for depthwise ones, ATen's own kernels.

"cudnn_channels_last" and "cudnn_nchw" are torch's own calls with cuDNN on: where torch itself prefers ATen's
kernel (depthwise, NCHW, most dtypes), that is what they time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcnn
from fastcnn.bench import calls
from fastcnn.bench.cases import Case
from fastcnn.bench.problem import (
    OURS,
    Call,
    Normal,
    Operands,
    Problem,
    Result,
    Way,
    compiled,
    rounding,
    without_cudnn,
)
from fastcnn.bench.suites import ConvRow
from fastcnn.bench.work import work

_aten = torch.ops.aten
_TRUTH_ELEMENTS = 1 << 26  # of the input, at once in float64

# Each operation's operands, and what the planner is asked about it.
_OPERANDS = {
    "conv2d_fprop": ("x", "w"),
    "conv2d_dgrad": ("dy", "x", "w"),
    "conv2d_wgrad": ("dy", "x", "w"),
    "conv2d_forward_backward": ("dy", "x", "w"),
    "conv2d_act": ("x", "w", "b"),
    "conv2d_act_max_pool2d": ("x", "w", "b"),
}
_PLANNED = {
    "conv2d_fprop": ("conv2d_fprop",),
    "conv2d_dgrad": ("conv2d_dgrad",),
    "conv2d_wgrad": ("conv2d_wgrad",),
    "conv2d_forward_backward": ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"),
    "conv2d_act": ("conv2d_fprop",),
    "conv2d_act_max_pool2d": ("conv2d_act_max_pool2d",),
}


def conv_problem(case: Case, device: torch.device) -> Problem:
    """The case's contenders on random normal data, weights scaled by 1 / sqrt(C/groups * R * S)."""
    row, op = case.row, case.op
    assert isinstance(row, ConvRow)
    dtype = getattr(torch, case.dtype)
    length = row.weight_shape[1] * row.r * row.s

    def operands(index: int) -> Operands:
        normal = Normal(device, dtype, index)
        shapes = {"x": row.input_shape, "w": row.weight_shape, "b": (row.k,), "dy": row.output_shape}
        return tuple(normal(shapes[name], length**-0.5 if name == "w" else 1.0) for name in _OPERANDS[op])

    ours = _ours(case)
    baselines, missing = _baselines(case, device)
    passes = [
        work(
            name,
            row.input_shape,
            row.weight_shape,
            dtype=dtype,
            stride=row.stride,
            padding=row.padding,
            dilation=row.dilation,
            groups=row.groups,
            **({"bias": True} if op.startswith("conv2d_act") else {}),
        )
        for name in _passes(case)
    ]
    image, filters, outputs = (_elements(s) for s in (row.input_shape, row.weight_shape, row.output_shape))
    written = {
        "conv2d_dgrad": image,
        "conv2d_wgrad": filters,
        "conv2d_forward_backward": image + filters + outputs,
        "conv2d_act_max_pool2d": outputs // 4,
    }.get(op, outputs)
    summed = row.n * row.output_shape[2] * row.output_shape[3]
    longest = {
        "conv2d_wgrad": summed,
        "conv2d_dgrad": row.k // row.groups * row.r * row.s,
        "conv2d_forward_backward": max(summed, length),
    }.get(op, length)
    return Problem(
        ways=[Way(OURS, ours, case.layout), *baselines],
        operands=operands,
        truth=_truth(case),
        rule=rounding(case.dtype, case.tf32, longest),
        bytes_per_call=sum(part.bytes for part in passes),
        result_bytes=written * dtype.itemsize,
        missing=missing,
        work=(sum(part.bytes for part in passes), sum(part.flops for part in passes)),
        kernel=_planned(case, dtype, device),
    )


def _elements(shape: tuple[int, ...]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number


def _passes(case: Case) -> tuple[str, ...]:
    return tuple(name for name in _PLANNED[case.op] if _wants_dgrad(case) or name != "conv2d_dgrad")


def _wants_dgrad(case: Case) -> bool:
    """A whole backward pass has no data gradient where the layer reads images."""
    return case.op == "conv2d_dgrad" or not case.row.first_layer


def _planned(case: Case, dtype: torch.dtype, device: torch.device) -> dict | None:
    if not fastcnn._library.kernels_for(device.type):
        return None
    row = case.row
    chip = "" if device.type == "cuda" else "sm_90"
    plans = [
        fastcnn.plan(
            name,
            row.input_shape,
            row.weight_shape,
            stride=row.stride,
            padding=row.padding,
            dilation=row.dilation,
            groups=row.groups,
            dtype=dtype,
            channels_last=case.layout == "channels_last",
            chip=chip,
        )
        for name in _passes(case)
    ]
    return {
        key: "; ".join(dict.fromkeys(getattr(plan, attribute) for plan in plans))
        for key, attribute in (("name", "kernel"), ("tile", "tile"), ("reason", "reason"))
    }


def _with_gradients(case: Case, forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Operands], Call]:
    """Forward and backward through autograd, all in one call; results carry no graph with them."""

    def bind(operands: Operands) -> Call:
        dy, x, w = operands
        x = x.detach().requires_grad_(_wants_dgrad(case))
        w = w.detach().requires_grad_()
        leaves = (x, w) if x.requires_grad else (w,)

        def call() -> Result:
            y = forward(x, w)
            return (y.detach(), *torch.autograd.grad(y, leaves, dy))

        return call

    return bind


def _ours(case: Case) -> Callable[[Operands], Call]:
    row, channels_last = case.row, case.layout == "channels_last"
    if case.op == "conv2d_fprop":
        return lambda ops: lambda: calls.conv2d(row, *ops, None)
    if case.op == "conv2d_dgrad":
        return lambda ops: lambda: calls.conv2d_dgrad(row, ops[0], ops[2], channels_last, case.tf32)
    if case.op == "conv2d_wgrad":
        return lambda ops: lambda: calls.conv2d_wgrad(row, ops[0], ops[1], channels_last, case.tf32)
    if case.op == "conv2d_act":
        return lambda ops: lambda: calls.conv2d(row, *ops, "relu")
    if case.op == "conv2d_act_max_pool2d":
        return lambda ops: lambda: calls.conv2d_act_max_pool2d(row, *ops)
    return _with_gradients(case, lambda x, w: calls.conv2d(row, x, w, None))


def _torchs(case: Case) -> Callable[[Operands], Call]:
    """torch's own calls; which kernels run is up to cuDNN's switches and the operands' layout."""
    row = case.row
    geometry = (row.stride, row.padding, row.dilation, row.groups)
    if case.op == "conv2d_fprop":
        return lambda ops: lambda: F.conv2d(*ops, None, *geometry)
    if case.op == "conv2d_act":
        return lambda ops: lambda: F.relu(F.conv2d(*ops, *geometry), inplace=True)
    if case.op == "conv2d_act_max_pool2d":
        return lambda ops: lambda: F.max_pool2d(F.relu(F.conv2d(*ops, *geometry), inplace=True), 2)
    if case.op == "conv2d_forward_backward":
        return _with_gradients(case, lambda x, w: F.conv2d(x, w, None, *geometry))
    which = 0 if case.op == "conv2d_dgrad" else 1
    return lambda ops: lambda: convolution_backward(row, ops, which)


def convolution_backward(row: ConvRow, operands: Operands, which: int) -> Tensor:
    """ATen's gradient of the input (0) or of the weight (1) from dy, x and w."""
    stride, padding, dilation = list(row.stride), list(row.padding), list(row.dilation)
    rest = (None, stride, padding, dilation, False, [0, 0], row.groups, [which == 0, which == 1, False])
    return _aten.convolution_backward(*operands, *rest)[which]


def _baselines(case: Case, device: torch.device) -> tuple[list[Way], dict[str, str]]:
    row, torchs = case.row, _torchs(case)
    ways = [Way("cudnn_channels_last", torchs), Way("cudnn_nchw", torchs, "contiguous")]
    missing = {}
    if row.depthwise:
        ways.append(Way("aten_native", lambda ops: without_cudnn(torchs(ops)), "contiguous"))
    if case.op == "conv2d_act_max_pool2d":
        geometry = (row.stride, row.padding, row.dilation, row.groups)
        pooled = compiled(lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b, *geometry)), 2))
        ways.append(Way("compile", lambda ops: lambda: pooled(*ops)))
    if case.op == "conv2d_act":
        geometry = (row.stride, row.padding, row.dilation, row.groups)
        fused = compiled(lambda x, w, b: F.relu(F.conv2d(x, w, b, *geometry)))
        ways.append(Way("compile", lambda ops: lambda: fused(*ops)))
        if device.type == "cuda":
            pairs = (list(row.stride), list(row.padding), list(row.dilation), row.groups)
            ways.append(Way("cudnn_fused", lambda ops: lambda: torch.cudnn_convolution_relu(*ops, *pairs)))
        else:
            missing["cudnn_fused"] = "cuDNN's fused convolution takes CUDA tensors only"
    return ways, missing


def _truth(case: Case) -> Callable[[Operands], Operands]:
    """The results in float64, some images at a time."""
    row = case.row
    geometry = (row.stride, row.padding, row.dilation, row.groups)
    step = max(1, _TRUTH_ELEMENTS // (row.c * row.h * row.w))

    def parts(*tensors: Tensor):
        return zip(*(t.split(step) for t in tensors), strict=True)

    def forward(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        bias = None if b is None else b.double()
        return torch.cat([F.conv2d(part.double(), w.double(), bias, *geometry) for part in x.split(step)])

    def gradient(dy: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        done = [
            convolution_backward(row, (dys.double(), xs.double(), w.double()), which)
            for dys, xs in parts(dy, x)
        ]
        return torch.cat(done) if which == 0 else torch.stack(done).sum(0)

    def truth(operands: Operands) -> Operands:
        if case.op == "conv2d_fprop":
            return (forward(*operands),)
        if case.op == "conv2d_act":
            return (forward(*operands).relu_(),)
        if case.op == "conv2d_act_max_pool2d":
            return (F.max_pool2d(forward(*operands).relu_(), 2),)
        if case.op != "conv2d_forward_backward":
            return (gradient(*operands, 0 if case.op == "conv2d_dgrad" else 1),)
        dgrad = (gradient(*operands, 0),) if _wants_dgrad(case) else ()
        return (forward(*operands[1:]), *dgrad, gradient(*operands, 1))

    return truth
