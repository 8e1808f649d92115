"""Convolution, activation and 2x2 max pool in one kernel, at the edges of tiles, beside the two operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn._checks import ACTIVATIONS
from fastcnn._shapes import HALVING_POOL, conv_channels_last, memory_format
from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .calls import ACTIVATE
from .fused_backward import launched
from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn


SAME = {"padding": (1, 1, 1, 1)}

SHAPES = [
    Conv("small-cnn-1", (2, 1, 28, 28), 32, (3, 3)),
    Conv("small-cnn-2", (2, 32, 13, 13), 64, (3, 3)),
    Conv("small-cnn-3", (3, 64, 5, 5), 64, (3, 3)),
    Conv("one-window", (1, 1, 2, 2), 1, (1, 1)),
    Conv("one-window-odd", (3, 3, 5, 5), 5, (3, 3)),
    Conv("3-channels-same", (2, 3, 9, 11), 16, (3, 3), **SAME),
    Conv("one-row-of-windows", (2, 5, 4, 20), 7, (3, 3)),
    Conv("one-column-of-windows", (2, 5, 20, 5), 9, (3, 3)),
    Conv("8-windows-wide", (1, 8, 10, 18), 8, (3, 3)),
    Conv("9-windows-wide", (1, 9, 10, 20), 33, (3, 3)),
    Conv("33-windows-wide", (1, 2, 4, 68), 31, (3, 3)),
    Conv("wider-than-a-tile", (1, 2, 6, 300), 8, (3, 3), **SAME),
    Conv("taller-than-a-tile", (1, 4, 150, 4), 17, (3, 3), **SAME),
    Conv("many-images", (70, 2, 4, 4), 24, (3, 3)),
    Conv("many-filters", (1, 4, 6, 6), 140, (3, 3)),
    Conv("many-channels", (1, 130, 5, 4), 8, (3, 3), **SAME),
    Conv("channels-in-chunks", (1, 136, 5, 4), 8, (3, 3), **SAME),
    Conv("1x1", (2, 12, 5, 7), 24, (1, 1)),
    Conv("1x1-stride-2", (2, 8, 9, 10), 8, (1, 1), stride=(2, 2)),
    Conv("2x2", (2, 4, 6, 8), 8, (2, 2)),
    Conv("5x5", (1, 3, 12, 11), 6, (5, 5), padding=(2, 2, 2, 2)),
    Conv("7x7-stride-2", (1, 3, 21, 19), 16, (7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    Conv("3x3-stride-2", (2, 4, 11, 9), 8, (3, 3), stride=(2, 2), **SAME),
    Conv("3x3-dilated", (1, 4, 11, 13), 8, (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3)),
    Conv("uneven", (2, 7, 13, 17), 11, (5, 3), stride=(3, 2), padding=(2, 2, 1, 1), dilation=(1, 2)),
    Conv("stride-over-kernel", (2, 4, 15, 18), 4, (2, 2), stride=(3, 4)),
    Conv("pad-kernel-minus-1", (1, 4, 4, 5), 4, (3, 4), padding=(2, 2, 3, 3)),
    Conv("pad-over-kernel", (1, 3, 3, 3), 4, (2, 2), padding=(4, 4, 3, 3)),
    Conv("asymmetric-padding", (2, 4, 6, 5), 4, (2, 4), padding=(0, 1, 1, 2)),
    Conv("kernel-over-image", (1, 4, 3, 4), 8, (7, 5), padding=(3, 3, 2, 2)),
    Conv("row-kernel", (1, 4, 4, 12), 4, (1, 7), padding=(0, 0, 3, 3)),
]
#: What no kernel of the family covers.
SEPARATE = [
    Conv("groups", (2, 8, 6, 5), 12, (3, 3), groups=4, **SAME),
    Conv("depthwise", (2, 8, 7, 6), 8, (3, 3), groups=8, **SAME),
    Conv("kernel-over-shared-memory", (1, 1, 40, 41), 2, (38, 39)),
    Conv("dilation-over-shared-memory", (1, 1, 160, 163), 2, (2, 2), dilation=(140, 150)),
]


def operands(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    return LAYOUTS[layout](x), LAYOUTS[layout](w), make((case.out_channels,), dtype, "cpu", seed=3)


def fused(case: Conv, x, w, bias, activation="relu", slope=0.1):
    return OPS.conv2d_act_max_pool2d_with_offsets(x, w, bias, *case.geometry, activation, slope, False)


def separate(case: Conv, x, w, bias, activation="relu", slope=0.1):
    y = OPS.conv2d(x, w, bias, None, *case.geometry, activation, slope, False)
    return OPS.max_pool2d_with_offsets(y, *HALVING_POOL)


def convolved(case: Conv, x, w, bias) -> torch.Tensor:
    """By torch, in the operands' dtype."""
    top, bottom, left, right = case.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, bias, case.stride, 0, case.dilation, case.groups)


def check(case: Conv, dtype: torch.dtype, layout: str, names=("pooled_fprop",)) -> None:
    x, w, bias = operands(case, dtype, layout, integers)
    expected, offsets = separate(case, x, w, bias)
    controls().reset()
    got, got_offsets = fused(case, x, w, bias)
    assert tuple(launched()) == names
    rule = memory_format(conv_channels_last(x, w))
    assert got.is_contiguous(memory_format=rule)
    assert got_offsets.is_contiguous(memory_format=rule)
    assert_exact(got, expected.double())
    assert got_offsets.dtype == torch.uint8
    assert torch.equal(got_offsets, offsets)
    alone = OPS.conv2d_act_max_pool2d(x, w, bias, *case.geometry, "relu", 0.1, False)
    assert torch.equal(alone, got)
    exact = F.max_pool2d(convolved(case, x.double(), w.double(), bias.double()).relu(), 2)
    assert_exact(got, exact)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(132)
    check(case, torch.float32, layout)
    # So many SMs that tensor cores would leave most of them idle. The two half types share their kernels'
    # code: each takes one of the layouts.
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


#: With enough windows for the one SM of a small chip to take tensor cores, from 16 channels on.
ON_TENSOR_CORES = [
    Conv("small-cnn-2", (2, 32, 13, 13), 64, (3, 3)),
    Conv("small-cnn-3", (34, 64, 5, 5), 64, (3, 3)),
    Conv("c16", (2, 16, 14, 18), 32, (3, 3), **SAME),
    Conv("c17-k33", (3, 17, 12, 13), 33, (3, 3), **SAME),
    Conv("c24-k8", (3, 24, 12, 17), 8, (3, 3), **SAME),
    Conv("c40-k70", (2, 40, 9, 12), 70, (3, 3), **SAME),
    Conv("channels-in-chunks", (1, 136, 8, 10), 32, (3, 3), **SAME),
    Conv("15-windows-wide", (2, 16, 8, 30), 32, (1, 1)),
    Conv("17-windows-wide", (2, 16, 8, 35), 32, (1, 1)),
    Conv("129-windows-wide", (1, 16, 4, 258), 32, (1, 1)),
    Conv("one-column-of-windows", (2, 16, 130, 5), 32, (3, 3)),
    Conv("stride-2", (3, 16, 25, 27), 32, (3, 3), stride=(2, 2), **SAME),
    Conv("uneven", (3, 24, 30, 33), 40, (5, 3), stride=(3, 2), padding=(2, 2, 1, 1), dilation=(1, 2)),
    Conv("stride-3", (2, 16, 26, 49), 32, (2, 2), stride=(2, 3)),
    Conv("dilated", (2, 16, 20, 24), 32, (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3)),
    Conv("asymmetric-padding", (3, 16, 12, 13), 32, (2, 4), padding=(0, 1, 1, 2)),
]
MMA = ("pooled_fprop_mma",)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", ON_TENSOR_CORES)
def test_integers_are_exact_on_tensor_cores(chip, case, layout):
    chip(1)
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout, MMA)


@pytest.mark.parametrize("sm_count", [2, 5])
def test_tensor_cores_with_few_tiles_a_block(chip, sm_count):
    chip(sm_count)
    check(Conv("", (8, 16, 13, 13), 64, (3, 3)), torch.bfloat16, "nhwc", MMA)


@parametrize("case", SEPARATE)
def test_other_shapes_take_two_kernels(chip, case):
    chip(132)
    x, w, bias = operands(case, torch.float32, "nhwc", integers)
    controls().reset()
    separate(case, x, w, bias)
    check(case, torch.float32, "nhwc", tuple(launched()))
    assert "pooled_fprop" not in launched()


def test_float64_takes_two_kernels(chip):
    chip(132)
    case = Conv("", (2, 3, 6, 7), 5, (3, 3), **SAME)
    x, w, bias = operands(case, torch.float64, "nchw", normal)
    for got, expected in zip(fused(case, x, w, bias), separate(case, x, w, bias), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("sm_count", [1, 4])
@parametrize(
    "case",
    [
        Conv("small-cnn-1", (5, 1, 28, 28), 32, (3, 3)),
        Conv("small-cnn-2", (5, 32, 13, 13), 64, (3, 3)),
        Conv("small-cnn-3", (20, 64, 5, 5), 64, (3, 3)),
        Conv("narrow", (3, 2, 30, 9), 8, (3, 3), **SAME),
    ],
)
def test_a_block_walks_many_tiles(chip, case, sm_count):
    """On a small chip: many windows and several tiles a block, channels in chunks, no slices."""
    chip(sm_count)
    check(case, torch.float32, "nchw")


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_layout(chip, dtype, layout):
    chip(132)
    check(Conv("", (2, 8, 7, 6), 16, (3, 3), **SAME), dtype, layout)
    if dtype == torch.float16:
        chip(1)
        check(Conv("", (2, 24, 15, 14), 40, (3, 3), **SAME), dtype, layout, MMA)


def test_strides_of_single_rows_and_images_may_be_odd(chip):
    """Channels still come in 16-byte runs, though what lies beyond the image does not."""
    chip(1)
    case = Conv("", (1, 32, 1, 130), 32, (2, 3), padding=(2, 2, 1, 1))
    x, w, bias = operands(case, torch.float16, "nhwc", integers)
    strides = (32 * 130 + 7, 1, 32 * 130 + 3, 32)
    odd = torch.empty(32 * 130, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)
    controls().reset()
    got = fused(case, odd, w, bias)[0]
    assert launched() == list(MMA)
    assert_exact(got, F.max_pool2d(convolved(case, x.double(), w.double(), bias.double()).relu(), 2))
    assert "16-byte loads" in plan_of(case.input, case.weight, torch.float16, padding=case.padding).reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", [case for case in SHAPES if case.id in ("small-cnn-2", "small-cnn-3", "7x7-stride-2")])
def test_random_as_accurate_as_torch(chip, case, dtype, layout):
    chip(1 if case.id == "small-cnn-2" else 8)
    x, w, bias = operands(case, dtype, layout, normal)
    exact = F.max_pool2d(convolved(case, x.double(), w.double(), bias.double()), 2)
    torchs = F.max_pool2d(convolved(case, x, w, bias), 2)
    assert_accurate(fused(case, x, w, bias, "none")[0], exact, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_rounded_before_the_maximum(chip, activation, layout, dtype):
    """Sums of whole numbers have no order: value and offset are the two operators', bit for bit. In bfloat16
    many values of a window are equal only once rounded, and the first of them counts."""
    chip(132)
    case = Conv("", (2, 4, 9, 8), 12, (3, 3), **SAME)
    if dtype == torch.bfloat16:
        chip(1)
        case = Conv("", (2, 16, 17, 14), 36, (3, 3), **SAME)
    x, w, bias = operands(case, dtype, layout, integers)
    for bias_given in (bias, None):
        for got, expected in zip(
            fused(case, x, w, bias_given, activation),
            separate(case, x, w, bias_given, activation),
            strict=True,
        ):
            assert torch.equal(got, expected)
    y = ACTIVATE[activation](convolved(case, x.double(), w.double(), None))
    if activation != "leaky_relu":
        torch.testing.assert_close(
            fused(case, x, w, None, activation)[0], F.max_pool2d(y, 2).to(dtype), rtol=0.01, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_ties_nan_and_infinities(chip, dtype):
    """Each of three values at each of a window's four places: the offset and the value of max_pool2d."""
    chip(132)
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, -1.0], dtype=dtype)
    windows = torch.cartesian_prod(*[values] * 4)
    x = torch.zeros(1, 1, 2, 2 * len(windows) + 1, dtype=dtype)
    x[0, 0, :, :-1] = windows.reshape(-1, 2, 2).permute(1, 0, 2).reshape(2, -1)
    x[..., -1] = torch.nan  # the column that is left out
    weight = torch.ones(1, 1, 1, 1, dtype=dtype)
    case = Conv("", tuple(x.shape), 1, (1, 1))
    for activation in ("none", "relu"):
        got, offsets = fused(case, x, weight, None, activation)
        y = ACTIVATE[activation](x)
        expected, indices = F.max_pool2d(y, 2, return_indices=True)
        assert_exact(got, expected.double())
        row, column = indices // x.shape[3], indices % x.shape[3]
        places = row * 2 + column - 2 * torch.arange(len(windows))
        assert torch.equal(offsets.long(), places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinities_stay_where_torch_leaves_them(chip, dtype):
    """Beside filters and windows that no product joins with them; not in what is dropped or padded."""
    case = Conv("", (2, 6, 8, 11), 10, (3, 3), padding=(1, 0, 0, 1))
    chip(132)
    if dtype == torch.float16:
        case = Conv("", (2, 22, 8, 35), 10, (3, 3), padding=(1, 0, 0, 1))
        chip(1)
    x, w, bias = operands(case, dtype, "nhwc", integers)
    x[1, 5, 0, 0] = torch.inf
    x[0, 2, 7, :] = torch.nan  # seen by the conv's last row alone, which no window has
    bias[9] = -torch.inf
    w[w == 0] = 1
    exact = F.max_pool2d(convolved(case, x.double(), w.double(), bias.double()).relu(), 2)
    assert exact.isinf().any()
    assert not exact.isnan()[0].any()
    controls().reset()
    assert_exact(fused(case, x, w, bias)[0], exact)
    assert launched() == ["pooled_fprop" if dtype == torch.float32 else "pooled_fprop_mma"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_thread_order_does_not_show(chip, dtype):
    chip(16 if dtype == torch.float32 else 1)
    case = Conv("", (2, 24, 9, 34), 20, (3, 3), stride=(2, 1), **SAME)
    x, w, bias = operands(case, dtype, "nhwc", normal)
    seen = set()
    for seed in range(10):
        controls().set_seed(seed)
        seen.add(tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in fused(case, x, w, bias)))
    assert len(seen) == 1


#: The small CNN's layers, on a chip as much smaller as the batch is.
LAYERS = [
    Conv("1", (16, 1, 28, 28), 32, (3, 3)),
    Conv("2", (4, 32, 13, 13), 64, (3, 3)),
    Conv("3", (16, 64, 5, 5), 64, (3, 3)),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", LAYERS)
def test_bytes_near_the_floor(chip, case, layout):
    """y and the offsets once; x at most twice for each tile of filters, weights once a block (as if without
    a cache). The convolution's output would be four times y, written and read."""
    chip(1)
    x, w, bias = operands(case, torch.float32, layout, integers)
    controls().reset()
    y = fused(case, x, w, bias)[0]
    (launch,) = controls().launches()
    assert launch["global_bytes_written"] == y.numel() * 5
    filter_tiles = case.out_channels // 32
    blocks = launch["grid"][0]
    read = 4 * (2.3 * x.numel() * filter_tiles + blocks * w.numel() / filter_tiles + 40 * y.numel() / 32)
    assert launch["global_bytes_read"] <= read
    if case.id == "1":
        assert blocks * w.numel() <= 0.1 * y.numel()


#: By name: SMs, and KB of shared memory that an SM has for blocks.
CHIPS = {"A100": (108, 164), "RTX3090": (82, 100), "RTX4090": (128, 100), "H100": (132, 228)}


def plan_of(x, w, dtype=torch.bfloat16, chip="H100", channels_last=True, **geometry) -> fastcnn.Plan:
    return fastcnn.plan(
        "conv2d_act_max_pool2d", x, w, dtype=dtype, chip=chip, channels_last=channels_last, **geometry
    )


@pytest.mark.parametrize("chip_name", CHIPS)
@pytest.mark.parametrize(
    ("x", "k", "dtype"),
    [
        ((64, 3, 224, 224), 64, torch.float32),
        ((256, 3, 224, 224), 32, torch.float32),
        ((1024, 1, 28, 28), 32, torch.float32),
        ((4096, 1, 28, 28), 32, torch.bfloat16),
        ((256, 16, 56, 56), 64, torch.bfloat16),
        ((256, 16, 112, 112), 96, torch.float16),
    ],
)
def test_resident_weights_take_one_round_of_blocks(emulated_on_cpu, chip_name, x, k, dtype):
    plan = plan_of(x, (k, x[1], 3, 3), dtype, chip_name, padding=1)
    assert plan.kernel.startswith("pooled_fprop")
    sm_count, kilobytes = CHIPS[chip_name]
    threads = 512 if plan.kernel == "pooled_fprop_mma" else 768  # of an SM, by registers
    blocks = min(kilobytes * 1024 // (plan.shared_bytes + 1024), threads // plan.threads)
    assert 0.5 * sm_count * blocks < plan.grid <= sm_count * blocks


@pytest.mark.parametrize("chip_name", CHIPS)
def test_two_kernels_where_they_take_less_time(emulated_on_cpu, chip_name):
    """Unless memory is so slow, and tensor cores are, that storing the convolution's output costs more."""
    for stride in (1, 2):
        plan = plan_of((256, 3, 224, 224), (64, 3, 7, 7), chip=chip_name, padding=3, stride=stride)
        if chip_name == "RTX4090":
            assert plan.kernel == "pooled_fprop"
        else:
            assert plan.kernel == "thin_fprop"
            assert "on FMA units one kernel would take longer" in plan.reason
            assert "then a pool" in plan.reason
    # As many sums without tensor cores: in float32, and of 5 to 15 channels.
    assert plan_of((64, 3, 224, 224), (64, 3, 7, 7), torch.float32, chip_name).kernel == "pooled_fprop"
    assert plan_of((64, 5, 112, 112), (64, 5, 7, 7), chip=chip_name).kernel == "pooled_fprop"
    # Too small to earn a second launch.
    assert plan_of((1, 3, 32, 32), (16, 3, 7, 7), chip=chip_name).kernel == "pooled_fprop"


@pytest.mark.parametrize("chip_name", CHIPS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_small_cnn_is_fused_at_every_batch(emulated_on_cpu, chip_name, channels_last):
    for batch in (1, 8, 64, 256, 1024, 16384):
        for c, side, k in ((1, 28, 32), (32, 13, 64), (64, 5, 64)):
            plan = plan_of((batch, c, side, side), (k, c, 3, 3), torch.bfloat16, chip_name, channels_last)
            assert plan.kernel in ("pooled_fprop", "pooled_fprop_mma")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_two_kernels_are_taken_as_planned(chip, layout):
    chip(1)
    case = Conv("", (2, 3, 31, 30), 32, (7, 7), padding=(3, 3, 3, 3))
    x, w, bias = operands(case, torch.bfloat16, layout, integers)
    controls().reset()
    separate(case, x, w, bias)
    names = tuple(launched())
    assert names[0] == "thin_fprop_mma"
    check(case, torch.bfloat16, layout, names)


def test_more_tiles_than_a_launch_counts_take_two_kernels(emulated_on_cpu):
    for batch, reason in ((2**29, "more tiles"), (2**30, "more tiles"), (2**20, "in one kernel")):
        plan = plan_of((batch, 8, 121, 281), (256, 8, 1, 1), torch.float32, stride=40)
        assert reason in plan.reason
        assert plan.kernel == ("pooled_fprop" if batch == 2**20 else "generic_fprop")


def test_plans_say_what_they_do(emulated_on_cpu):
    plan = fastcnn.plan("conv2d_act_max_pool2d", (128, 32, 13, 13), (64, 32, 3, 3), chip="H100")
    assert plan.kernel == "pooled_fprop"
    assert "3x3 unrolled" in plan.reason
    assert "windows" in plan.tile
    grouped = fastcnn.plan("conv2d_act_max_pool2d", (8, 32, 13, 13), (64, 4, 3, 3), groups=8, chip="H100")
    assert grouped.kernel == "grouped_fprop"
    assert "then a pool" in grouped.reason
