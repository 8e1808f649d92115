"""Which kernel, and which tile, a problem gets on a chip, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcnn import _checks, _library, _shapes
from fastcnn._arguments import kernel_pair, pair

__all__ = ["Plan", "plan"]

_CONV_OPS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
_POOL_OPS = ("max_pool2d", "max_pool2d_backward", "avg_pool2d", "avg_pool2d_backward")


@dataclass(frozen=True)
class Plan:
    """The planner's choice for one problem.

    `kernel` is "aten" where no library of ours is loaded; then only `reason` says more. Sizes are in bytes.
    """

    op: str
    kernel: str
    reason: str
    tile: str = ""
    grid: int = 0
    threads: int = 0
    shared_bytes: int = 0
    workspace_bytes: int = 0
    splits: int = 1

    def __str__(self) -> str:
        if self.kernel == "aten":
            return f"{self.op}: ATen\n  why: {self.reason}"
        lines = [f"{self.op}: {self.kernel}", f"  why: {self.reason}"]
        if self.tile:
            lines.append(f"  tile: {self.tile}")
        lines.append(
            f"  launch: {self.grid} blocks of {self.threads} threads, {self.shared_bytes} B shared memory"
        )
        lines.append(f"  reduction: {self.splits} split(s), {self.workspace_bytes} B workspace")
        return "\n".join(lines)


def plan(
    op: str,
    input: Sequence[int],
    weight: Sequence[int] | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    ceil_mode: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    chip: str = "",
) -> Plan:
    """Ask the planner which kernel it takes. No GPU is needed where `chip` names one.

    Args:
        op: "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "max_pool2d", "max_pool2d_backward", "avg_pool2d"
            or "avg_pool2d_backward".
        input: the sizes ``(N, C, H, W)`` of the layer's input, for every `op`.
        weight: for convolutions, the sizes ``(K, C // groups, R, S)``.
        kernel_size: for pools, the window: an int or two.
        stride, padding, dilation: an int or two; `stride` None is 1 for convolutions, `kernel_size` for
            pools. `padding` may have four values for a convolution: top, bottom, left, right.
        groups, ceil_mode: as in the layer.
        dtype: of all tensors.
        channels_last: whether the tensors are NHWC.
        chip: for instance "sm_80" or "sm_90"; the default is the current GPU.

    Returns:
        A `Plan`; print it.

    Raises:
        ValueError: an unknown `op`, or sizes that do not belong to it.
        RuntimeError: a problem that the operator itself refuses, or a chip the planner does not know.
    """
    if op in _CONV_OPS:
        problem = _conv_problem(op, input, weight, kernel_size, stride, padding, dilation, groups)
    elif op in _POOL_OPS:
        problem = _pool_problem(op, input, weight, kernel_size, stride, padding, dilation, ceil_mode)
    else:
        raise ValueError(f"plan(): op must be one of {', '.join(_CONV_OPS + _POOL_OPS)}, but is {op!r}")
    if dtype not in _checks.DTYPES:
        raise ValueError(f"plan(): dtype must be float32, float16, bfloat16 or float64, but is {dtype}")
    if _library.build_info() is None:
        why = _library.load_error or "it was not built"
        return Plan(op, "aten", f"fastcnn's compiled library is not loaded ({why})")
    return Plan(
        op=op,
        **json.loads(
            torch.ops.fastcnn.plan(op, problem, str(dtype).removeprefix("torch."), bool(channels_last), chip)
        ),
    )


def _sizes(name: str, sizes: Sequence[int] | None, meaning: str) -> tuple[int, int, int, int]:
    if sizes is None or len(sizes) != 4:
        raise ValueError(f"plan(): {name} must be the four sizes {meaning}, but is {sizes}")
    return tuple(int(size) for size in sizes)


def _conv_problem(op, input, weight, kernel_size, stride, padding, dilation, groups):
    if kernel_size is not None:
        raise ValueError(f"plan(): {op} takes its kernel size from weight; leave kernel_size out")
    n, c, h, w = _sizes("input", input, "(N, C, H, W)")
    k, channels, r, s = _sizes("weight", weight, "(K, C // groups, R, S)")
    stride_h, stride_w = pair(op, "stride", 1 if stride is None else stride)
    dilation_h, dilation_w = pair(op, "dilation", dilation)
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        top, bottom, left, right = (int(side) for side in padding)
    else:
        top, left = pair(op, "padding", padding)
        bottom, right = top, left
    conv = (stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups)
    _checks.conv_problem(op, (n, c, h, w), (k, channels, r, s), conv)
    _, _, p, q = _shapes.conv_output_shape((n, c, h, w), (k, channels, r, s), conv)
    # In the order that csrc/bindings/plan.cpp reads.
    return [n, c, h, w, k, r, s, p, q, stride_h, stride_w, top, left, dilation_h, dilation_w, groups]


def _pool_problem(op, input, weight, kernel_size, stride, padding, dilation, ceil_mode):
    if weight is not None or kernel_size is None:
        raise ValueError(f"plan(): {op} takes a kernel_size and no weight")
    n, c, h, w = _sizes("input", input, "(N, C, H, W)")
    (kernel_h, kernel_w), (stride_h, stride_w) = kernel_pair(op, kernel_size, stride)
    pad_h, pad_w = pair(op, "padding", padding)
    dilation_h, dilation_w = pair(op, "dilation", dilation)
    pool = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, bool(ceil_mode))
    _checks.pool_problem(op, (n, c, h, w), pool)
    _, _, p, q = _shapes.max_pool_output_shape((n, c, h, w), pool)
    # In the order that csrc/bindings/plan.cpp reads; the 0 says not adaptive.
    return [n, c, h, w, p, q, 0, *pool[:-1]]
