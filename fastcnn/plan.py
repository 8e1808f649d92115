"""Which kernel, and which tile, a problem gets on a chip, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcnn import _checks, _library, _shapes
from fastcnn._arguments import kernel_pair, pair, same_padding, single

__all__ = ["Plan", "plan"]

# Each operation's arguments beside the input; the first gives its sizes and must be there.
_ARGUMENTS = dict.fromkeys(
    ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_act_max_pool2d"),
    ("weight", "stride", "padding", "dilation", "groups"),
)
_SLIDING = ("kernel_size", "stride", "padding", "ceil_mode")
for _pool, _arguments in (("max_pool2d", (*_SLIDING, "dilation")), ("avg_pool2d", _SLIDING)):
    _ARGUMENTS |= dict.fromkeys((_pool, f"{_pool}_backward"), _arguments)
    _ARGUMENTS |= dict.fromkeys((f"adaptive_{_pool}", f"adaptive_{_pool}_backward"), ("output_size",))


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
    output_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int] | None = None,
    dilation: int | Sequence[int] | None = None,
    groups: int | None = None,
    ceil_mode: bool | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    chip: str = "",
) -> Plan:
    """Ask the planner which kernel it takes. No GPU is needed where `chip` names one.

    Args:
        op: "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad" or "conv2d_act_max_pool2d"; "max_pool2d" or
            "avg_pool2d", each also with "adaptive_" before it and "_backward" after it.
        input: the sizes ``(N, C, H, W)`` of the layer's input, for every `op`.
        weight: for convolutions, the sizes ``(K, C // groups, R, S)``.
        kernel_size: for pools, the window: an int or two.
        output_size: for adaptive pools: an int or two.
        stride, padding, dilation: an int or two, for the operations that have them; left out, `stride` is 1
            for convolutions, `kernel_size` for pools. A convolution's `padding` may also be "same", "valid"
            or four values: top, bottom, left, right.
        groups: for convolutions.
        ceil_mode: for max and average pools.
        dtype: of all tensors.
        channels_last: whether the tensors are NHWC.
        chip: for instance "H100" or "sm_80"; the default is the current GPU.

    Returns:
        A `Plan`; print it.

    Raises:
        ValueError: an unknown `op`, an argument that does not belong to it, or sizes that are not four.
        TypeError: a number that is not an integer.
        RuntimeError: a problem that the operator itself refuses, or a chip the planner does not know.
    """
    if dtype not in _checks.DTYPES:
        raise ValueError(f"plan(): dtype must be float32, float16, bfloat16 or float64, but is {dtype}")
    problem = problem_numbers(
        op,
        input,
        weight=weight,
        kernel_size=kernel_size,
        output_size=output_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        ceil_mode=ceil_mode,
    )
    if _library.build_info() is None:
        return Plan(op, "aten", f"no compiled library is loaded: {_library.load_error}")
    name = op.removeprefix("adaptive_")
    dtype_name = str(dtype).removeprefix("torch.")
    return Plan(
        op, **json.loads(torch.ops.fastcnn.plan(name, problem, dtype_name, bool(channels_last), chip))
    )


def problem_numbers(op: str, input: Sequence[int], **given: object) -> list[int]:
    """The numbers of a problem in the order in which csrc/bindings/plan.cpp reads them.

    Takes what `plan` takes to say what the problem is, and raises its errors; None stands for left out.
    """
    given = {name: value for name, value in given.items() if value is not None}
    allowed = _ARGUMENTS.get(op)
    if allowed is None:
        raise ValueError(f"plan(): op must be one of {', '.join(_ARGUMENTS)}, but is {op!r}")
    sizes = allowed[0]
    wrong = [name for name in given if name not in allowed]
    if wrong or sizes not in given:
        got = f"got {', '.join(wrong)}" if wrong else f"{sizes} is missing"
        raise ValueError(f"plan(): {op} takes {', '.join(allowed)} beside input, but {got}")
    build = {"weight": _conv_problem, "kernel_size": _pool_problem, "output_size": _adaptive_problem}[sizes]
    return build(op, input, **given)


def _sizes(name: str, sizes: Sequence[int] | None, meaning: str) -> tuple[int, int, int, int]:
    if isinstance(sizes, str) or not hasattr(sizes, "__len__") or len(sizes) != 4:
        raise ValueError(f"plan(): {name} must be the four sizes {meaning}, but is {sizes!r}")
    return tuple(single("plan", name, size) for size in sizes)


def _conv_problem(op, input, weight, stride=1, padding=0, dilation=1, groups=1) -> list[int]:
    input = _sizes("input", input, "(N, C, H, W)")
    weight = _sizes("weight", weight, "(K, C // groups, R, S)")
    strides = pair(op, "stride", stride)
    dilations = pair(op, "dilation", dilation)
    if isinstance(padding, str):
        top, bottom, left, right = same_padding(
            padding, torch.empty(weight, device="meta"), strides, dilations
        )
    elif isinstance(padding, (tuple, list)) and len(padding) == 4:
        top, bottom, left, right = (int(side) for side in padding)
    else:
        top, left = pair(op, "padding", padding)
        bottom, right = top, left
    groups = single(op, "groups", groups)
    conv = (*strides, top, bottom, left, right, *dilations, groups)
    _checks.conv_problem(op, input, weight, conv)
    if op == "conv2d_act_max_pool2d":
        _checks.pooled_conv_problem(op, input, weight, conv)
    k, _, r, s = weight
    _, _, p, q = _shapes.conv_output_shape(input, weight, conv)
    return [*input, k, r, s, p, q, *strides, top, left, *dilations, groups]


def _pool_problem(op, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> list[int]:
    input = _sizes("input", input, "(N, C, H, W)")
    kernel, strides = kernel_pair(op, kernel_size, stride)
    windows = (*kernel, *strides, *pair(op, "padding", padding), *pair(op, "dilation", dilation))
    pool = (*windows, bool(ceil_mode))
    _checks.pool_problem(op, input, pool)
    _, _, p, q = _shapes.max_pool_output_shape(input, pool)
    return [*input, p, q, False, *windows]


def _adaptive_problem(op, input, output_size) -> list[int]:
    input = _sizes("input", input, "(N, C, H, W)")
    output = pair(op, "output_size", output_size)
    if min(*input, *output) < 1:
        raise ValueError(f"plan(): sizes must be positive, but input is {input} and output_size {output}")
    # The window, its stride, padding and dilation follow from the sizes and are not looked at.
    return [*input, *output, True, 1, 1, 1, 1, 0, 0, 1, 1]
