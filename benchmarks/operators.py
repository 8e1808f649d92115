"""Calls of every operator beside torch's own: for determinism, and for the sanitizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True)
class ConvShape:
    """A convolution: sizes as in torch, equal in both directions of the plane."""

    label: str
    n: int
    c: int
    size: int
    k: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def arguments(self) -> tuple[int, ...]:
        """The scalars that every convolution operator takes."""
        return (self.stride,) * 2 + (self.padding,) * 4 + (self.dilation,) * 2 + (self.groups,)


@dataclass(frozen=True)
class PoolShape:
    """A pooling window, equal in both directions of the plane; `out` is the adaptive output size."""

    label: str
    n: int
    c: int
    size: int
    kernel: int
    stride: int
    padding: int
    out: int


@dataclass(frozen=True)
class Case:
    """One call of an operator and what torch would do instead.

    `torch_tensors` and `baseline` may differ from `tensors`: torch keeps other indices. Both return a tensor
    or a tuple whose first element is to agree.
    """

    operator: str
    label: str
    dtype: torch.dtype
    channels_last: bool
    tensors: tuple[Tensor | None, ...]
    arguments: tuple
    torch_tensors: tuple[Tensor | None, ...]
    baseline: Callable[..., Tensor | tuple[Tensor, ...]]

    @property
    def name(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        return f"{self.operator} {self.label} {str(self.dtype).removeprefix('torch.')} {layout}"

    def ours(self) -> Tensor | tuple[Tensor, ...]:
        return getattr(torch.ops.fastcnn, self.operator).default(*self.tensors, *self.arguments)

    def torchs(self) -> Tensor | tuple[Tensor, ...]:
        return self.baseline(*self.torch_tensors)

    def reference(self) -> Tensor:
        """torch's result in float64."""
        wide = (t.double() if t is not None and t.is_floating_point() else t for t in self.torch_tensors)
        return first(self.baseline(*wide))


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The tensor that carries the values."""
    return result if isinstance(result, Tensor) else result[0]


SMALL_CONVS = (
    ConvShape("3x3", 2, 5, 9, 7, 3, padding=1),
    ConvShape("3x3-stride2-dilated", 2, 8, 13, 16, 3, stride=2, padding=2, dilation=2),
    ConvShape("1x1", 1, 16, 8, 24, 1),
    ConvShape("1x1-stride2-unaligned", 2, 17, 10, 33, 1, stride=2),
    ConvShape("grouped", 2, 6, 7, 9, 3, padding=1, groups=3),
    ConvShape("depthwise", 2, 9, 10, 9, 3, padding=1, groups=9),
    ConvShape("first-layer", 2, 3, 11, 16, 3, stride=2, padding=1),
    ConvShape("few-filters", 2, 16, 9, 3, 3, padding=1),
    ConvShape("few-filters-7x7", 2, 16, 9, 3, 7, padding=3),
    ConvShape("16-channels", 2, 16, 9, 32, 3, padding=1),
    ConvShape("groups-of-8", 2, 32, 7, 32, 3, padding=1, groups=4),
    ConvShape("depthwise-16", 2, 16, 9, 16, 3, padding=1, groups=16),
    ConvShape("depthwise-5x5-stride2", 2, 16, 9, 16, 5, stride=2, padding=2, groups=16),
    ConvShape("depthwise-dilated", 2, 16, 9, 16, 3, padding=2, dilation=2, groups=16),
    ConvShape("depthwise-stride2-dilated", 1, 8, 70, 8, 3, stride=2, padding=2, dilation=2, groups=8),
    ConvShape("depthwise-9x9", 2, 16, 9, 16, 9, padding=4, groups=16),
    ConvShape("depthwise-13x13", 2, 16, 9, 16, 13, padding=6, groups=16),
)
SMALL_POOLS = (
    PoolShape("3x3", 2, 5, 11, 3, 2, 1, 4),
    PoolShape("2x2", 1, 8, 8, 2, 2, 0, 3),
    PoolShape("3x3-8-channels", 2, 8, 9, 3, 1, 1, 2),
    PoolShape("5x5-and-global", 2, 8, 9, 5, 1, 2, 1),
)


def conv_cases(shape: ConvShape, dtype: torch.dtype, channels_last: bool, device: str) -> Iterator[Case]:
    """The convolution and its gradients, on random normal data."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        values = torch.randn(sizes, device=device, dtype=dtype, generator=generator)
        return values.contiguous(memory_format=layout) if values.dim() == 4 else values

    x = normal(shape.n, shape.c, shape.size, shape.size)
    w = normal(shape.k, shape.c // shape.groups, shape.kernel, shape.kernel)
    b = normal(shape.k)
    dy, z = (normal(shape.n, shape.k, shape.out, shape.out) for _ in range(2))
    stride, padding, dilation = [shape.stride] * 2, [shape.padding] * 2, [shape.dilation] * 2

    def backward(dy: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        mask = [index == which for index in range(3)]
        rest = (stride, padding, dilation, False, [0, 0], shape.groups, mask)
        return _aten.convolution_backward(dy, x, w, [shape.k], *rest)[which]

    def case(
        operator: str, tensors: tuple, arguments: tuple, torch_tensors: tuple, baseline: Callable
    ) -> Case:
        return Case(operator, shape.label, dtype, channels_last, tensors, arguments, torch_tensors, baseline)

    yield case(
        "conv2d",
        (x, w, b),
        (None, *shape.arguments, "none", 0.0, False),
        (x, w, b),
        lambda x, w, b: torch.conv2d(x, w, b, stride, padding, dilation, shape.groups),
    )
    sizes = (shape.size, shape.size, *shape.arguments, channels_last, False)
    yield case("conv2d_dgrad", (dy, w), sizes, (dy, x, w), lambda dy, x, w: backward(dy, x, w, 0))
    sizes = (shape.kernel, shape.kernel, *shape.arguments, channels_last, False)
    yield case("conv2d_wgrad", (dy, x), sizes, (dy, x, w), lambda dy, x, w: backward(dy, x, w, 1))
    yield case("conv2d_bias_grad", (dy,), (), (dy,), lambda dy: dy.sum((0, 2, 3)))
    silu = (*shape.arguments, "silu", 0.0)
    yield case(
        "conv2d_with_preactivation",
        (x, w, b, z),
        (*silu, False),
        (x, w, b, z),
        lambda x, w, b, z: F.silu(torch.conv2d(x, w, b, stride, padding, dilation, shape.groups) + z),
    )
    yield case(
        "conv2d_act_dgrad",
        (dy, z, w),
        (shape.size, shape.size, *silu, channels_last, False),
        (dy, z, x, w),
        lambda dy, z, x, w: backward(_aten.silu_backward(dy, z), x, w, 0),
    )
    yield case(
        "conv2d_act_wgrad",
        (dy, z, x),
        (shape.kernel, shape.kernel, *silu, True, channels_last, False),
        (dy, z, x, w),
        lambda dy, z, x, w: backward(_aten.silu_backward(dy, z), x, w, 1),
    )
    for name in ("conv2d_act_max_pool2d", "conv2d_act_max_pool2d_with_offsets"):
        yield case(
            name,
            (x, w, b),
            (*shape.arguments, "relu", 0.0, False),
            (x, w, b),
            lambda x, w, b: F.max_pool2d(
                torch.conv2d(x, w, b, stride, padding, dilation, shape.groups).relu(), 2
            ),
        )


def pool_cases(shape: PoolShape, dtype: torch.dtype, channels_last: bool, device: str) -> Iterator[Case]:
    """Every pooling operator, on random normal data."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(0)
    sizes = (shape.n, shape.c, shape.size, shape.size)
    x = torch.randn(sizes, device=device, dtype=dtype, generator=generator).contiguous(memory_format=layout)
    kernel, stride, padding = [shape.kernel] * 2, [shape.stride] * 2, [shape.padding] * 2
    window = (*kernel, *stride, *padding)
    max_window, plane = (*window, 1, 1, False), (shape.size, shape.size)
    average_window = (*window, False, True, 0)
    out = (shape.out, shape.out)

    def case(
        operator: str, tensors: tuple, arguments: tuple, torch_tensors: tuple, baseline: Callable
    ) -> Case:
        return Case(operator, shape.label, dtype, channels_last, tensors, arguments, torch_tensors, baseline)

    def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
        return _aten.max_pool2d_with_indices(x, kernel, stride, padding)

    def picked(x: Tensor, indices: Tensor) -> Tensor:
        return x.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)

    y, indices = max_pool(x)
    offsets = torch.ops.fastcnn.max_pool2d_with_offsets(x, *max_window)[1]
    dy = torch.randn(y.shape, device=device, dtype=dtype, generator=generator)
    dy = dy.contiguous(memory_format=layout)
    for operator in ("max_pool2d", "max_pool2d_with_offsets", "max_pool2d_with_indices"):
        yield case(operator, (x,), max_window, (x,), max_pool)
    yield case(
        "max_pool2d_backward",
        (dy, offsets),
        (*plane, *max_window, channels_last),
        (dy, x, indices),
        lambda dy, x, indices: _aten.max_pool2d_with_indices_backward(
            dy, x, kernel, stride, padding, [1, 1], False, indices
        ),
    )
    yield case("max_pool2d_gather", (x, offsets), max_window, (x, indices), picked)
    yield case(
        "avg_pool2d", (x,), average_window, (x,), lambda x: _aten.avg_pool2d(x, kernel, stride, padding)
    )
    yield case(
        "avg_pool2d_backward",
        (dy,),
        (*plane, *average_window, channels_last),
        (dy, x),
        lambda dy, x: _aten.avg_pool2d_backward(dy, x, kernel, stride, padding, False, True, None),
    )
    small, small_indices = _aten.adaptive_max_pool2d(x, out)
    dsmall = torch.randn(small.shape, device=device, dtype=dtype, generator=generator)
    dsmall = dsmall.contiguous(memory_format=layout)
    yield case("adaptive_avg_pool2d", (x,), out, (x,), lambda x: _aten._adaptive_avg_pool2d(x, out))
    yield case(
        "adaptive_avg_pool2d_backward",
        (dsmall,),
        (*plane, channels_last),
        (dsmall, x),
        _aten._adaptive_avg_pool2d_backward,
    )
    yield case("adaptive_max_pool2d", (x,), out, (x,), lambda x: _aten.adaptive_max_pool2d(x, out))
    yield case(
        "adaptive_max_pool2d_backward",
        (dsmall, small_indices),
        (*plane, channels_last),
        (dsmall, x, small_indices),
        _aten.adaptive_max_pool2d_backward,
    )
    yield case("adaptive_max_pool2d_gather", (x, small_indices), (), (x, small_indices), picked)


def small_cases(device: str) -> Iterator[Case]:
    """Every operator on shapes that take no time, in every dtype and both layouts."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for channels_last in (True, False):
            for conv in SMALL_CONVS:
                yield from conv_cases(conv, dtype, channels_last, device)
            for pool in SMALL_POOLS:
                yield from pool_cases(pool, dtype, channels_last, device)


def disagreement(case: Case) -> str | None:
    """Why our result does not agree with torch's in float64, or None.

    Allowed: twice the error of torch's own result in the same dtype, plus one unit in the last place of the
    largest value. In float64 torch's result is the reference itself, so 64 units are allowed there.
    """
    ours, torchs, reference = first(case.ours()), first(case.torchs()), case.reference()
    if ours.shape != reference.shape or ours.dtype != torchs.dtype:
        return (
            f"{case.name}: {tuple(ours.shape)} {ours.dtype}, expected {tuple(reference.shape)} {torchs.dtype}"
        )
    error = (ours.double() - reference).abs().max().item()
    torch_error = (torchs.double() - reference).abs().max().item()
    ulp = torch.finfo(ours.dtype).eps * reference.abs().max().item()
    if not error <= 2 * torch_error + (64 if ours.dtype is torch.float64 else 1) * ulp:
        return f"{case.name}: error {error:.3g}, torch's own is {torch_error:.3g}"
    return None
