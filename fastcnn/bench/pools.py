"""Pools: ours beside torch's own kernels and torch.compile's: forward, backward, both through autograd."""

from __future__ import annotations

import importlib
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
    Rule,
    Way,
    compiled,
    rounding,
)
from fastcnn.bench.suites import PoolRow
from fastcnn.bench.work import work

_aten = torch.ops.aten


def pool_problem(case: Case, device: torch.device) -> Problem:
    """The case's contenders on random normal data; the baselines have the layout of ours."""
    row = case.row
    assert isinstance(row, PoolRow)
    dtype = getattr(torch, case.dtype)
    backward, both = case.op.endswith("_backward"), case.op.endswith("_forward_backward")
    maximum = "max_pool2d" in row.op

    def operands(index: int) -> Operands:
        normal = Normal(device, dtype, index)
        x = normal(row.input_shape)
        return (x, normal(row.output_shape)) if backward else (x,)

    ours = lambda x: calls.pool2d(row, x)  # noqa: E731
    torchs = lambda x: torch_pool(row, x)  # noqa: E731
    compiles = compiled(torchs)
    if both:
        ways = [_both(OURS, ours, case), _both("eager", torchs, case), _both("compile", compiles, case)]
    elif backward:
        ways = _backward_ways(case)
    else:
        ways = [
            Way(name, lambda ops, function=function: lambda: function(*ops), case.layout)
            for name, function in ((OURS, ours), ("eager", torchs), ("compile", compiles))
        ]

    def truth(operands: Operands) -> Operands:
        x = operands[0].double()
        if not backward:
            return (torchs(x),)
        x.requires_grad_()
        with torch.enable_grad():
            y = torchs(x)
        gradient = torch.autograd.grad(y, x, operands[1].double())[0]
        return (y.detach(), gradient) if both else (gradient,)

    index = _index_dtype(row) if maximum else None
    parts = []
    if not backward or both:
        parts.append(_work(row, row.op, dtype, index if both else None))
    if backward:
        parts.append(_work(row, f"{row.op}_backward", dtype, index))
    window = row.kernel[0] * row.kernel[1]
    if row.adaptive:
        window = -(-row.h // row.kernel[0]) * -(-row.w // row.kernel[1])
    rule = rounding(case.dtype, False, window)
    if maximum and not backward:
        rule = Rule(0.0, exact=True)
    return Problem(
        ways=ways,
        operands=operands,
        truth=truth,
        rule=rule,
        bytes_per_call=sum(part.bytes for part in parts),
        result_bytes=(row.n * row.c * row.h * row.w) * dtype.itemsize,
        work=(sum(part.bytes for part in parts), sum(part.flops for part in parts)),
        kernel=_planned(case, dtype, device),
    )


def torch_pool(row: PoolRow, x: Tensor) -> Tensor:
    """torch's own function, as users call it."""
    function = getattr(F, row.op)
    if row.adaptive:
        return function(x, row.kernel)
    if row.op == "avg_pool2d":
        return function(x, row.kernel, row.stride, row.padding, row.ceil_mode)
    return function(x, row.kernel, row.stride, row.padding, row.dilation, row.ceil_mode)


def _index_dtype(row: PoolRow) -> torch.dtype:
    """What our forward pass keeps for the backward pass."""
    if row.adaptive:
        return torch.int64
    return torch.uint8 if row.kernel[0] * row.kernel[1] <= 256 else torch.int32


def _geometry(row: PoolRow) -> dict:
    if row.adaptive:
        return {"output_size": row.kernel}
    geometry = {
        "kernel_size": row.kernel,
        "stride": row.stride,
        "padding": row.padding,
        "ceil_mode": row.ceil_mode,
    }
    return geometry if row.op == "avg_pool2d" else {**geometry, "dilation": row.dilation}


def _work(row: PoolRow, op: str, dtype: torch.dtype, index_dtype: torch.dtype | None):
    return work(op, row.input_shape, dtype=dtype, index_dtype=index_dtype, **_geometry(row))


def _planned(case: Case, dtype: torch.dtype, device: torch.device) -> dict | None:
    row = case.row
    if not fastcnn._library.kernels_for(device.type):
        return None
    ops = (case.op,)
    if case.op.endswith("_forward_backward"):
        ops = (row.op, f"{row.op}_backward")
    plans = [
        fastcnn.plan(
            op,
            row.input_shape,
            **_geometry(row),
            dtype=dtype,
            channels_last=case.layout == "channels_last",
            chip="" if device.type == "cuda" else "sm_90",
        )
        for op in ops
    ]
    return {
        key: "; ".join(dict.fromkeys(getattr(plan, attribute) for plan in plans))
        for key, attribute in (("name", "kernel"), ("tile", "tile"), ("reason", "reason"))
    }


def _both(name: str, function: Callable[[Tensor], Tensor], case: Case) -> Way:
    def bind(operands: Operands) -> Call:
        x, dy = operands[0].detach().requires_grad_(), operands[1]

        def call() -> Result:
            y = function(x)
            return y.detach(), torch.autograd.grad(y, x, dy)[0]

        return call

    return Way(name, bind, case.layout)


def _backward_ways(case: Case) -> list[Way]:
    row, channels_last = case.row, case.layout == "channels_last"

    def ours(operands: Operands) -> Call:
        x, dy = operands
        indices = None
        if row.op == "max_pool2d":
            indices = calls.max_pool2d_offsets(row, x)
        elif row.op == "adaptive_max_pool2d":
            indices = F.adaptive_max_pool2d(x, row.kernel, return_indices=True)[1]
        return lambda: calls.pool2d_backward(row, dy, indices, channels_last)

    def eager(operands: Operands) -> Call:
        x, dy = operands
        extra = _torch_indices(row, x)
        return lambda: _torch_backward(row, dy, x, *extra)

    function, remembered = _compiled_backward(row)

    def compile_(operands: Operands) -> Call:
        x, dy = operands
        extra = remembered(x)
        return lambda: function(dy, x, *extra)

    binds = {OURS: ours, "eager": eager, "compile": compile_}
    return [Way(name, bind, case.layout) for name, bind in binds.items()]


def _torch_indices(row: PoolRow, x: Tensor) -> tuple[Tensor, ...]:
    if row.op == "max_pool2d":
        args = (row.kernel, row.stride, row.padding, row.dilation, row.ceil_mode)
        return (F.max_pool2d(x, *args, return_indices=True)[1],)
    if row.op == "adaptive_max_pool2d":
        return (F.adaptive_max_pool2d(x, row.kernel, return_indices=True)[1],)
    return ()


def _torch_backward(row: PoolRow, dy: Tensor, x: Tensor, *indices: Tensor) -> Tensor:
    kernel, stride, padding = list(row.kernel), list(row.stride), list(row.padding)
    if row.op == "max_pool2d":
        return _aten.max_pool2d_with_indices_backward(
            dy, x, kernel, stride, padding, list(row.dilation), row.ceil_mode, *indices
        )
    if row.op == "avg_pool2d":
        return _aten.avg_pool2d_backward(dy, x, kernel, stride, padding, row.ceil_mode, True, None)
    if row.op == "adaptive_max_pool2d":
        return _aten.adaptive_max_pool2d_backward(dy, x, *indices)
    return _aten._adaptive_avg_pool2d_backward(dy, x)


def _compiled_backward(row: PoolRow) -> tuple[Callable, Callable[[Tensor], tuple[Tensor, ...]]]:
    """The compiled backward pass, and what it needs of the input beforehand.

    For a max pool, torch.compile keeps one byte a window, as we do: where this torch has the operators that
    it does so with, the baseline reads these bytes and not eager's eight.
    """
    prims = torch.ops.prims
    small = row.op == "max_pool2d" and row.kernel[0] * row.kernel[1] <= 128
    if small:
        importlib.import_module("torch._inductor.inductor_prims")  # registers the two
        small = hasattr(prims, "_low_memory_max_pool_with_offsets") and hasattr(
            prims, "_low_memory_max_pool_offsets_to_indices"
        )
    if not small:
        return (
            compiled(lambda dy, x, *indices: _torch_backward(row, dy, x, *indices)),
            lambda x: _torch_indices(row, x),
        )
    window = (list(row.kernel), list(row.stride), list(row.padding), list(row.dilation))

    def remembered(x: Tensor) -> tuple[Tensor]:
        return (prims._low_memory_max_pool_with_offsets(x, *window, row.ceil_mode)[1],)

    def backward(dy: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
        kernel, *rest = window
        indices = prims._low_memory_max_pool_offsets_to_indices(offsets, kernel, [row.h, row.w], *rest)
        return _torch_backward(row, dy, x, indices)

    return compiled(backward), remembered
