"""1x1 convolutions in half precision: the tensor-core product of their own, at the edges of its tiles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
PASSES = ("fprop", "dgrad", "wgrad")
HALVES = {"nhwc": torch.float16, "nchw": torch.bfloat16}


@pytest.fixture
def chip(emulated_on_cpu):
    """Sets the SM count that the planner sees."""
    device = controls()
    yield lambda sm_count: device.set_chip(sm_count=sm_count)
    device.set_chip()


def pointwise(id: str, channels: int, filters: int, image: tuple[int, int], batch: int = 2, **rest) -> Conv:
    return Conv(id, (batch, channels, *image), filters, (1, 1), **rest)


SHAPES = [
    pointwise("one-pixel-of-one-channel", 1, 2, (1, 1), batch=1),
    pointwise("one-channel", 1, 9, (5, 7)),
    pointwise("one-filter", 9, 1, (5, 7)),
    pointwise("vector-minus-1", 7, 7, (3, 5)),
    pointwise("vector", 8, 8, (4, 6)),
    pointwise("vector-plus-1", 9, 9, (3, 5)),
    pointwise("half-vectors", 12, 20, (6, 6)),
    pointwise("step-minus-vector", 24, 40, (5, 5)),
    pointwise("step", 32, 32, (4, 8)),
    pointwise("step-plus-vector", 40, 24, (5, 5)),
    pointwise("tile-minus-vector", 56, 120, (8, 15), batch=1),
    pointwise("tile", 64, 128, (8, 16), batch=1),
    pointwise("tile-plus-1", 65, 129, (3, 43), batch=1),
    pointwise("tile-plus-vector", 72, 136, (8, 17), batch=1),
    pointwise("planes-of-4", 16, 24, (2, 2), batch=9),
    pointwise("planes-of-49", 16, 24, (7, 7), batch=3),
    pointwise("one-pixel", 96, 20, (1, 1), batch=5),
    pointwise("stride-2", 16, 24, (9, 7), stride=(2, 2)),
    pointwise("stride-2-even", 24, 16, (8, 16), stride=(2, 2)),
    pointwise("stride-of-rows", 16, 16, (7, 16), stride=(3, 1)),
    pointwise("stride-of-columns", 16, 16, (4, 9), stride=(1, 2)),
    pointwise("stride-over-image", 16, 8, (3, 4), stride=(5, 7)),
]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    dy = make(F.conv2d(x, w, stride=case.stride).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](w), bias, LAYOUTS[layout](dy)


def torchs(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    """y, dx and dw as torch has them in the operands' dtype."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = F.conv2d(x, w, bias, case.stride)
    return (y.detach(), *torch.autograd.grad(y, (x, w), dy))


def references(case: Conv, *operands) -> tuple[torch.Tensor, ...]:
    return torchs(case, *(t.double() for t in operands))


def results(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    nhwc = x.stride(1) == 1
    return (
        OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, nhwc, False),
        OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, nhwc, False),
    )


def launched() -> list[str]:
    return [launch["name"].removeprefix("conv2d::") for launch in controls().launches()]


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    """Exact, and no launch beyond the kernel's but the sum of wgrad's splits."""
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    names = launched()
    assert names[:3] == [f"pointwise_{name}_mma" for name in PASSES]
    assert names[3:] in ([], ["split_sum"])
    for name, value, expected in zip(PASSES, got, references(case, *operands), strict=True):
        assert_exact(value, expected, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout, sm_count):
    """On 132 SMs mostly in small tiles; on one in large ones, of which a block has several."""
    chip(sm_count)
    check(case, HALVES[layout], layout)
