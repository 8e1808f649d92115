"""Depthwise fprop and dgrad with many taps: values at the edges of cells and tiles, bytes near the floor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .operands import LAYOUTS, integers, normal
from .shapes import parametrize
from .test_depthwise_image import (
    HALVES,
    OPS,
    check,
    inside_sums,
    launched,
    layer,
    reference,
    references,
    results,
    tensors,
)

pytestmark = pytest.mark.emulated

NAMES = ["depthwise_large_fprop", "depthwise_large_dgrad"]

CASES = [
    layer("9x9", 8, (9, 17), 9),
    layer("8x8", 4, (9, 8), 8, pad=(3, 4, 4, 3)),
    layer("row", 4, (3, 33), (1, 31)),
    layer("column", 4, (33, 3), (31, 1)),
    layer("13x13-on-7x7", 8, (7, 7), 13, batch=3),
    layer("31x31-on-12x12", 4, (12, 12), 31, batch=1),
    layer("16-taps-a-row", 4, (4, 9), (3, 16), pad=(1, 1, 7, 8)),
    layer("17-taps-a-row", 4, (4, 7), (3, 17)),
    layer("23-taps-a-row", 4, (3, 16), (2, 23), pad=(0, 1, 11, 11)),
    layer("one-pixel", 4, (1, 1), 9),
    layer("odd-channels", 5, (6, 11), (7, 9)),
    layer("no-padding", 4, (11, 13), 9, pad=0),
    layer("pad-kernel-minus-1", 4, (3, 5), 9, pad=8),
    layer("pad-over-kernel", 4, (3, 2), (5, 8), pad=9),
    layer("asymmetric-padding", 4, (8, 9), 9, pad=(0, 8, 3, 5)),
    layer("odd-channels-5x5", 3, (6, 9), 5),
    layer("dilated", 4, (11, 19), (7, 9), dilation=(2, 3), batch=1),
    layer("dilated-strides", 3, (13, 14), (5, 9), dilation=(2, 3), stride=(2, 3), pad=(3, 8), batch=1),
    layer("dilation-over-image", 3, (3, 4), (5, 5), dilation=5, batch=1),
    layer("channels-and-images-over-a-block", 12, (3, 4), 9, batch=5),
    layer("101x97", 2, (3, 4), (101, 97), batch=1),
    layer("rows-in-tiles", 1, (150, 70), (9, 11), batch=1),
    layer("columns-in-tiles", 4, (4, 700), (2, 13), pad=(0, 1, 6, 6), batch=1),
]

#: NCHW: those that depthwise_tile does not take, which is every one but 5x5 and what is 7x7 without dilation.
PLANES = [case for case in CASES if case.id != "odd-channels-5x5"]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", CASES)
def test_sums_are_exact(chip, case, layout):
    if layout == "nchw" and case not in PLANES:
        pytest.skip("the tiles take it")
    chip(1)  # large blocks
    check(case, torch.float32, layout, NAMES)
    # Small ones; the two half types share their kernels' code: they take turns.
    chip(132)
    check(case, HALVES[len(case.id) % 2], layout, NAMES)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "batch-last"])
def test_any_strides(chip, layout):
    check(CASES[0], torch.float32, layout, NAMES)


@parametrize(
    "case",
    [
        layer("stride-2", 4, (19, 18), 9, stride=2, batch=1),
        layer("few-taps", 4, (6, 6), (3, 7), pad=(1, 1, 3, 3)),
    ],
)
def test_the_rest_is_left_to_the_kernels_for_every_shape(chip, case):
    results(case, *tensors(case, torch.float16, "nhwc", integers))
    assert launched()[-2:] == ["depthwise_fprop", "depthwise_dgrad"]


SOME_IDS = ("9x9", "13x13-on-7x7", "odd-channels", "asymmetric-padding")
SOME = [case for case in CASES if case.id in SOME_IDS]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", SOME)
def test_random_numbers_are_as_accurate_as_torch(chip, case, dtype, layout):
    chip(1)
    operands = tensors(case, dtype, layout, normal)
    wanted = references(case, *(t.double() for t in operands))
    others = references(case, *operands)
    for got, expected, other in zip(results(case, *operands), wanted, others, strict=True):
        assert_accurate(got, expected, other)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SOME)
def test_epilogue(chip, case, layout):
    """Bias, residual and activation, and what is kept for the backward."""
    chip(1)
    x, w, bias, dy = tensors(case, torch.float32, layout, integers)
    residual = LAYOUTS[layout](integers(dy.shape, torch.float32, "cpu", seed=5))
    expected = reference(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).float())


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("dtype", "activation"), [(torch.float32, "gelu"), (torch.float16, "relu")], ids=str)
@parametrize("case", SOME)
def test_dgrad_through_an_activation(chip, case, activation, dtype, layout):
    """Bit for bit what the activation's backward and dgrad give one after the other."""
    chip(1)
    _, w, _, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    channels, *image = dy.shape[1:]
    pointwise = (1, 1, 0, 0, 0, 0, 1, 1, channels)
    ones = torch.ones(channels, 1, 1, 1, dtype=dtype)
    act, nhwc = (activation, 0.0), layout != "nchw"
    grad = OPS.conv2d_act_dgrad(dy, saved, ones, *image, *pointwise, *act, nhwc, False)
    dx = OPS.conv2d_act_dgrad(dy, saved, w, *case.input[2:], *case.geometry, *act, nhwc, False)
    assert launched()[-1] == NAMES[1]
    assert not torch.equal(grad, dy)
    grad = LAYOUTS[layout](grad)
    assert torch.equal(dx, OPS.conv2d_dgrad(grad, w, *case.input[2:], *case.geometry, nhwc, False))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SOME)
def test_padding_is_left_out(chip, case, layout):
    """Infinite weights make nothing of the padding that they lie on; infinite pixels reach what sees them,
    and no target that does not."""
    chip(1)
    x, w, bias, dy = tensors(case, torch.float32, layout, integers)
    x, dy = x.abs() + 1, dy.abs() + 1
    weird = w.clone()
    weird[:, :, 0, :] = torch.inf
    weird[1, :, :, 0] = torch.nan
    dx = references(case, x, weird, bias, dy)[1]
    _, kept = inside_sums(case, x.double(), weird.double())
    y, ours = results(case, x, weird, None, dy)
    assert torch.equal(torch.isinf(y), torch.isinf(kept))
    assert torch.equal(torch.isnan(y), torch.isnan(kept))
    assert torch.equal(y[kept.isfinite()].double(), kept[kept.isfinite()])
    assert torch.equal(torch.isnan(ours), torch.isnan(dx))
    w = torch.where(w == 0, 1, w)
    x[0, 2, 1, 1] = x[0, 3, 2, -1] = dy[0, 1, 0, 2] = dy[0, 3, 1, -1] = torch.inf
    for got, expected in zip(results(case, x, w, bias, dy), references(case, x, w, bias, dy), strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_thread_order_does_not_show(chip, layout):
    operands = tensors(SOME[0], torch.float16, layout, normal)
    seen = set()
    for seed in range(3):
        controls().set_seed(seed)
        got = results(SOME[0], *operands)
        seen.add(tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in got))
    assert len(seen) == 1


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    ("size", "kernel", "channels", "batch"), [(56, 31, 4, 1), (7, 13, 8, 8)], ids=["56x56", "7x7"]
)
def test_bytes_near_the_floor(chip, size, kernel, channels, batch, layout):
    """Every access counts, as if there were no cache."""
    chip(1)
    case = layer("", channels, (size, size), kernel, batch=batch)
    x, w, _, dy = tensors(case, torch.bfloat16, layout, integers)
    controls().reset()
    y = OPS.conv2d(x, w, None, None, *case.geometry, "none", 0.0, False)
    floor = sum(t.numel() * t.element_size() for t in (x, w, dy))
    (launch,) = controls().launches()
    assert launch["name"].endswith(NAMES[0])
    moved = launch["global_bytes_read"] + launch["global_bytes_written"]
    assert moved <= 1.2 * floor, moved / floor
    assert_exact(y, reference(case, x.double(), w.double(), None), "y")
