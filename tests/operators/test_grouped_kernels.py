"""Grouped convolutions with 4 to 32 channels a group: their own kernels, at the edges of tiles and slabs."""

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

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
PASSES = ("fprop", "dgrad", "wgrad")


def grouped(id: str, channels: int, filters: int, groups: int, image: tuple[int, int], kernel=(3, 3), **rest):
    """channels and filters of one group; a batch of 2 unless `batch` says otherwise."""
    batch = rest.pop("batch", 2)
    return Conv(id, (batch, channels * groups, *image), filters * groups, kernel, groups=groups, **rest)


SAME = {"padding": (1, 1, 1, 1)}

SHAPES = [
    grouped("c4", 4, 4, 9, (9, 11), **SAME),
    grouped("c8", 8, 8, 5, (7, 9), **SAME),
    grouped("c12", 12, 12, 3, (5, 8), **SAME),
    grouped("c16", 16, 16, 3, (5, 7), batch=1, **SAME),
    grouped("c24", 24, 24, 2, (4, 5), batch=1, **SAME),
    grouped("c32", 32, 32, 2, (4, 5), batch=1, **SAME),
    grouped("c8-k4", 8, 4, 5, (6, 7), **SAME),
    grouped("c4-k8", 4, 8, 3, (6, 7), **SAME),
    grouped("c4-k32", 4, 32, 2, (5, 4), **SAME),
    grouped("c32-k4", 32, 4, 3, (5, 4), batch=1, **SAME),
    grouped("c12-k20", 12, 20, 2, (4, 5), batch=1, **SAME),
    grouped("tile", 4, 4, 2, (8, 16), **SAME),
    grouped("tile-plus-1", 4, 4, 2, (9, 17), **SAME),
    grouped("tile-minus-1", 4, 4, 2, (7, 15), **SAME),
    grouped("wide-image", 4, 4, 2, (3, 150), batch=1, **SAME),
    grouped("tall-image", 4, 8, 2, (140, 2), batch=1, **SAME),
    grouped("small-images", 4, 4, 3, (3, 3), batch=30, **SAME),
    grouped("stride-2", 8, 8, 4, (11, 9), stride=(2, 2), **SAME),
    grouped("stride-2-even", 4, 4, 9, (8, 10), stride=(2, 2), **SAME),
    grouped("stride-3", 4, 8, 3, (13, 11), stride=(3, 3), **SAME),
    grouped("uneven-stride", 4, 4, 3, (9, 12), stride=(1, 3), **SAME),
    grouped("stride-over-kernel", 8, 4, 3, (13, 14), (2, 2), stride=(5, 3)),
    grouped("stride-over-image", 4, 4, 3, (5, 4), stride=(9, 9), **SAME),
    grouped("taps-that-reach-nothing", 8, 8, 3, (2, 2), stride=(3, 3), **SAME),
    grouped("dilated", 4, 4, 5, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    grouped(
        "dilated-strided", 8, 8, 3, (12, 11), (3, 2), stride=(2, 3), padding=(3, 3, 1, 1), dilation=(3, 2)
    ),
    grouped(
        "dilation-equals-stride", 8, 8, 3, (11, 12), stride=(2, 2), padding=(2, 2, 2, 2), dilation=(2, 2)
    ),
    grouped("pad-kernel-minus-1", 4, 4, 3, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    grouped("asymmetric-padding", 4, 4, 3, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    grouped("kernel-over-image", 8, 8, 3, (3, 4), (7, 5), padding=(3, 3, 2, 2)),
    grouped("1x1", 8, 16, 3, (5, 7), (1, 1)),
    grouped("1x1-stride-2", 4, 4, 5, (7, 8), (1, 1), stride=(2, 2)),
    grouped("5x5", 4, 8, 4, (9, 8), (5, 5), padding=(2, 2, 2, 2)),
    grouped("weights-in-parts", 32, 32, 2, (3, 4), (6, 7), batch=1, padding=(3, 3, 3, 3)),
    grouped("one-output-pixel", 8, 8, 3, (3, 3), batch=5),
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


def references(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    x, w, bias, dy = (t.double() for t in (x, w, bias, dy))
    return torchs(case, x, w, bias, dy)


def torchs(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    """y, dx and dw as torch has them in the operands' dtype."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = reference_output(case, x, w, bias)
    return (y.detach(), *torch.autograd.grad(y, (x, w), dy))


def results(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    nhwc = x.stride(1) == 1
    return (
        OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, nhwc, False),
        OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, nhwc, False),
    )


def wgrad_on_fma(case: Conv) -> str:
    """Tensor cores would drop more than half of what they multiply."""
    filters = case.out_channels // case.groups
    return "wgrad" if filters == 4 or case.id in ("c12", "c12-k20", "c4-k8", "stride-3") else ""


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    names = [name for name in launched() if name != "split_sum"]
    # What does not fit the tables of the tensor cores' kernels, or their shared memory, goes to FMA units.
    on_fma = {"stride-over-image": {"dgrad"}, "weights-in-parts": {"fprop", "dgrad"}}.get(case.id, set())
    on_fma = set(PASSES) if dtype == torch.float32 else on_fma | ({"wgrad"} & {wgrad_on_fma(case)})
    assert names == [f"grouped_{name}" + ("" if name in on_fma else "_mma") for name in PASSES]
    for name, value, expected in zip(PASSES, got, references(case, *operands), strict=True):
        assert_exact(value, expected, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(132)
    check(case, torch.float32, layout)
    # The two half types share their kernels' code: each takes one of the layouts.
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", [case for case in SHAPES if case.id in ("c4", "c8", "tile-plus-1", "stride-2-even")])
def test_a_block_walks_many_tiles(chip, case, dtype):
    """On a chip of one SM, blocks have several tiles each, and wgrad few splits."""
    chip(1)
    check(case.with_batch(7), dtype, "nhwc")


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_layout(chip, dtype, layout):
    chip(132)
    check(grouped("", 8, 16, 3, (5, 6), **SAME), dtype, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", [case for case in SHAPES if case.id in ("c4", "c8", "c16", "stride-2")])
def test_random_as_accurate_as_torch(chip, case, dtype, layout):
    chip(4)
    operands = tensors(case, dtype, layout, normal)
    for name, got, expected, other in zip(
        PASSES,
        results(case, *operands),
        references(case, *operands),
        torchs(case, *operands),
        strict=True,
    ):
        assert_accurate(got, expected, other, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_thread_order_does_not_show(chip, dtype):
    chip(2)
    case = grouped("", 8, 8, 5, (9, 10), stride=(2, 1), **SAME)
    operands = tensors(case, dtype, "nhwc", normal)
    seen = set()
    for seed in range(10):
        controls().set_seed(seed)
        seen.add(tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in results(case, *operands)))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "case",
    [
        grouped("c5", 5, 5, 4, (5, 5), **SAME),
        grouped("c8-k6", 8, 6, 3, (5, 5), **SAME),
        grouped("c36", 36, 36, 2, (3, 3), **SAME),
        grouped("c2", 2, 4, 4, (5, 5), **SAME),
        grouped("one-group", 12, 12, 1, (5, 5), **SAME),
        grouped("kernel-of-33", 4, 4, 2, (1, 40), (1, 33)),
        grouped("stride-of-33", 4, 4, 2, (1, 40), (1, 3), stride=(1, 33)),
    ],
    ids=lambda case: case.id,
)
def test_other_shapes_are_the_generic_kernel_s(chip, case):
    chip(132)
    operands = tensors(case, torch.float32, "nhwc", integers)
    controls().reset()
    got = results(case, *operands)
    assert {name for name in launched() if name != "split_sum"} == {f"generic_{name}" for name in PASSES}
    for name, value, expected in zip(PASSES, got, references(case, *operands), strict=True):
        assert_exact(value, expected, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [4, 8])
def test_infinities_stay_where_torch_leaves_them(chip, channels, dtype):
    """In one group and one image row, beside groups and pixels that no product joins with it."""
    chip(132)
    # Of 40 rows, stride 2 without padding reads 39: what stands in the last one must not be seen, though the
    # last tile reaches over it.
    case = grouped("", channels, channels, 4, (40, 31), stride=(2, 2))
    x, w, bias, dy = tensors(case, dtype, "nhwc", integers)
    x[:, :, 39, :] = torch.inf
    x[0, 5, 2, 3] = torch.inf
    dy[1, 9, 1, 1] = torch.inf
    # In a tile's first pixel, where one that does not exist would lie, were it not zeros.
    x[0, channels, 1, 1] = torch.inf
    dy[0, channels : 2 * channels, 0, 0] = 1
    for name, got, expected in zip(
        PASSES, results(case, x, w, bias, dy), references(case, x, w, bias, dy), strict=True
    ):
        assert_exact(got, expected, name)


#: ResNeXt-50 32x4d's layers, with 8 of 32 groups, few images, on a chip as many times smaller.
RESNEXT = [
    grouped("c4-56", 4, 4, 16, (56, 56), batch=1, **SAME),
    grouped("c8-28", 8, 8, 8, (28, 28), batch=2, **SAME),
    grouped("c16-14", 16, 16, 4, (14, 14), batch=6, **SAME),
    grouped("c32-7", 32, 32, 2, (7, 7), batch=40, **SAME),
    grouped("c8-56-s2", 8, 8, 8, (56, 56), batch=1, stride=(2, 2), **SAME),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", RESNEXT)
def test_bytes_near_the_floor(chip, case, dtype):
    """Every access counts, as if there were no cache: halos and what blocks read in common included."""
    chip(1)
    operands = tensors(case, dtype, "nhwc", integers)
    controls().reset()
    results(case, *operands)
    x, w, _, dy = operands
    floor = sum(t.numel() * t.element_size() for t in (x, w, dy))
    for launch in controls().launches():
        if launch["name"] == "conv2d::split_sum":
            continue
        moved = launch["global_bytes_read"] + launch["global_bytes_written"]
        assert moved <= 1.3 * floor, (launch["name"], moved / floor)
        gathered = {"fprop": [x], "dgrad": [dy], "wgrad": [x, dy]}[launch["name"].split("_")[1]]
        wide = 16 * launch["global_loads"][16]
        assert wide >= sum(t.numel() * t.element_size() for t in gathered), launch["name"]


def test_plans_say_what_they_do():
    text = fastcnn.plan(
        "conv2d_fprop",
        (8, 128, 56, 56),
        (128, 4, 3, 3),
        padding=1,
        groups=32,
        channels_last=True,
        chip="H100",
    )
    assert text.kernel == "grouped_fprop"
    assert "16-byte loads" in text.reason


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
@parametrize("case", [case for case in SHAPES if case.id in ("c4", "stride-2", "c8-k4")])
def test_fused_backward_is_the_unfused_one(chip, case, activation, dtype, layout):
    """Bit for bit; and the bias gradient that wgrad sums beside its own is exact on whole numbers."""
    chip(3)
    x, w, _, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    nhwc = layout == "nhwc"
    act = (activation, 0.1)
    grad = through_activation(dy, saved, *act, nhwc)
    assert not torch.equal(grad, dy)

    controls().reset()
    dx = OPS.conv2d_act_dgrad(dy, saved, w, *case.input[2:], *case.geometry, *act, nhwc, False)
    dw, db = OPS.conv2d_act_wgrad(dy, saved, x, *case.kernel, *case.geometry, *act, True, nhwc, False)
    assert all(name.startswith("grouped") or name == "split_sum" for name in launched())
    assert torch.equal(dx, OPS.conv2d_dgrad(grad, w, *case.input[2:], *case.geometry, nhwc, False))
    assert torch.equal(dw, OPS.conv2d_wgrad(grad, x, *case.kernel, *case.geometry, nhwc, False))
    assert_accurate(db, grad.double().sum((0, 2, 3)), grad.sum((0, 2, 3)), "bias")

    whole = LAYOUTS[layout](integers(dy.shape, dtype, "cpu"))
    _, db = OPS.conv2d_act_wgrad(whole, None, x, *case.kernel, *case.geometry, "none", 0.0, True, nhwc, False)
    assert_exact(db, whole.double().sum((0, 2, 3)), "bias")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", [case for case in SHAPES if case.id in ("c4", "c12-k20", "c16")])
def test_epilogue(chip, case, dtype, layout):
    """Bias, residual and activation, and what is kept for the backward."""
    chip(132)
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    residual = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    expected = reference_output(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_strided_1x1_reads_what_it_uses(chip, dtype):
    """A quarter of the pixels of x; so do taps that lie as far apart as the pixels."""
    chip(1)
    for case in (
        grouped("", 8, 16, 4, (32, 32), (1, 1), stride=(2, 2)),
        grouped("", 8, 8, 4, (33, 33), stride=(2, 2), padding=(2, 2, 2, 2), dilation=(2, 2)),
    ):
        x, w, bias, dy = tensors(case, dtype, "nhwc", integers)
        controls().reset()
        results(case, x, w, bias, dy)
        fprop = controls().launches()[0]
        gathered = 16 * fprop["global_loads"][16]
        used = x[:, :, ::2, ::2].numel() * x.element_size()
        weights = w.numel() * w.element_size()
        assert used <= gathered <= 1.3 * used + 4 * weights
