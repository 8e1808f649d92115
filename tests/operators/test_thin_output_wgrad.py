"""wgrad of few output channels at stride 1: the kernels of few input channels with x and dy exchanged."""

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
from .test_thin_output import OPS, SAME, last

pytestmark = pytest.mark.emulated

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


SHAPES = [
    last("k1", 16, 1, (6, 8), **SAME),
    last("k2", 7, 2, (5, 8), **SAME),
    last("k3", 64, 3, (9, 16), batch=1, **SAME),
    last("k4", 10, 4, (4, 9), **SAME),
    last("k5", 12, 5, (7, 5), **SAME),
    last("window-near-image", 8, 2, (12, 12), (10, 10), batch=1),
    last("k8", 24, 8, (5, 6), **SAME),
    last("c-least", 5, 3, (5, 6), **SAME),
    last("c-unit-minus-1", 63, 2, (3, 5), **SAME),
    last("c-unit-plus-1", 65, 2, (3, 5), **SAME),
    last("c-two-slabs", 136, 1, (3, 8), batch=1, **SAME),
    last("5x5", 8, 3, (8, 9), (5, 5), padding=(2, 2, 2, 2)),
    last("7x7", 6, 3, (7, 10), (7, 7), padding=(3, 3, 3, 3)),
    # Units of taps in two blocks.
    last("9x9-k8", 6, 8, (6, 8), (9, 9), batch=1, padding=(4, 4, 4, 4)),
    last("9x9-k8-wide", 66, 8, (2, 5), (9, 9), batch=1, padding=(4, 4, 4, 4)),
    last("1x1", 32, 3, (5, 8), (1, 1)),
    last("1x1-k8", 24, 8, (4, 7), (1, 1)),
    last("row", 8, 3, (3, 9), (1, 3), padding=(0, 0, 1, 1)),
    last("one-column", 9, 3, (9, 1), (3, 1), padding=(1, 1, 0, 0)),
    last("least-pixels", 16, 2, (2, 4), (1, 1)),
    last("wide-image", 8, 2, (2, 270), batch=1, **SAME),
    last("tall-image", 8, 2, (270, 2), batch=1, **SAME),
    last("tile-minus-1", 5, 3, (15, 31), batch=1, **SAME),
    last("tile", 5, 3, (16, 32), batch=1, **SAME),
    last("tile-plus-1", 5, 3, (17, 33), batch=1, **SAME),
    last("valid", 8, 3, (6, 8)),
    last("4x4-patch-gan", 8, 1, (7, 8), (4, 4), **SAME),
    # More pixels of dy than of x.
    last("4x4-pad-2", 8, 1, (7, 8), (4, 4), padding=(2, 2, 2, 2)),
    last("2x2-pad-1", 8, 3, (17, 20), (2, 2), batch=1, **SAME),
    last("pad-kernel-minus-1", 8, 3, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    last("asymmetric-padding", 8, 3, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    last("asymmetric-reach", 8, 3, (6, 5), (3, 4), padding=(2, 0, 0, 3)),
    last("dilated", 8, 3, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    last("dilated-valid", 8, 2, (9, 12), dilation=(2, 3)),
    last("kernel-over-image", 8, 2, (3, 4), (7, 5), padding=(5, 5, 3, 3)),
]


def named(*ids: str) -> list[Conv]:
    return [case for case in SHAPES if case.id in ids]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make=integers) -> tuple[torch.Tensor, torch.Tensor]:
    """x and dy."""
    output = torchs(case, torch.empty(case.input, device="meta"), torch.empty(case.weight, device="meta"))
    x, dy = make(case.input, dtype, "cpu", seed=1), make(output.shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](dy)


def torchs(case: Conv, x, w) -> torch.Tensor:
    top, bottom, left, right = case.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, case.stride, 0, case.dilation)


def torchs_wgrad(case: Conv, x, dy) -> torch.Tensor:
    w = torch.zeros(case.weight, dtype=x.dtype).requires_grad_()
    return torch.autograd.grad(torchs(case, x, w), w, dy)[0]


def wgrad(case: Conv, x, dy, saved=None, activation: str = "none") -> tuple[torch.Tensor, torch.Tensor]:
    """dw and db, of one launch and the adding of its splits."""
    controls().reset()
    nhwc = x.stride(1) == 1
    act = (activation, 0.0, True, nhwc, False)
    result = OPS.conv2d_act_wgrad(dy, saved, x, *case.kernel, *case.geometry, *act)
    names = [name for name in launched() if name != "split_sum"]
    assert names == ["thin_wgrad" if x.dtype == torch.float32 else "thin_wgrad_mma"]
    return result


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    x, dy = tensors(case, dtype, layout)
    dw, db = wgrad(case, x, dy)
    assert_exact(dw, torchs_wgrad(case, x.double(), dy.double()), "dw")
    assert_exact(db, dy.double().sum((0, 2, 3)), "db")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    # A shape takes float32 in one of the layouts. The two half types share their kernels' code.
    chip(132)
    if SHAPES.index(case) % 2 == (layout == "nhwc"):
        check(case, torch.float32, layout)
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", named("k2", "c-two-slabs", "9x9-k8", "tile-plus-1", "2x2-pad-1"))
def test_a_block_walks_many_tiles(chip, case, dtype, layout):
    """On a chip of one SM, blocks have several tiles each, and few or no splits."""
    chip(1)
    check(case.with_batch(3), dtype, layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_layout(chip, dtype, layout):
    """Of both, and of one beside a dense one: the planner takes them apart."""
    chip(132)
    (case,) = named("k4")
    x, dy = tensors(case, dtype, layout)
    expected = torchs_wgrad(case, x.double(), dy.double()), dy.double().sum((0, 2, 3))
    for other in ("nhwc", "nchw"):
        for pair in ((x, dy), (x, LAYOUTS[other](dy)), (LAYOUTS[other](x), dy)):
            for got, wanted in zip(wgrad(case, *pair), expected, strict=True):
                assert_exact(got, wanted)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_that_start_anywhere(chip, dtype, layout):
    """Every place within 16 bytes at which an image and its rows can begin."""
    chip(132)
    case = last("", 8, 3, (3, 9), (3, 2), batch=2, padding=(1, 1, 1, 0))
    x, dy = tensors(case, dtype, layout)
    expected = torchs_wgrad(case, x.double(), dy.double())
    for offset in range(16 // dtype.itemsize):
        moved = []
        for tensor in (x, dy):
            flat = torch.full((tensor.numel() + 16,), 99, dtype=dtype)
            moved.append(flat[offset:].as_strided(tensor.shape, tensor.stride()).copy_(tensor))
        assert_exact(wgrad(case, *moved)[0], expected, f"offset {offset}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", named("k3", "k8", "7x7", "1x1"))
def test_random_as_accurate_as_torch(chip, case, dtype, layout):
    chip(4)
    x, dy = tensors(case, dtype, layout, normal)
    dw, db = wgrad(case, x, dy)
    assert_accurate(dw, torchs_wgrad(case, x.double(), dy.double()), torchs_wgrad(case, x, dy), "dw")
    assert_accurate(db, dy.double().sum((0, 2, 3)), dy.sum((0, 2, 3)), "db")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_thread_order_does_not_show(chip, dtype, layout):
    chip(1)
    case = last("", 20, 3, (9, 40), **SAME)
    x, dy = tensors(case, dtype, layout, normal)
    seen = set()
    for seed in range(10):
        controls().set_seed(seed)
        seen.add(tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in wgrad(case, x, dy)))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@parametrize("case", named("k3", "4x4-pad-2", "tile-plus-1", "asymmetric-padding"))
def test_fused_backward_is_the_unfused_one(chip, case, activation, dtype, layout):
    """Bit for bit, the bias gradient too."""
    chip(3)
    x, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    grad = through_activation(dy, saved, activation, 0.0, layout == "nhwc")
    assert not torch.equal(grad, dy)
    for fused, alone in zip(wgrad(case, x, dy, saved, activation), wgrad(case, x, grad), strict=True):
        assert torch.equal(fused, alone)


def direct(case: Conv, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """By the definition, over the taps that lie in the image: padding is no operand."""
    result = torch.zeros(case.weight, dtype=x.dtype)
    height, width = case.input[2:]
    for r in range(case.kernel[0]):
        for s in range(case.kernel[1]):
            rows = torch.arange(dy.shape[2]) - case.padding[0] + r * case.dilation[0]
            columns = torch.arange(dy.shape[3]) - case.padding[2] + s * case.dilation[1]
            p = ((rows >= 0) & (rows < height)).nonzero()[:, 0]
            q = ((columns >= 0) & (columns < width)).nonzero()[:, 0]
            seen = x[:, None, :, rows[p]][..., columns[q]] * dy[:, :, None, p][..., q]
            result[:, :, r, s] = seen.sum((0, 3, 4))
    return result


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", named("k4", "valid", "7x7", "dilated", "c-unit-plus-1", "asymmetric-reach"))
def test_infinities_stay_where_torch_leaves_them(chip, case, dtype, layout):
    """A pixel of x that a tap does not see is no operand of it, though the sum runs over it; and what pads
    tiles, filters and taps meets no infinity."""
    for sm_count in (1, 8):
        chip(sm_count)
        x, dy = tensors(case, dtype, layout)
        x[0, 0, 0, 0] = x[-1, 1, -1, -1] = torch.inf
        x[0, 2, 0, 1] = torch.nan
        x[0, 3, 1, 2] = -torch.inf
        dy[0, 0, 1, 1] = torch.inf
        assert direct(case, x.double(), dy.double()).isfinite().any()
        assert_exact(wgrad(case, x, dy)[0], direct(case, x.double(), dy.double()))
        saved = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
        through = torch.where(saved > 0, dy.double(), 0.0)
        assert_exact(wgrad(case, x, dy, saved, "relu")[0], direct(case, x.double(), through))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_infinite_gradient_costs_little(chip, dtype):
    """As loss scaling meets it: where x is finite, only the pixels that a tap does not see are read anew."""
    chip(132)
    (case,) = named("k3")
    x, dy = tensors(case, dtype, "nhwc")
    dy[0, 0] = torch.inf
    wgrad(case, x, dy)
    read = controls().launches()[0]["global_bytes_read"]
    assert read <= 5 * dtype.itemsize * (x.numel() + dy.numel())


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize(
    "case", [last(f"{r}x{r}", 64, 3, (64, 64), (r, r), batch=1, padding=(r // 2,) * 4) for r in (1, 3)]
)
def test_bytes_near_the_floor(chip, case, dtype, layout):
    """Every access counts, as if there were no cache: dy's halo included, but for the sums."""
    chip(1)
    x, dy = tensors(case, dtype, layout)
    wgrad(case, x, dy)
    launch = controls().launches()[0]
    floor = dtype.itemsize * (x.numel() + dy.numel())
    assert launch["global_bytes_read"] <= 1.1 * floor, launch["global_bytes_read"] / floor
    wide = 16 * launch["global_loads"][16]
    if layout == "nhwc" or dtype != torch.float32:
        assert wide >= dtype.itemsize * x.numel()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("filters", "kernel"), [(3, 9), (3, 7), (1, 3), (2, 3), (3, 3), (4, 3), (8, 3), (1, 1), (8, 1)]
)
def test_plans_of_last_layers(emulated_on_cpu, filters, kernel, dtype, channels_last):
    options = {"dtype": dtype, "channels_last": channels_last, "chip": "H200"}
    shape, weight = (16, 64, 224, 224), (filters, 64, kernel, kernel)
    plan = fastcnn.plan("conv2d_wgrad", shape, weight, padding=kernel // 2, **options)
    assert plan.kernel == "thin_wgrad"
    assert "dy in 16-byte loads" in plan.reason
    # A block or more for every SM, and sums that are small beside x.
    assert plan.grid >= 0.95 * 132
    assert 2 * plan.workspace_bytes < dtype.itemsize * 16 * 64 * 224 * 224 / 6


def test_rows_of_dy_past_32_bits_are_another_kernel_s(emulated_on_cpu):
    """8 channels of 2^28 pixels, nearly all of which see padding, are more elements than a row counts."""
    options = {"channels_last": True, "chip": "H200"}
    for columns, kernel in ((1 << 19, "thin_wgrad"), (1 << 28, "generic_wgrad")):
        plan = fastcnn.plan("conv2d_wgrad", (1, 9, 1, 8), (8, 9, 1, 1), padding=(0, 0, 0, columns), **options)
        assert plan.kernel == kernel


@pytest.mark.parametrize(
    ("case", "dtype", "kernel"),
    [
        (last("k9", 16, 9, (6, 5), **SAME), torch.float32, "generic"),
        (last("stride-2", 16, 3, (6, 5), stride=(2, 2), **SAME), torch.float16, "generic"),
        (last("stride-1x2", 16, 3, (6, 5), stride=(1, 2), **SAME), torch.float32, "generic"),
        (last("few-pixels", 16, 2, (7, 1), (1, 1)), torch.float32, "generic"),
        (last("few-output-pixels", 16, 2, (4, 4), (4, 4)), torch.bfloat16, "generic"),
        (last("few-pixels-half", 16, 2, (7, 1), (1, 1)), torch.bfloat16, "pointwise"),
        (last("pad-over-reach", 8, 3, (4, 5), (2, 2), padding=(2, 1, 1, 1)), torch.float32, "generic"),
        (last("pad-over-reach-below", 8, 3, (4, 5), (2, 2), padding=(1, 2, 1, 1)), torch.float16, "generic"),
        (last("pad-over-reach-left", 8, 3, (4, 5), (2, 2), padding=(1, 1, 2, 1)), torch.float16, "generic"),
        (last("pad-over-reach-right", 8, 3, (4, 5), (2, 2), padding=(1, 1, 1, 2)), torch.float32, "generic"),
        (
            last("box-too-large", 8, 3, (140, 140), (2, 2), batch=1, dilation=(120, 120)),
            torch.float32,
            "generic",
        ),
        (last("window-near-image", 8, 8, (12, 12), (10, 10), batch=1), torch.float32, "generic"),
        (last("double", 16, 3, (6, 5), **SAME), torch.float64, "generic"),
    ],
    ids=lambda value: value.id if isinstance(value, Conv) else str(value),
)
def test_others_are_other_kernels(chip, case, dtype, kernel):
    chip(132)
    x, dy = tensors(case, dtype, "nhwc")
    controls().reset()
    act = ("none", 0.0, True, True, False)
    dw, db = OPS.conv2d_act_wgrad(dy, None, x, *case.kernel, *case.geometry, *act)
    assert launched()[0].startswith(f"{kernel}_wgrad")
    assert_exact(dw, torchs_wgrad(case, x.double(), dy.double()), "dw")
    assert_exact(db, dy.double().sum((0, 2, 3)), "db")


@parametrize(
    "case",
    [
        last(f"{side}", 8, 3, (4, 5), (2, 2), padding=pad)
        for side, pad in (("above", (3, 0, 2, 1)), ("below", (0, 3, 1, 2)))
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_padding_past_the_window_s_reach(chip, case, dtype):
    """Without a bias gradient, the pixels of dy that see padding alone are in no sum."""
    chip(132)
    x, dy = tensors(case, dtype, "nhwc")
    controls().reset()
    dw = OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, True, False)
    assert launched()[0].startswith("thin_wgrad")
    assert_exact(dw, torchs_wgrad(case, x.double(), dy.double()))
