"""Depthwise wgrad with many taps: values at the edges of cells, strips and classes, order, bytes."""

from __future__ import annotations

import pytest
import torch

from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize
from .test_depthwise_sweep import (
    act_wgrad,
    direct,
    launched,
    layer,
    layouts,
    layouts_and_dtypes,
    tensors,
    torchs,
    wgrad,
)

pytestmark = pytest.mark.emulated

LARGE = {"conv2d::depthwise_wgrad_large"}

SHAPES = [
    layer("31x31", 4, (12, 13), 31, batch=1),
    layer("11x11", 8, (9, 10), 11),
    layer("13x13-on-7x7", 8, (7, 7), 13, batch=9),
    layer("3x31", 4, (4, 33), (3, 31)),
    layer("31x7", 4, (33, 4), (31, 7)),
    layer("even-taps", 4, (8, 9), (12, 14), padding=(5, 6, 6, 7)),
    layer("16-taps-a-row", 4, (9, 8), (7, 16), padding=(3, 3, 7, 8)),
    layer("17-taps-a-row", 4, (8, 17), (6, 17), padding=(2, 3, 8, 8)),
    layer("one-pixel", 4, (1, 1), 11, batch=5),
    layer("one-row", 8, (1, 20), 13),
    layer("one-output", 4, (11, 12), (11, 12), padding=(0, 0, 0, 0), batch=3),
    layer("no-padding", 4, (17, 15), 11, padding=(0, 0, 0, 0)),
    layer("pad-kernel-minus-1", 4, (3, 5), 11, padding=(10, 10, 10, 10)),
    layer("pad-over-kernel", 4, (3, 2), (11, 12), padding=(13, 12, 14, 14)),
    layer("asymmetric-padding", 4, (9, 8), 11, padding=(0, 10, 3, 6)),
    layer("odd-channels", 5, (7, 9), 11),
    layer("two-channels", 6, (6, 7), 11, batch=3),
    layer("51x7", 2, (9, 10), (51, 7)),
    layer("stride-2", 4, (15, 14), 21, stride=(2, 2), padding=(10, 10, 10, 10)),
    layer("stride-3", 4, (14, 17), 13, stride=(3, 3), batch=1),
    layer("stride-over-taps", 4, (11, 9), (2, 41), stride=(3, 1), padding=(1, 1, 20, 20), batch=1),
    layer("stride-and-dilation", 4, (12, 11), 15, stride=(2, 4), dilation=(2, 2), batch=1),
    layer("rows-in-strips", 1, (109, 90), (11, 8), padding=(5, 5, 3, 4), batch=2),
    layer("channels-and-strips", 4, (71, 76), (4, 22), padding=(1, 2, 10, 11), batch=2),
]
SOME = [
    case
    for case in SHAPES
    if case.id in ("11x11", "13x13-on-7x7", "odd-channels", "asymmetric-padding", "stride-3")
]


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    x, dy = tensors(case, dtype, layout, integers)
    controls().reset()
    got = wgrad(case, x, dy)
    assert launched() == LARGE
    assert_exact(got, torchs(case, x.double(), dy.double()))


@layouts
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(1)  # a split has many stages
    check(case, torch.float32, layout)
    chip(132)  # and few here; the half types take turns
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
def test_any_strides(chip, layout):
    chip(2)
    check(SHAPES[1], torch.float32, layout)


@layouts_and_dtypes
@parametrize("case", SOME)
def test_random_as_accurate_as_torch(chip, case, layout, dtype):
    chip(3)
    x, dy = tensors(case, dtype, layout, normal)
    reference = torchs(case, x.double(), dy.double())
    assert_accurate(wgrad(case, x, dy), reference, torchs(case, x, dy))


@layouts
@parametrize("case", SOME[:2])
def test_thread_order_does_not_show(chip, case, layout):
    chip(3)
    x, dy = tensors(case, torch.float32, layout, normal)
    seen = set()
    for seed in range(10):
        controls().set_seed(seed)
        seen.add(tuple(t.numpy().tobytes() for t in act_wgrad(case, x, dy, None, "none")))
    assert len(seen) == 1


@layouts
@parametrize("case", SOME)
def test_infinities_stay_where_torch_leaves_them(chip, case, layout):
    """At the image's edges, where taps meet padding, and in images that other threads sum."""
    chip(2)
    x, dy = (t.abs() + 1 for t in tensors(case, torch.float32, layout, integers))
    x[0, 0, 0, 0] = x[0, 0, 4, 2] = x[0, 0, -1, -1] = torch.inf
    dy[0, 1, 0, 0] = dy[-1, 1, -1, -1] = torch.inf
    dy[-1, 2, -1, 0] = torch.nan
    assert_exact(wgrad(case, x, dy), direct(case, x.double(), dy.double()))


@layouts_and_dtypes
@parametrize("case", [*SOME, SHAPES[-1]])
def test_fused_backward(chip, case, dtype, layout):
    """relu and leaky_relu of whole numbers are exact, the bias gradient too; nothing else is launched."""
    x, dy = tensors(case, dtype, layout, integers)
    saved = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    for sm_count, activation, slope in ((1, "relu", 0.0), (132, "leaky_relu", 0.125), (3, "none", 1.0)):
        chip(sm_count)
        controls().reset()
        dw, db = act_wgrad(case, x, dy, None if activation == "none" else saved, activation)
        assert launched() == LARGE
        through = torch.where(saved > 0, dy.double(), slope * dy.double())
        assert_exact(dw, torchs(case, x.double(), through))
        assert_exact(db, through.sum((0, 2, 3)))


@layouts
@pytest.mark.parametrize(
    ("size", "kernel", "channels", "batch"),
    [(56, 31, 6, 2), (28, 29, 4, 2), (14, 27, 4, 16), (7, 13, 8, 64)],
    ids=["56x56", "28x28", "14x14", "7x7"],
)
def test_bytes_near_the_floor(chip, size, kernel, channels, batch, layout):
    """Every access of every launch counts, as if there were no cache."""
    chip(1)
    case = layer("", channels, (size, size), kernel, batch=batch)
    x, dy = tensors(case, torch.bfloat16, layout, integers)
    controls().reset()
    dw = wgrad(case, x, dy)
    floor = sum(t.numel() * t.element_size() for t in (x, dy, dw))
    moved = sum(
        launch["global_bytes_read"] + launch["global_bytes_written"] for launch in controls().launches()
    )
    assert moved <= 1.10 * floor, moved / floor
    assert_exact(dw, torchs(case, x.double(), dy.double()))
