"""Convolutions of few input channels: their own kernels, at the edges of rows, vectors and tiles."""

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
PASSES = ("fprop", "wgrad")


@pytest.fixture
def chip(emulated_on_cpu):
    """Sets the SM count that the planner sees."""
    device = controls()
    yield lambda sm_count: device.set_chip(sm_count=sm_count)
    device.set_chip()


def thin(id: str, channels: int, filters: int, image: tuple[int, int], kernel=(3, 3), **rest):
    """A batch of 2 unless `batch` says otherwise."""
    batch = rest.pop("batch", 2)
    return Conv(id, (batch, channels, *image), filters, kernel, **rest)


SAME = {"padding": (1, 1, 1, 1)}
STEM = {"stride": (2, 2), "padding": (3, 3, 3, 3)}

SHAPES = [
    thin("stem", 3, 64, (17, 24), (7, 7), **STEM),
    thin("stem-odd", 3, 16, (16, 21), (7, 7), **STEM),
    thin("stem-c4", 4, 24, (13, 16), (7, 7), **STEM),
    thin("c1", 1, 32, (9, 12), **SAME),
    thin("c2", 2, 8, (7, 10), **SAME),
    thin("c3", 3, 64, (6, 8), **SAME),
    thin("c3-odd", 3, 32, (7, 9), **SAME),
    thin("c4", 4, 40, (7, 8), **SAME),
    thin("stride-2", 3, 24, (11, 16), stride=(2, 2), **SAME),
    thin("stride-2-c1", 1, 16, (11, 16), stride=(2, 2), **SAME),
    thin("patch", 3, 96, (12, 16), (4, 4), stride=(4, 4)),
    thin("alexnet", 3, 64, (27, 31), (11, 11), batch=1, stride=(4, 4), padding=(2, 2, 2, 2)),
    thin("filters-minus-1", 3, 63, (5, 8), **SAME),
    thin("filters-plus-1", 3, 65, (5, 8), **SAME),
    thin("filters-7", 3, 7, (5, 8), **SAME),
    thin("filters-9", 3, 9, (5, 8), **SAME),
    thin("one-filter", 2, 1, (5, 8), **SAME),
    thin("many-filters", 3, 300, (3, 4), batch=1, **SAME),
    thin("weights-in-slabs", 4, 200, (9, 9), (7, 7), batch=1, **STEM),
    thin("wide-image", 3, 8, (2, 530), batch=1, **SAME),
    thin("tall-image", 3, 8, (530, 2), batch=1, **SAME),
    thin("tile", 1, 8, (16, 32), batch=1, **SAME),
    thin("tile-plus-1", 1, 8, (17, 33), batch=1, **SAME),
    thin("tile-minus-1", 1, 8, (15, 31), batch=1, **SAME),
    thin("1x1", 3, 16, (5, 7), (1, 1)),
    thin("1x1-image", 4, 8, (1, 1), (1, 1)),
    thin("1x1-stride-2", 3, 16, (5, 7), (1, 1), stride=(2, 2)),
    thin("one-column", 3, 8, (9, 1), (3, 1)),
    thin("one-row", 3, 8, (1, 9), (1, 3)),
    thin("one-output-pixel", 3, 8, (4, 4), (4, 4), batch=5),
    thin("uneven-stride", 3, 8, (9, 12), stride=(1, 3), **SAME),
    thin("stride-over-kernel", 3, 8, (13, 14), (2, 2), stride=(5, 3)),
    thin("stride-over-image", 3, 8, (5, 4), stride=(9, 9), **SAME),
    thin("dilated", 3, 8, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    thin("dilated-strided", 2, 8, (12, 11), (3, 2), stride=(2, 2), padding=(3, 3, 1, 1), dilation=(3, 2)),
    thin("pad-kernel-minus-1", 3, 8, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    thin("pad-over-kernel", 3, 8, (3, 3), (2, 2), padding=(4, 4, 3, 3)),
    thin("asymmetric-padding", 3, 8, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    thin("kernel-over-image", 3, 8, (3, 4), (7, 5), padding=(3, 3, 2, 2)),
]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    dy = make(reference_output(case, x, w, None).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](w), bias, LAYOUTS[layout](dy)


def reference_output(case: Conv, x, w, bias) -> torch.Tensor:
    top, bottom, left, right = case.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, bias, case.stride, 0, case.dilation, case.groups)


def torchs(case: Conv, x, w, bias, dy) -> dict[str, torch.Tensor]:
    """y and dw as torch has them in the operands' dtype."""
    w = w.detach().requires_grad_()
    y = reference_output(case, x, w, bias)
    return {"fprop": y.detach(), "wgrad": torch.autograd.grad(y, w, dy)[0]}


def references(case: Conv, *operands) -> dict[str, torch.Tensor]:
    return torchs(case, *(t.double() for t in operands))


def results(case: Conv, x, w, bias, dy) -> dict[str, torch.Tensor]:
    nhwc = x.stride(1) == 1
    return {
        "fprop": OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        "wgrad": OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, nhwc, False),
    }


def launched() -> list[str]:
    return [launch["name"].removeprefix("conv2d::") for launch in controls().launches()]


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    names = [name for name in launched() if name != "split_sum"]
    suffix = "" if dtype == torch.float32 else "_mma"
    assert names == [f"thin_{name}{suffix}" for name in PASSES]
    for name, expected in references(case, *operands).items():
        assert_exact(got[name], expected, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(132)
    # The two half types share their kernels' code: each takes one of the layouts.
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)
    check(case, torch.float32, layout)


#: First layers of ImageNet models on a part of an image; a chip as many times smaller.
FIRST_LAYERS = [
    thin("7x7-s2", 3, 64, (112, 112), (7, 7), batch=1, **STEM),
    thin("3x3", 3, 64, (56, 56), batch=1, **SAME),
    thin("3x3-s2", 3, 32, (112, 112), batch=1, stride=(2, 2), **SAME),
    thin("patch", 3, 96, (112, 112), (4, 4), batch=1, stride=(4, 4)),
    thin("11x11-s4", 3, 64, (112, 112), (11, 11), batch=1, stride=(4, 4), padding=(2, 2, 2, 2)),
    thin("c1-28", 1, 32, (28, 28), batch=4, **SAME),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", FIRST_LAYERS)
def test_bytes_near_the_floor(chip, case, layout):
    """Every access counts, as if there were no cache: halos and partial sums included."""
    chip(1)
    for dtype in (torch.bfloat16,):
        x, w, bias, dy = tensors(case, dtype, layout, integers)
        controls().reset()
        results(case, x, w, bias, dy)
        floor = sum(t.numel() * t.element_size() for t in (x, w, dy))
        for launch in controls().launches():
            if launch["name"] == "conv2d::split_sum":
                continue
            moved = launch["global_bytes_read"] + launch["global_bytes_written"]
            print(launch["name"], moved / floor, launch["grid"], fastcnn)
