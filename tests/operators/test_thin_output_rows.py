"""Few output channels in half precision, NHWC, on tensor cores with rows of taps in the reduction: windows of
many taps, strides, any number of reduced channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .fused_backward import launched, through_activation
from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize
from .test_thin_output import (
    OPS,
    SAME,
    last,
    tensors,
    torchs,
    torchs_dgrad,
    turned,
)

pytestmark = pytest.mark.emulated

HALVES = (torch.float16, torch.bfloat16)
PAD_4 = {"padding": (4, 4, 4, 4)}
PAD_2 = {"padding": (2, 2, 2, 2)}

#: At stride 1 each is, turned around, a dgrad of few input channels.
SHAPES = [
    last("9x9", 24, 3, (10, 13), (9, 9), batch=1, **PAD_4),
    last("7x7", 16, 3, (9, 8), (7, 7), padding=(3, 3, 3, 3)),
    last("5x5-k8", 24, 8, (7, 5), (5, 5), **PAD_2),
    last("9x9-k1", 8, 1, (5, 12), (9, 9), **PAD_4),
    last("9x9-k8", 10, 8, (5, 6), (9, 9), batch=1, **PAD_4),
    last("c5", 5, 3, (6, 7), **SAME),
    last("c12", 12, 5, (7, 5), **SAME),
    last("c-step-minus-1", 15, 3, (5, 4), **SAME),
    last("c-step-plus-1", 17, 3, (5, 4), **SAME),
    last("c-two-stages", 72, 4, (3, 5), (5, 5), batch=1, **PAD_2),
    last("c-stage-plus-1", 65, 2, (5, 4), batch=1, **SAME),
    last("c264", 264, 8, (3, 4), batch=1, **SAME),
    last("octets-2x3", 12, 8, (3, 9), (1, 6), padding=(0, 0, 2, 3)),
    last("octets-2x4", 12, 8, (3, 9), (2, 8), padding=(0, 1, 4, 3)),
    last("octets-4x3", 12, 8, (3, 9), (1, 11), padding=(0, 0, 5, 5)),
    last("octets-4x4", 12, 8, (2, 16), (1, 13), padding=(0, 0, 6, 6)),
    last("octets-4x5", 12, 8, (2, 24), (1, 20), padding=(0, 0, 9, 10)),
    last("rows-of-11", 9, 3, (13, 5), (11, 1), padding=(5, 5, 0, 0)),
    last("one-column", 9, 3, (9, 1), (3, 1), padding=(1, 1, 0, 0)),
    last("wide-image", 9, 2, (2, 270), batch=1, **SAME),
    last("tall-image", 9, 2, (270, 2), batch=1, **SAME),
    last("one-output", 9, 3, (5, 4), (5, 4)),
    last("1x1-padded", 9, 3, (3, 4), (1, 1), padding=(1, 0, 0, 1)),
    last("dilated", 9, 3, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    last("pad-kernel-minus-1", 9, 3, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    last("asymmetric-padding", 9, 3, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    last("kernel-over-image", 8, 3, (3, 4), (7, 5), padding=(3, 3, 2, 2)),
    last("stride-2", 16, 3, (11, 12), stride=(2, 2), **SAME),
    last("stride-1x2", 24, 5, (6, 9), stride=(1, 2), **SAME),
    last("stride-3", 8, 3, (11, 13), stride=(3, 3), **SAME),
    last("stride-2-dilated", 9, 3, (13, 11), (3, 2), stride=(2, 3), dilation=(2, 3)),
]


def named(*ids: str) -> list[Conv]:
    return [case for case in SHAPES if case.id in ids]


def fprop(case: Conv, x, w, bias) -> torch.Tensor:
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert launched() == ["thin_fprop_output_rows"]
    return y


def dgrad(case: Conv, w, dy) -> torch.Tensor:
    controls().reset()
    dx = OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, True, False)
    assert launched() == ["thin_dgrad_rows"]
    return dx


def check(case: Conv, dtype: torch.dtype, make=integers) -> None:
    x, w, bias, _ = tensors(case, dtype, "nhwc", make)
    y, exact = fprop(case, x, w, bias), torchs(case, x.double(), w.double(), bias.double())
    if make is integers:
        assert_exact(y, exact, "fprop")
    else:
        assert_accurate(y, exact, torchs(case, x, w, bias), "fprop")
    if case.stride == (1, 1):
        check_dgrad(case, dtype, make)


def check_dgrad(case: Conv, dtype: torch.dtype, make=integers) -> None:
    back = turned(case)
    _, w, _, dy = tensors(back, dtype, "nhwc", make)
    dx, exact = dgrad(back, w, dy), torchs_dgrad(back, w.double(), dy.double())
    if make is integers:
        assert_exact(dx, exact, "dgrad")
    else:
        assert_accurate(dx, exact, torchs_dgrad(back, w, dy), "dgrad")


@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case):
    """One SM takes tiles as large as they get, many the smallest; the two types share their kernels' code."""
    first = SHAPES.index(case) % 2
    chip(1)
    check(case, HALVES[first])
    chip(132)
    check(case, HALVES[1 - first])


@pytest.mark.parametrize("channels", [2, 3])
def test_few_channels_on_both_sides(chip, channels):
    """fprop of up to 4 input channels is another kernel's."""
    chip(4)
    check_dgrad(last("", channels, 3, (5, 6), **SAME), torch.float16)


@pytest.mark.parametrize(
    "case",
    [
        last("3-octets", 9, 3, (25, 50), **SAME),
        last("4-octets", 8, 3, (20, 43), (9, 9), batch=1, **PAD_4),
        last("5-octets", 8, 8, (31, 37), (5, 5), batch=1, **PAD_2),
        last("two-groups", 9, 8, (21, 33), (3, 6), batch=1, padding=(1, 1, 2, 3)),
        last("stride-2", 9, 3, (47, 50), stride=(2, 2), **SAME),
    ],
    ids=lambda case: case.id,
)
def test_full_tiles(chip, case):
    """Tiles that take all that a warp multiplies, and what is left of the image beside them."""
    chip(1)
    check(case, torch.float16)


@parametrize("case", named("9x9", "5x5-k8", "c264", "stride-2"))
def test_random_as_accurate_as_torch(chip, case):
    chip(4)
    for dtype in HALVES:
        check(case, dtype, normal)


@pytest.mark.parametrize("weight_layout", ["nchw", "channel-slice", "batch-last"])
@pytest.mark.parametrize("layout", ["nhwc", "channel-slice"])
def test_any_weights_and_alignment(chip, layout, weight_layout):
    """Channels in 16 bytes or not: of pixels, and of weights."""
    chip(4)
    case = last("", 16, 3, (6, 8), (5, 6), padding=(2, 2, 2, 3))
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")
    y = fprop(case, LAYOUTS[layout](x), LAYOUTS[weight_layout](w), bias)
    assert_exact(y, torchs(case, x.double(), w.double(), bias.double()))
    back = turned(case)
    _, w, _, dy = tensors(back, torch.float16, "nhwc")
    dx = dgrad(back, LAYOUTS[weight_layout](w), LAYOUTS[layout](dy))
    assert_exact(dx, torchs_dgrad(back, w.double(), dy.double()))


def test_thread_order_does_not_show(chip):
    chip(1)
    case = last("", 40, 3, (9, 12), (5, 6), **PAD_2)
    x, w, bias, _ = tensors(case, torch.bfloat16, "nhwc", normal)
    seen = set()
    for seed in range(10):
        controls().set_seed(seed)
        seen.add(fprop(case, x, w, bias).contiguous().view(torch.uint8).numpy().tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("channels", [24, 21])
def test_fused_is_the_unfused_one(chip, channels):
    """The epilogue of fprop; the activation's backward in dgrad's loads, bit for bit."""
    chip(4)
    dtype = torch.bfloat16
    case = last("", channels, 8, (7, 6), (5, 5), **PAD_2)
    x, w, bias, dy = tensors(case, dtype, "nhwc")
    residual = LAYOUTS["nhwc"](integers(dy.shape, dtype, "cpu", seed=5))
    expected = torchs(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))

    back = turned(case)
    _, w, _, dy = tensors(back, dtype, "nhwc", normal)
    saved = LAYOUTS["nhwc"](normal(dy.shape, dtype, "cpu", seed=5))
    for activation in ("relu", "gelu"):
        grad = through_activation(dy, saved, activation, 0.0, True)
        assert not torch.equal(grad, dy)
        controls().reset()
        fused = OPS.conv2d_act_dgrad(
            dy, saved, w, *back.input[2:], *back.geometry, activation, 0.0, True, False
        )
        assert launched() == ["thin_dgrad_rows"]
        assert torch.equal(fused, dgrad(back, w, grad))


@pytest.mark.parametrize("channels", [36, 40])
def test_infinities_stay_where_torch_leaves_them(chip, channels):
    """In channels, filters and rows; what fills steps, columns and positions meets none of them."""
    chip(132)
    case = last("", channels, 3, (9, 10), (5, 6))
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")
    x[0, channels - 1, 2, 3] = torch.inf
    x[1, 4, 8, 9] = torch.inf
    w[1, channels - 2, 1, 1] = torch.inf
    x[1, channels - 2], x[0, channels - 2] = 1, 2
    assert_exact(fprop(case, x, w, bias), torchs(case, x.double(), w.double(), bias.double()))
    # Of 12 rows and columns, stride 2 without padding reads 11.
    case = last("", 8, 3, (12, 12), stride=(2, 2))
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")
    x[:, :, 11], x[:, :, :, 11] = torch.inf, torch.inf
    y = fprop(case, x, w, bias)
    assert y.isfinite().all()
    assert_exact(y, torchs(case, x.double(), w.double(), bias.double()))


def test_bytes_near_the_floor(chip):
    """Halos and weights included, as if there were no cache."""
    chip(1)
    case = last("", 256, 8, (20, 22), (3, 3), batch=1, **SAME)
    x, w, bias, _ = tensors(case, torch.bfloat16, "nhwc")
    y = fprop(case, x, w, bias)
    (launch,) = controls().launches()
    assert launch["global_bytes_written"] == 2 * y.numel()
    moved = launch["global_bytes_read"] + launch["global_bytes_written"] - launch["grid"][0] * 2 * w.numel()
    floor = 2 * (x.numel() + y.numel())
    assert moved <= 1.15 * floor, moved / floor


def test_work_near_the_floor(chip):
    """A 9x9 of 3 filters: products with halos and padding; the box comes once, not once a tap."""
    chip(1)
    case = last("", 64, 3, (26, 60), (9, 9), batch=1, **PAD_4)
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")
    y = fprop(case, x, w, bias)
    (launch,) = controls().launches()
    assert launch["mmas"] <= 1.6 * y.numel() * w[0].numel() / 2048
    assert launch["global_bytes_read"] - launch["grid"][0] * 2 * w.numel() <= 2.4 * 2 * x.numel()
    assert launch["global_loads"][1] == launch["global_loads"][4] == launch["global_loads"][8] == 0


def test_channels_past_the_last_are_not_read(chip):
    """12 of 16 channels that lie in 16 bytes, of pixels and of weights; the rest is no number."""
    chip(132)
    case = last("", 12, 3, (5, 6), **SAME)
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")

    def of_16(values):
        n, c, h, w = values.shape
        larger = torch.full((n, h, w, 16), torch.nan, dtype=values.dtype)
        return larger[..., :c].permute(0, 3, 1, 2).copy_(values)

    assert_exact(fprop(case, of_16(x), of_16(w), bias), torchs(case, x.double(), w.double(), bias.double()))


@pytest.mark.parametrize("width", [511, 513, 3840])
def test_plans_of_wide_images(emulated_on_cpu, width):
    options = {"dtype": torch.float16, "channels_last": True, "padding": 4, "chip": "A100"}
    plan = fastcnn.plan("conv2d_fprop", (1, 64, 16, width), (3, 64, 9, 9), **options)
    assert "rows of taps are reduced" in plan.reason


def test_one_channel_is_no_step_of_sixteen(emulated_on_cpu):
    options = {"dtype": torch.float16, "channels_last": True, "padding": 4, "chip": "H200"}
    plan = fastcnn.plan("conv2d_dgrad", (4, 3, 64, 64), (1, 3, 9, 9), **options)
    assert (plan.kernel, "on FMA units" in plan.reason) == ("thin_dgrad", True)


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride"), [(64, 3, 9, 1), (64, 3, 7, 1), (32, 8, 5, 1), (128, 4, 3, 2)]
)
def test_plans_of_last_layers(emulated_on_cpu, channels, filters, kernel, stride):
    options = {"dtype": torch.bfloat16, "channels_last": True, "padding": kernel // 2, "chip": "H200"}
    x, w = (16, channels, 224, 224), (filters, channels, kernel, kernel)
    plan = fastcnn.plan("conv2d_fprop", x, w, stride=stride, **options)
    assert (plan.kernel, plan.shared_bytes) == ("thin_fprop", 80 * 1024)
    assert "rows of taps are reduced on tensor cores" in plan.reason
    assert "x in 16-byte loads" in plan.reason
    if stride > 1:
        return
    plan = fastcnn.plan(
        "conv2d_dgrad", (16, filters, 224, 224), (channels, filters, kernel, kernel), **options
    )
    assert plan.kernel == "thin_dgrad"
    assert "rows of taps are reduced on tensor cores" in plan.reason
    assert "dy in 16-byte loads" in plan.reason


@pytest.mark.parametrize(
    "case",
    [
        last("k9", 16, 9, (6, 5), (5, 5), **PAD_2),
        last("stride-over-window-rows", 16, 3, (9, 9), (2, 2), stride=(3, 1)),
        last("stride-over-window-columns", 16, 3, (9, 9), (2, 2), stride=(1, 3)),
        last("columns-over-160", 16, 8, (2, 22), (1, 21)),
        last("stage-over-40-KB", 8, 8, (13, 13), (13, 13)),
        last("dilated-over-40-KB", 9, 3, (65, 65), dilation=(32, 32)),
    ],
    ids=lambda case: case.id,
)
def test_others_are_the_generic_kernel_s(chip, case):
    chip(132)
    x, w, bias, _ = tensors(case, torch.float16, "nhwc")
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert launched() == ["generic_fprop"]
    assert_exact(y, torchs(case, x.double(), w.double(), bias.double()))
