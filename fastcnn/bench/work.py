"""The work of a problem: the bytes that must be moved and the operations that must be done, by any kernel.

These are floors, computed and not measured. The conventions:

- *Bytes*: each tensor once, what is read and what is written. Of an input whose windows leave gaps (a 1x1
  convolution with a stride of 2) only the pixels that some window reads; a gradient is written whole. Indices
  count with their dtype's size. Workspaces and second readings do not count.
- *Flops* of a convolution: two for each multiply-add, R * S * C / groups of them for each output, those whose
  tap lies in the padding included, as is the custom. All three passes have the same number. A bias counts one
  for each output (for wgrad: none, as the bias' gradient is an operation of its own); an activation none.
- *Flops* of a pool: one comparison or addition for each element of each window that lies in the image. Its
  backward pass likewise: one for each gradient that is added (for a maximum, one a window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcnn.plan import problem_numbers

__all__ = ["Work", "work"]


@dataclass(frozen=True)
class Work:
    """Bytes moved to and from memory, and arithmetic operations; sums of several calls add up."""

    bytes: int
    flops: int

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def work(
    op: str,
    input: Sequence[int],
    weight: Sequence[int] | None = None,
    *,
    dtype: torch.dtype,
    bias: bool = False,
    index_dtype: torch.dtype | None = None,
    **geometry: object,
) -> Work:
    """The floor of one call.

    Args:
        op: as for `fastcnn.plan`: "conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_act_max_pool2d",
            "max_pool2d", "avg_pool2d", also with "adaptive_" before it and "_backward" after it. Further
            "conv2d_forward_backward", the three passes one after another, and "max_pool2d_gather" and
            "adaptive_max_pool2d_gather", which pick from an input by given indices.
        input: the sizes ``(N, C, H, W)`` of the layer's input, for every `op`.
        weight: for convolutions, the sizes ``(K, C // groups, R, S)``.
        dtype: of all tensors but the indices.
        bias: whether the forward pass of a convolution reads one.
        index_dtype: of the positions that a max pool writes, or that its backward pass or gather reads. None
            for a forward pass that keeps none.
        geometry: kernel_size, output_size, stride, padding, dilation, groups, ceil_mode: as in `plan`.

    Raises:
        ValueError: an unknown `op`, an argument that does not belong to it, or no `index_dtype` for an
            operation that reads indices.
        RuntimeError: a problem that the operator itself refuses.
    """
    if op == "conv2d_forward_backward":
        passes = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
        first, *others = (work(name, input, weight, dtype=dtype, bias=bias, **geometry) for name in passes)
        return sum(others, first)
    gathers = op in ("max_pool2d_gather", "adaptive_max_pool2d_gather")
    base = op.removesuffix("_gather") if gathers else op
    numbers = problem_numbers(base, input, weight=weight, **geometry)
    maximum = "max_pool2d" in base and not base.startswith("conv2d")
    backward = base.endswith("_backward")
    if maximum and (gathers or backward) and index_dtype is None:
        raise ValueError(f"work(): {op} reads indices, so index_dtype is needed")
    if not maximum and index_dtype is not None:
        raise ValueError(f"work(): {op} has no indices, but index_dtype is {index_dtype}")
    if base.startswith("conv2d"):
        return _conv(base, numbers, dtype.itemsize, bias)
    if bias:
        raise ValueError(f"work(): {op} has no bias")
    index_size = index_dtype.itemsize if index_dtype is not None else 0
    return _pool(numbers, dtype.itemsize, index_size, maximum, backward, gathers)


def _conv(op: str, numbers: list[int], size: int, bias: bool) -> Work:
    n, c, h, w, k, r, s, p, q, stride_h, stride_w, top, left, dilation_h, dilation_w, groups = numbers
    if op == "conv2d_act_max_pool2d":  # what the windows leave out need not be made
        p, q = p // 2 * 2, q // 2 * 2
    rows, _ = _touched(h, _sliding(p, r, stride_h, top, dilation_h))
    columns, _ = _touched(w, _sliding(q, s, stride_w, left, dilation_w))
    outputs = n * k * p * q
    filters = k * (c // groups) * r * s
    image = n * c * h * w if op == "conv2d_dgrad" else n * c * rows * columns
    flops = 2 * outputs * (c // groups) * r * s
    elements = image + filters + (outputs // 4 if op == "conv2d_act_max_pool2d" else outputs)
    if bias and op in ("conv2d_fprop", "conv2d_act_max_pool2d"):
        elements += k
        flops += outputs
    return Work(elements * size, flops)


def _pool(
    numbers: list[int], size: int, index_size: int, maximum: bool, backward: bool, gathers: bool
) -> Work:
    n, c, h, w, p, q, adaptive, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = numbers
    if adaptive:
        down, across = _adaptive(h, p), _adaptive(w, q)
    else:
        down = _sliding(p, r, stride_h, pad_h, dilation_h)
        across = _sliding(q, s, stride_w, pad_w, dilation_w)
    rows, row_taps = _touched(h, down)
    columns, column_taps = _touched(w, across)
    outputs = n * c * p * q
    taps = n * c * row_taps * column_taps
    if gathers:
        return Work(outputs * (2 * size + index_size), 0)
    image = n * c * (h * w if backward else rows * columns)
    return Work((image + outputs) * size + outputs * index_size, outputs if maximum and backward else taps)


def _sliding(outputs: int, taps: int, stride: int, pad: int, dilation: int) -> list[range]:
    """Which positions each window reads along one axis, padding included."""
    starts = (index * stride - pad for index in range(outputs))
    return [range(start, start + dilation * (taps - 1) + 1, dilation) for start in starts]


def _adaptive(size: int, outputs: int) -> list[range]:
    return [range(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]


def _touched(size: int, windows: list[range]) -> tuple[int, int]:
    """How many positions of the image some window reads, and how many all windows read together."""
    inside = [position for window in windows for position in window if 0 <= position < size]
    return len(set(inside)), len(inside)
