"""The fast kernels of depthwise fprop and dgrad: values at the edges of their tiles, bytes near the floor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)


@pytest.fixture
def chip(emulated_on_cpu):
    """Sets the SM count that the planner sees."""
    device = controls()
    yield lambda sm_count: device.set_chip(sm_count=sm_count)
    device.set_chip()


def layer(id: str, channels: int, image: tuple[int, int], kernel: int | tuple[int, int] = 3, **rest) -> Conv:
    """Square settings may be one number; "same" padding unless `pad` says otherwise."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    stride, dilation = rest.get("stride", 1), rest.get("dilation", 1)
    stride = (stride, stride) if isinstance(stride, int) else stride
    dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
    pad = rest.get("pad", tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)))
    pad = (pad, pad) if isinstance(pad, int) else pad
    pad = pad if len(pad) == 4 else (pad[0], pad[0], pad[1], pad[1])
    input = (rest.get("batch", 2), channels, *image)
    return Conv(id, input, channels, kernel, stride, pad, dilation, channels)


#: (kernel, stride, dilation) of the strips.
KINDS = [(k, s, d) for k in (3, 5, 7) for s, d in ((1, 1), (2, 1), (1, 2), (2, 2))]

STRIPS = [
    *(layer(f"{k}x{k}-stride-{s}-dilation-{d}", 16, (9, 16), k, stride=s, dilation=d) for k, s, d in KINDS),
    layer("one-pixel", 8, (1, 1)),
    layer("one-row", 8, (1, 15), 5),
    layer("one-column", 8, (15, 1), 5),
    layer("tile-minus-1", 8, (7, 6)),
    layer("tile", 8, (8, 7)),
    layer("tile-plus-1", 8, (9, 8)),
    layer("no-padding", 8, (9, 10), pad=0),
    layer("no-padding-stride-2", 8, (9, 10), pad=0, stride=2),
    layer("no-padding-5x5-stride-2", 8, (10, 11), 5, pad=1, stride=2),
    layer("pad-kernel-minus-1", 8, (5, 6), 5, pad=4),
    layer("pad-kernel-minus-1-stride-2", 8, (5, 6), 5, pad=4, stride=2),
    layer("pad-over-kernel", 8, (4, 3), pad=4),
    layer("pad-over-kernel-stride-2", 8, (4, 3), pad=5, stride=2),
    layer("asymmetric-padding", 8, (7, 9), pad=(0, 1, 2, 0)),
    layer("asymmetric-padding-stride-2", 8, (7, 9), pad=(0, 1, 2, 1), stride=2),
    layer("kernel-over-image", 8, (3, 2), 7),
    layer("kernel-over-image-stride-2", 8, (3, 2), 7, stride=2),
    layer("dilation-over-image", 8, (4, 5), dilation=3),
    layer("dilation-without-padding", 8, (11, 9), dilation=2, pad=0),
    layer("uneven-dilation", 8, (9, 12), dilation=(1, 3)),
    layer("stride-4-dilation-2", 8, (14, 13), dilation=2, stride=4, pad=1),
    layer("stride-3-dilation-3", 8, (14, 13), dilation=3, stride=3, pad=1),
    layer("channels-of-several-chunks", 136, (3, 4), 5),
    layer("wide", 8, (3, 300), 3, batch=1),
    layer("wide-stride-2", 8, (4, 290), 5, batch=1, stride=2),
    layer("wide-of-many-channels", 64, (2, 80), 7, batch=1),
    layer("tall", 8, (90, 2), 3, batch=1),
]

#: What dgrad leaves to the kernel for every shape: a stride that its step does not have.
STRIDED = {"3x3-stride-2-dilation-2", "5x5-stride-2-dilation-2", "7x7-stride-2-dilation-2"}
STRIDED |= {"stride-4-dilation-2", "stride-3-dilation-3"}


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    dy = make(reference(case, x, w, None).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), w, bias, LAYOUTS[layout](dy)


def reference(case: Conv, x, w, bias) -> torch.Tensor:
    top, bottom, left, right = case.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, bias, case.stride, 0, case.dilation, case.groups)


def references(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, torch.Tensor]:
    """y and dx in the operands' dtype."""
    x = x.detach().requires_grad_()
    y = reference(case, x, w, bias)
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def results(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, x.stride(1) == 1, False),
    )


def launched() -> list[str]:
    return [launch["name"].removeprefix("conv2d::") for launch in controls().launches()]


def check(case: Conv, dtype: torch.dtype, layout: str, names: list[str]) -> None:
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    assert launched() == names
    wanted = references(case, *(t.double() for t in operands))
    for name, value, expected in zip(names, got, wanted, strict=True):
        assert_exact(value, expected, name)


def strip_names(case: Conv) -> list[str]:
    return ["depthwise_strip_fprop", "depthwise_dgrad" if case.id in STRIDED else "depthwise_strip_dgrad"]


@parametrize("case", STRIPS)
def test_strips_are_exact(chip, case):
    chip(132)
    check(case, torch.float32, "nhwc", strip_names(case))
    # The two half types share their kernels' code: they take turns.
    check(case, HALVES[len(case.id) % 2], "nhwc", strip_names(case))
