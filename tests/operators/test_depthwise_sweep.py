"""Depthwise wgrad in one sweep over x and dy: values at its tiles' edges, order, bytes, fused backward."""

from __future__ import annotations

import csv
import math

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from build_support.build_info import ROOT
from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
SWEEP = "conv2d::depthwise_wgrad_sweep"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
layouts = pytest.mark.parametrize("layout", ["nhwc", "nchw"])
# The half types share the kernels' code: each takes one of the layouts.
layouts_and_dtypes = pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("nhwc", torch.float32),
        ("nchw", torch.float32),
        ("nhwc", torch.float16),
        ("nchw", torch.bfloat16),
    ],
    ids=str,
)


def layer(id: str, channels: int, image: tuple[int, int], kernel: int | tuple[int, int], **rest) -> Conv:
    """A batch of 2 and "same" padding unless `rest` says otherwise."""
    batch = rest.pop("batch", 2)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = rest.get("dilation", (1, 1))
    r, s = ((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    rest.setdefault("padding", (r, r, s, s))
    return Conv(id, (batch, channels, *image), channels, kernel, groups=channels, **rest)


SHAPES = [
    layer("3x3", 32, (9, 10), 3),
    layer("3x3-stride-2", 32, (11, 10), 3, stride=(2, 2)),
    layer("5x5", 16, (9, 7), 5),
    layer("5x5-stride-2", 16, (10, 9), 5, stride=(2, 2)),
    layer("7x7", 16, (9, 8), 7),
    layer("7x7-stride-2", 16, (11, 13), 7, stride=(2, 2)),
    layer("chunk-and-a-half", 48, (5, 6), 3),
    layer("vector", 8, (6, 5), 3),
    layer("one-item-of-rows", 8, (4, 9), 3),
    layer("rows-plus-1", 8, (9, 4), 3),
    layer("rows-minus-1", 8, (7, 4), 5),
    layer("one-row", 8, (1, 21), 3),
    layer("one-column", 8, (21, 1), 3),
    layer("one-pixel", 16, (1, 1), 3, batch=5),
    layer("one-output", 8, (5, 5), 5, padding=(0, 0, 0, 0), batch=3),
    layer("valid", 8, (9, 8), 3, padding=(0, 0, 0, 0)),
    layer("pad-kernel-minus-1", 8, (5, 6), 3, padding=(2, 2, 2, 2)),
    layer("asymmetric", 8, (6, 9), 3, stride=(2, 2), padding=(0, 1, 1, 2)),
    layer("kernel-over-image", 8, (3, 4), 7),
    layer("small-images", 8, (3, 3), 3, batch=30),
    layer("wide", 8, (3, 150), 3, batch=1),
    layer("tall", 8, (140, 2), 5, batch=1),
    layer("dilated", 16, (13, 11), 3, dilation=(2, 2)),
    layer("dilated-5x5", 8, (12, 13), 5, dilation=(2, 3)),
    layer("dilated-rows-only", 8, (17, 6), 3, dilation=(3, 1)),
    layer("dilated-strided", 8, (12, 15), 3, stride=(2, 2), dilation=(2, 2)),
    layer("dilation-3-stride-2", 8, (14, 13), 3, stride=(2, 2), dilation=(3, 3)),
    layer("shared-factor-of-rows", 8, (13, 9), 3, stride=(4, 1), dilation=(2, 1)),
    layer("uneven-strides", 8, (9, 12), 3, stride=(1, 3)),
    layer("1x1", 8, (5, 7), 1),
    layer("1x1-stride-2", 16, (7, 8), 1, stride=(2, 2)),
    layer("even-kernel", 8, (8, 9), (4, 2), padding=(2, 1, 1, 0)),
    layer("row-kernel", 8, (5, 9), (1, 7)),
    layer("9x9", 8, (10, 6), 9),
    layer("9x9-stride-2", 8, (12, 11), 9, stride=(2, 2)),
    layer("11x3", 8, (13, 7), (11, 3)),
    layer("21x31-dilated", 8, (12, 13), (21, 31), dilation=(1, 2), batch=1),
    layer("3x31-dilated", 8, (4, 33), (3, 31), dilation=(1, 2), batch=1),
]
#: Layers that NCHW alone sweeps, or neither layout.
NCHW_ONLY = [layer("odd-channels", 13, (7, 6), 3), layer("one-channel", 1, (17, 19), 5, batch=5)]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, torch.Tensor]:
    """x and dy."""
    x = make(case.input, dtype, "cpu", seed=1)
    dy = make(reference_output(case, x, torch.zeros(case.weight, dtype=dtype)).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](dy)


def reference_output(case: Conv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = case.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, case.stride, 0, case.dilation, case.groups)


def torchs(case: Conv, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    w = torch.zeros(case.weight, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(reference_output(case, x, w), w, dy)[0]


def wgrad(case: Conv, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    return OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, x.stride(1) == 1, False)


def act_wgrad(case: Conv, x, dy, saved, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    nhwc = x.stride(1) == 1
    return OPS.conv2d_act_wgrad(
        dy, saved, x, *case.kernel, *case.geometry, activation, 0.125, True, nhwc, False
    )


def launched() -> set[str]:
    return {launch["name"] for launch in controls().launches()} - {"conv2d::split_sum"}


def swept(case: Conv, layout: str) -> bool:
    """NHWC leaves out the rows and columns between 1x1 windows, NCHW has them in its planes."""
    return layout == "nhwc" or case.id != "1x1-stride-2"


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    x, dy = tensors(case, dtype, layout, integers)
    controls().reset()
    got = wgrad(case, x, dy)
    assert launched() == {SWEEP if swept(case, layout) else "conv2d::depthwise_wgrad"}
    assert_exact(got, torchs(case, x.double(), dy.double()))


@layouts
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(4)
    check(case, torch.float32, layout)
    # On one SM, blocks have many stages.
    chip(1)
    check(case.with_batch(case.input[0] + 1), torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


@parametrize("case", [layer("5x5", 40, (7, 7), 5, batch=8), layer("7x7", 24, (7, 7), 7, batch=9)])
def test_the_threads_of_two_blocks_in_one(chip, case):
    """Small images: fewer blocks write partial sums."""
    chip(3)
    for dtype in (torch.float32, torch.bfloat16):
        x, dy = tensors(case, dtype, "nhwc", integers)
        controls().reset()
        dw, db = act_wgrad(case, x, dy, None, "none")
        assert controls().launches()[0]["threads"] == 256
        assert_exact(dw, torchs(case, x.double(), dy.double()))
        assert_exact(db, dy.double().sum((0, 2, 3)))


@dtypes
@parametrize("case", NCHW_ONLY)
def test_nchw_takes_any_channels(chip, case, dtype):
    chip(2)
    check(case, dtype, "nchw")


@layouts_and_dtypes
@parametrize("case", [case for case in SHAPES if case.id in ("3x3", "5x5-stride-2", "7x7", "9x9")])
def test_random_as_accurate_as_torch(chip, case, layout, dtype):
    chip(3)
    x, dy = tensors(case, dtype, layout, normal)
    reference = torchs(case, x.double(), dy.double())
    assert_accurate(wgrad(case, x, dy), reference, torchs(case, x, dy))


@layouts
@parametrize("case", [case for case in SHAPES if case.id in ("3x3-stride-2", "5x5", "9x9")])
def test_thread_order_does_not_show(chip, case, layout):
    chip(3)
    x, dy = tensors(case, torch.float32, layout, normal)
    seen = set()
    for seed in range(4):
        controls().set_seed(seed)
        seen.add(tuple(t.numpy().tobytes() for t in act_wgrad(case, x, dy, None, "none")))
    assert len(seen) == 1


@layouts
@parametrize(
    "case", [case for case in SHAPES if case.id in ("valid", "5x5", "3x3-stride-2", "9x9", "dilated")]
)
def test_infinities_stay_where_torch_leaves_them(chip, case, layout):
    """At the image's edges, where taps meet padding, and beside rows that other blocks sum."""
    chip(8)
    x, dy = tensors(case, torch.float32, layout, integers)
    x[:, 0], dy[:, 0] = x[:, 0].abs() + 1, dy[:, 0].abs() + 1
    x[:, 1], dy[:, 1] = x[:, 1].abs() + 1, dy[:, 1].abs() + 1
    x[0, 0, 0, 0] = x[0, 0, 4, 2] = x[1, 0, -1, -1] = torch.inf
    dy[0, 1, 0, 0] = dy[0, 1, 3, 1] = dy[1, 1, -1, -1] = torch.inf
    got = wgrad(case, x, dy)
    assert_exact(got, direct(case, x.double(), dy.double()))


def direct(case: Conv, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """By the definition, over the taps that lie in the image: padding is no operand."""
    result = torch.zeros(case.weight, dtype=x.dtype)
    height, width = case.input[2:]
    for r in range(case.kernel[0]):
        for s in range(case.kernel[1]):
            rows = torch.arange(dy.shape[2]) * case.stride[0] - case.padding[0] + r * case.dilation[0]
            columns = torch.arange(dy.shape[3]) * case.stride[1] - case.padding[2] + s * case.dilation[1]
            p, q = (
                ((rows >= 0) & (rows < height)).nonzero()[:, 0],
                ((columns >= 0) & (columns < width)).nonzero()[:, 0],
            )
            seen = x[:, :, rows[p]][..., columns[q]] * dy[:, :, p][..., q]
            result[:, 0, r, s] = seen.sum((0, 2, 3))
    return result


@layouts_and_dtypes
@parametrize("case", [case for case in SHAPES if case.id in ("vector", "5x5-stride-2", "9x9", "asymmetric")])
def test_fused_backward(chip, case, dtype, layout):
    """relu and leaky_relu of whole numbers are exact, the bias gradient too; nothing else is launched."""
    chip(3)
    x, dy = tensors(case, dtype, layout, integers)
    saved = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    for activation, slope in (("relu", 0.0), ("leaky_relu", 0.125), ("none", 1.0)):
        controls().reset()
        dw, db = act_wgrad(case, x, dy, None if activation == "none" else saved, activation)
        assert launched() == {SWEEP}
        through = torch.where(saved > 0, dy.double(), slope * dy.double())
        assert_exact(dw, torchs(case, x.double(), through))
        assert_exact(db, through.sum((0, 2, 3)))


@layouts
@pytest.mark.parametrize("activation", ["gelu", "silu", "sigmoid", "tanh", "hardswish"])
def test_smooth_activations(chip, activation, layout):
    chip(1)
    case = layer("", 8, (6, 5), 3)
    x, dy = tensors(case, torch.float32, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, torch.float32, "cpu", seed=5))
    dw, db = act_wgrad(case, x, dy, saved, activation)
    ones = torch.ones(8, 1, 1, 1)
    through = OPS.conv2d_act_dgrad(
        dy, saved, ones, 6, 5, 1, 1, 0, 0, 0, 0, 1, 1, 8, activation, 0.125, False, False
    )
    assert_accurate(dw, torchs(case, x.double(), through.double()), torchs(case, x, through))
    assert_accurate(db, through.double().sum((0, 2, 3)), through.sum((0, 2, 3)))


@layouts_and_dtypes
@parametrize(
    "case",
    [
        Conv("multiplier", (2, 4, 7, 6), 8, (3, 3), padding=(1, 1, 1, 1), groups=4),
        layer("stride-3", 8, (13, 14), 3, stride=(3, 3)),
        layer("rows-between-windows", 8, (13, 14), 2, stride=(5, 3), padding=(0, 0, 0, 0)),
    ],
)
def test_the_window_kernel_takes_the_rest(chip, case, dtype, layout):
    chip(2)
    x, dy = tensors(case, dtype, layout, integers)
    saved = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    controls().reset()
    dw, db = act_wgrad(case, x, dy, saved, "relu")
    assert launched() == {"conv2d::depthwise_wgrad"}
    through = torch.where(saved > 0, dy.double(), 0.0)
    assert_exact(dw, torchs(case, x.double(), through))
    assert_exact(db, through.sum((0, 2, 3)))


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
def test_any_layout(chip, layout):
    chip(2)
    case = layer("", 16, (7, 6), 3)
    x, dy = tensors(case, torch.float32, layout, integers)
    assert_exact(wgrad(case, x, dy), torchs(case, x.double(), dy.double()))


def network_rows() -> list[dict[str, str]]:
    """The depthwise layers of three networks."""
    suites = ("mobilenet_v2_224", "efficientnet_b0_224", "convnext_t_224")
    with (ROOT / "benchmarks" / "shapes" / "conv-shapes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["suite"] in suites]
    return [row for row in rows if row["groups"] == row["C"]]


def network_layers() -> list[Conv]:
    """They, with few channels and images."""
    cases = {}
    for row in network_rows():
        height, kernel, stride = int(row["H"]), int(row["R"]), int(row["stride"])
        id = f"{kernel}x{kernel}-s{stride}-{height}"
        channels = 16 if height > 28 else 32
        # Enough images that the partial sums, one for each tap, are few beside them.
        images = 2 if kernel == 3 else 4
        batch = {112: 1, 56: 2}.get(height, math.ceil(images * 28 * 28 / height**2))
        cases[id] = layer(id, channels, (height, height), kernel, stride=(stride, stride), batch=batch)
    return list(cases.values())


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", network_layers())
def test_bytes_near_the_floor(chip, case, dtype, layout):
    """Every access of every launch counts, as if there were no cache: halos and partial sums included. The
    chip is as many times smaller as the problem."""
    chip(1)
    x, dy = tensors(case, dtype, layout, integers)
    controls().reset()
    dw = wgrad(case, x, dy)
    floor = sum(t.numel() * t.element_size() for t in (x, dy, dw))
    moved = sum(
        launch["global_bytes_read"] + launch["global_bytes_written"] for launch in controls().launches()
    )
    assert moved <= 1.10 * floor, moved / floor
    loads = {width: n for width, n in controls().launches()[0]["global_loads"].items() if n}
    assert 16 * loads[16] >= 0.98 * sum(t.numel() * t.element_size() for t in (x, dy))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_partial_sums_are_few(emulated_on_cpu, dtype, layout):
    """Of the layers as they are: written and read, a tenth of x and dy; 7x7 on 7x7 in NHWC an eighth."""
    for row in network_rows():
        batch, channels, size, kernel, stride = (int(row[name]) for name in ("N", "C", "H", "R", "stride"))
        plan = fastcnn.plan(
            "conv2d_wgrad",
            (batch, channels, size, size),
            (channels, 1, kernel, kernel),
            stride=stride,
            padding=kernel // 2,
            groups=channels,
            dtype=dtype,
            channels_last=layout == "nhwc",
            chip="H100",
        )
        read = batch * channels * (size**2 + math.ceil(size / stride) ** 2) * dtype.itemsize
        most = 0.125 if (layout, kernel, size) == ("nhwc", 7, 7) else 0.10
        assert 2 * plan.workspace_bytes <= most * read, (row["layer"], plan)


def test_plans_say_what_they_do(emulated_on_cpu):
    def plan(kernel: int, **options):
        return fastcnn.plan(
            "conv2d_wgrad",
            (128, 144, 56, 56),
            (144, 1, kernel, kernel),
            padding=kernel // 2,
            groups=144,
            dtype=torch.bfloat16,
            chip="H100",
            **options,
        )

    text = plan(3, channels_last=True)
    assert text.kernel == "depthwise_wgrad_sweep_nhwc_3x3"
    assert "one sweep" in text.reason
    assert text.grid >= 2 * 132
    assert plan(7, channels_last=False).kernel == "depthwise_wgrad_sweep_nchw_7x7"
    assert plan(9, channels_last=True).kernel == "depthwise_wgrad_sweep_nhwc"
