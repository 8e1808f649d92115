"""Few output channels on FMA units: float32 in any layout, half precision in NCHW; fprop, and dgrad of
layers of few input channels."""

from __future__ import annotations

from dataclasses import replace

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
SAME = {"padding": (1, 1, 1, 1)}


def last(id: str, channels: int, filters: int, image: tuple[int, int], kernel=(3, 3), **rest) -> Conv:
    batch = rest.pop("batch", 2)
    return Conv(id, (batch, channels, *image), filters, kernel, **rest)


#: At stride 1 each is, turned around, a dgrad of few input channels.
SHAPES = [
    last("k1", 8, 1, (6, 7), **SAME),
    last("k2", 7, 2, (5, 8), **SAME),
    last("k3", 64, 3, (9, 11), batch=1, **SAME),
    last("k4", 10, 4, (4, 9), **SAME),
    last("k5", 12, 5, (7, 5), **SAME),
    last("k8", 24, 8, (5, 6), **SAME),
    last("c-stage-plus-1", 33, 3, (5, 4), **SAME),
    last("c-stage-plus-4", 36, 3, (5, 4), **SAME),
    last("c-stage-minus-1", 31, 3, (3, 5), **SAME),
    last("5x5", 8, 3, (8, 9), (5, 5), padding=(2, 2, 2, 2)),
    last("7x7", 6, 8, (7, 10), (7, 7), padding=(3, 3, 3, 3)),
    last("rows-of-3", 8, 3, (6, 5), (3, 1)),
    last("row", 8, 3, (3, 9), (1, 3), padding=(0, 0, 1, 1)),
    last("one-column", 9, 3, (9, 1), (3, 1), padding=(1, 1, 0, 0)),
    last("wide-image", 8, 2, (2, 270), batch=1, **SAME),
    last("tall-image", 8, 2, (270, 2), batch=1, **SAME),
    last("tile-minus-1", 5, 3, (15, 31), batch=1, **SAME),
    last("tile-plus-1", 5, 3, (17, 33), batch=1, **SAME),
    last("dilated", 8, 3, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    last("dilated-columns", 8, 3, (6, 9), padding=(1, 1, 3, 3), dilation=(1, 3)),
    last("pad-kernel-minus-1", 8, 3, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    last("asymmetric-padding", 8, 3, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    last("kernel-over-image", 8, 2, (3, 4), (7, 5), padding=(3, 3, 2, 2)),
    last("stride-2", 8, 3, (11, 12), stride=(2, 2), **SAME),
    last("stride-1x2", 9, 5, (6, 9), stride=(1, 2), **SAME),
    last("stride-3", 8, 3, (11, 13), stride=(3, 3), **SAME),
]
#: float32's alone: half precision's are the pointwise kernel's.
POINTWISE = [
    last("1x1", 64, 1, (7, 9), (1, 1)),
    last("1x1-least", 16, 2, (2, 4), (1, 1)),
    last("1x1-odd", 13, 5, (5, 7), (1, 1)),
]


def named(*ids: str) -> list[Conv]:
    return [case for case in SHAPES + POINTWISE if case.id in ids]


def turned(case: Conv) -> Conv:
    n, c, h, w = case.input
    return replace(case, input=(n, case.out_channels, h, w), out_channels=c)


def torchs(case: Conv, x, w, bias=None) -> torch.Tensor:
    top, bottom, left, right = case.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, bias, case.stride, 0, case.dilation)


def torchs_dgrad(case: Conv, w, dy) -> torch.Tensor:
    x = torch.zeros(case.input, dtype=w.dtype).requires_grad_()
    return torch.autograd.grad(torchs(case, x, w), x, dy)[0]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make=integers) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    output = torchs(case, torch.empty(case.input, device="meta"), torch.empty(case.weight, device="meta"))
    dy = make(output.shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](w), bias, LAYOUTS[layout](dy)


def fprop(case: Conv, x, w, bias) -> torch.Tensor:
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert [launch["name"] for launch in controls().launches()] == ["conv2d::thin_fprop_output"]
    return y


def dgrad(case: Conv, w, dy, nhwc: bool) -> torch.Tensor:
    controls().reset()
    dx = OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, nhwc, False)
    assert [launch["name"] for launch in controls().launches()] == ["conv2d::thin_dgrad"]
    return dx


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    x, w, bias, _ = tensors(case, dtype, layout)
    assert_exact(fprop(case, x, w, bias), torchs(case, x.double(), w.double(), bias.double()), "fprop")
    if case.stride == (1, 1):
        back = turned(case)
        _, w, _, dy = tensors(back, dtype, layout)
        dx = dgrad(back, w, dy, layout == "nhwc")
        assert_exact(dx, torchs_dgrad(back, w.double(), dy.double()), "dgrad")


@parametrize("case", SHAPES + POINTWISE)
def test_integers_are_exact(chip, case):
    """The two half types share their kernels' code; chips of one SM have several tiles to a block."""
    chip(132)
    check(case, torch.float32, "nhwc")
    chip(1)
    check(case, torch.float32, "nchw")
    if case in SHAPES:
        chip(132 if SHAPES.index(case) % 3 else 1)
        check(case, (torch.float16, torch.bfloat16)[SHAPES.index(case) % 2], "nchw")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_block_walks_many_tiles(chip, layout):
    chip(1)
    check(last("", 20, 3, (37, 40), **SAME), torch.float32, layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
def test_any_layout(chip, layout):
    chip(132)
    check(last("", 12, 3, (6, 8), **SAME), torch.float32, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_planes_that_start_anywhere(chip, dtype):
    """Every place within 16 bytes at which an image, its planes and its rows can begin."""
    chip(132)
    case = last("", 5, 3, (3, 9), (3, 2), batch=2, padding=(1, 1, 1, 0))
    x, w, bias, _ = tensors(case, dtype, "nchw")
    expected = torchs(case, x.double(), w.double(), bias.double())
    for offset in range(16 // dtype.itemsize):
        flat = torch.full((x.numel() + 16,), 99, dtype=dtype)
        moved = flat[offset:].as_strided(x.shape, x.stride()).copy_(x)
        assert_exact(fprop(case, moved, w, bias), expected, f"offset {offset}")


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, "nhwc"), (torch.float32, "nchw"), (torch.float16, "nchw"), (torch.bfloat16, "nchw")],
    ids=str,
)
@parametrize("case", named("k3", "k8", "5x5"))
def test_random_as_accurate_as_torch(chip, case, dtype, layout):
    chip(4)
    x, w, bias, _ = tensors(case, dtype, layout, normal)
    exact = torchs(case, x.double(), w.double(), bias.double())
    assert_accurate(fprop(case, x, w, bias), exact, torchs(case, x, w, bias), "fprop")
    back = turned(case)
    _, w, _, dy = tensors(back, dtype, layout, normal)
    exact = torchs_dgrad(back, w.double(), dy.double())
    assert_accurate(dgrad(back, w, dy, layout == "nhwc"), exact, torchs_dgrad(back, w, dy), "dgrad")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_thread_order_does_not_show(chip, layout):
    chip(1)
    case = last("", 40, 3, (9, 12), **SAME)
    x, w, bias, _ = tensors(case, torch.float32, layout, normal)
    seen = set()
    for seed in range(5):
        controls().set_seed(seed)
        seen.add(fprop(case, x, w, bias).contiguous().numpy().tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "nhwc"), (torch.float32, "nchw"), (torch.bfloat16, "nchw")], ids=str
)
def test_fused_is_the_unfused_one(chip, dtype, layout):
    """The epilogue of fprop; the activation's backward in dgrad's loads, bit for bit."""
    chip(4)
    (case,) = named("k3")
    x, w, bias, dy = tensors(case, dtype, layout)
    residual = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    expected = torchs(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))

    back, nhwc = turned(case), layout == "nhwc"
    _, w, _, dy = tensors(back, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    ones = torch.ones(dy.shape[1], 1, 1, 1, dtype=dtype)
    pointwise = (1, 1, 0, 0, 0, 0, 1, 1, dy.shape[1])
    for activation in ("relu", "gelu"):
        act = (activation, 0.0, nhwc, False)
        grad = OPS.conv2d_act_dgrad(dy, saved, ones, *dy.shape[2:], *pointwise, *act)
        assert not torch.equal(grad, dy)
        fused = OPS.conv2d_act_dgrad(dy, saved, w, *back.input[2:], *back.geometry, *act)
        assert torch.equal(fused, dgrad(back, w, grad, nhwc))


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "nhwc"), (torch.float32, "nchw"), (torch.float16, "nchw")], ids=str
)
def test_infinities_stay_where_torch_leaves_them(chip, dtype, layout):
    """In channels, filters and rows; what fills tiles, vectors and filters meets none of them."""
    chip(132)
    case = last("", 36, 3, (9, 10))
    x, w, bias, _ = tensors(case, dtype, layout)
    x[0, 35, 2, 3] = torch.inf
    x[1, 4, 8, 9] = torch.inf
    w[1, 34, 1, 1] = torch.inf
    x[1, 34], x[0, 34] = 1, 2
    assert_exact(fprop(case, x, w, bias), torchs(case, x.double(), w.double(), bias.double()))
    # Of 11 rows, stride 2 without padding reads 11, but tiles of 4 outputs reach further; of 12, 11.
    case = last("", 8, 3, (12, 12), stride=(2, 2))
    x, w, bias, _ = tensors(case, dtype, layout)
    x[:, :, 11], x[:, :, :, 11] = torch.inf, torch.inf
    y = fprop(case, x, w, bias)
    assert y.isfinite().all()
    assert_exact(y, torchs(case, x.double(), w.double(), bias.double()))


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "nhwc"), (torch.float32, "nchw"), (torch.bfloat16, "nchw")], ids=str
)
@parametrize("case", [last("3x3", 64, 3, (64, 64), batch=1, **SAME), last("1x1", 64, 1, (32, 32), (1, 1))])
def test_bytes_near_the_floor(chip, case, dtype, layout):
    """Halos and the weights that a block brings again for each tile included, as if there were no cache."""
    if case.id == "1x1" and dtype != torch.float32:
        pytest.skip("the pointwise kernel's")
    chip(1)
    x, w, bias, _ = tensors(case, dtype, layout)
    y = fprop(case, x, w, bias)
    (launch,) = controls().launches()
    floor = dtype.itemsize * (x.numel() + y.numel())
    assert launch["global_bytes_written"] == dtype.itemsize * y.numel()
    moved = launch["global_bytes_read"] + launch["global_bytes_written"]
    assert moved <= 1.25 * floor, moved / floor
    assert 16 * launch["global_loads"][16] >= 0.9 * dtype.itemsize * x.numel()


@pytest.mark.parametrize("channels_last", [True, False])
def test_plans_of_last_layers(channels_last):
    options = {"dtype": torch.float32, "channels_last": channels_last, "chip": "H200"}
    plan = fastcnn.plan("conv2d_fprop", (16, 64, 224, 224), (3, 64, 3, 3), padding=1, **options)
    assert plan.kernel == "thin_fprop"
    assert "16-byte loads" in plan.reason
    plan = fastcnn.plan("conv2d_dgrad", (16, 3, 224, 224), (64, 3, 3, 3), padding=1, **options)
    assert plan.kernel == "thin_dgrad"
    assert "16-byte loads" in plan.reason


@pytest.mark.parametrize(
    ("case", "dtype", "layout"),
    [
        (last("k9", 16, 9, (6, 5), **SAME), torch.float32, "nhwc"),
        (last("stride-over-window", 16, 3, (9, 9), (2, 2), stride=(3, 1)), torch.float32, "nchw"),
        (last("many-taps", 8, 8, (20, 20), (17, 16)), torch.float32, "nchw"),
        (last("half-nhwc", 12, 8, (2, 22), (1, 21)), torch.float16, "nhwc"),
        (last("1x1-image", 16, 2, (1, 1), (1, 1)), torch.float32, "nhwc"),
        (last("double", 16, 3, (6, 5), **SAME), torch.float64, "nhwc"),
    ],
    ids=lambda value: value.id if isinstance(value, Conv) else str(value),
)
def test_others_are_the_generic_kernel_s(chip, case, dtype, layout):
    chip(132)
    x, w, bias, _ = tensors(case, dtype, layout)
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert [launch["name"] for launch in controls().launches()] == ["conv2d::generic_fprop"]
    assert_exact(y, torchs(case, x.double(), w.double(), bias.double()))
