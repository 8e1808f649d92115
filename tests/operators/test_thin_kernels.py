"""Convolutions of few input channels: their own kernels, at the edges of rows, vectors and tiles."""

from __future__ import annotations

import math
from dataclasses import replace

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
PASSES = ("fprop", "wgrad")


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
    thin("alexnet", 3, 64, (19, 23), (11, 11), batch=1, stride=(4, 4), padding=(2, 2, 2, 2)),
    thin("filters-minus-1", 3, 63, (5, 8), **SAME),
    thin("filters-plus-1", 3, 65, (5, 8), **SAME),
    thin("filters-7", 3, 7, (5, 8), **SAME),
    thin("filters-9", 3, 9, (5, 8), **SAME),
    thin("one-filter", 2, 1, (5, 8), **SAME),
    thin("many-filters", 3, 300, (3, 4), batch=1, **SAME),
    thin("weights-in-slabs", 4, 136, (5, 5), (7, 7), batch=1, **STEM),
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
    # Strides that are never walked allow vectors, the last of which is not whole.
    thin("one-row-one-filter", 2, 1, (1, 9), (1, 3), batch=1, padding=(0, 0, 1, 1)),
    thin("one-pixel-9-filters", 3, 9, (3, 3), batch=1),
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


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    names = [name for name in launched() if name != "split_sum"]
    suffix = "" if dtype == torch.float32 else "_mma"
    assert names == [f"thin_{name}{suffix}" for name in PASSES]
    for name, expected in references(case, *operands).items():
        assert_exact(got[name], expected, name)


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def named(*ids: str) -> list[Conv]:
    return [case for case in SHAPES if case.id in ids]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout):
    chip(132)
    # A shape takes float32 in one of the layouts. The two half types share their kernels' code.
    if SHAPES.index(case) % 2 == (layout == "nhwc"):
        check(case, torch.float32, layout)
    check(case, torch.float16 if layout == "nhwc" else torch.bfloat16, layout)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", named("stem-odd", "c1", "c3", "tile-plus-1"))
def test_a_block_walks_many_tiles(chip, case, dtype, layout):
    """On a chip of one SM, blocks have several tiles each, and wgrad few splits."""
    chip(1)
    check(case.with_batch(5), dtype, layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_layout(chip, dtype, layout):
    chip(132)
    check(thin("", 3, 24, (6, 8), **SAME), dtype, layout)
    check(thin("", 4, 8, (9, 8), (5, 5), stride=(2, 2), padding=(2, 2, 2, 2)), dtype, layout)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_that_start_anywhere(chip, dtype, layout):
    """Every place within 16 bytes at which an image and its rows can begin, and outputs as well."""
    chip(132)
    for width in (17, 18):
        case = thin("", 3, 8, (4, width), (3, 5), stride=(1, 2), padding=(1, 1, 2, 2))
        x, w, bias, dy = tensors(case, dtype, layout, integers)
        for offset in range(0, 16 // dtype.itemsize, 1 if width == 18 else 5):
            moved = []
            for tensor in (x, w, dy):
                flat = torch.full((tensor.numel() + 16,), 99, dtype=dtype)
                moved.append(flat[offset:].as_strided(tensor.shape, tensor.stride()).copy_(tensor))
            got = results(case, moved[0], moved[1], bias, moved[2])
            for name, expected in references(case, x, w, bias, dy).items():
                assert_exact(got[name], expected, f"{name}, width {width}, offset {offset}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", named("stem", "c1", "c3-odd", "stride-2", "patch"))
def test_random_as_accurate_as_torch(chip, case, dtype, layout):
    chip(4)
    operands = tensors(case, dtype, layout, normal)
    got, expected, other = results(case, *operands), references(case, *operands), torchs(case, *operands)
    for name in PASSES:
        assert_accurate(got[name], expected[name], other[name], name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_thread_order_does_not_show(chip, dtype, layout):
    chip(2)
    case = thin("", 3, 24, (9, 12), (5, 5), stride=(2, 2), padding=(2, 2, 2, 2))
    operands = tensors(case, dtype, layout, normal)
    seen = set()
    for seed in range(6):
        controls().set_seed(seed)
        got = results(case, *operands).values()
        seen.add(tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in got))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        thin("c5", 5, 9, (5, 5), **SAME),
        thin("c6-two-groups", 6, 8, (5, 5), groups=2, **SAME),
        thin("too-many-taps", 4, 8, (20, 13), (12, 11), padding=(0, 0, 2, 2)),
        thin("box-too-large", 3, 8, (140, 140), (2, 2), batch=1, dilation=(120, 120)),
    ],
    ids=lambda case: case.id,
)
def test_other_shapes_are_the_generic_kernel_s(chip, case, dtype):
    chip(132)
    operands = tensors(case, dtype, "nhwc", integers)
    controls().reset()
    got = results(case, *operands)
    assert {name for name in launched() if name != "split_sum"} == {f"generic_{name}" for name in PASSES}
    for name, expected in references(case, *operands).items():
        assert_exact(got[name], expected, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [31, 32])
def test_infinities_stay_where_torch_leaves_them(chip, dtype, width, layout):
    """In pixels, channels and filters; and what pads taps, tiles and reductions meets none of them."""
    chip(132)
    # Of 40 rows, stride 2 without padding reads 39: what stands in the last one must not be seen, though the
    # last tile reaches over it.
    case = thin("", 3, 24, (40, width), stride=(2, 2))
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    x[:, :, 39, :] = torch.inf
    if width % 2 == 0:
        x[:, :, :, width - 1] = torch.inf
    x[0, 1, 2, 3] = torch.inf
    dy[1, 9, 1, 1] = torch.inf
    # In a tile's first pixel, where one that does not exist would lie, were it not zeros.
    x[0, 2, 1, 1] = torch.inf
    dy[0, :, 0, 0] = 1
    got = results(case, x, w, bias, dy)
    for name, expected in references(case, x, w, bias, dy).items():
        assert_exact(got[name], expected, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@parametrize("case", named("c1", "c3", "stem-odd", "filters-9"))
def test_fused_backward_is_the_unfused_one(chip, case, activation, dtype, layout):
    """Bit for bit; and the bias gradient that wgrad sums beside its own is exact on whole numbers."""
    chip(3)
    x, _, _, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    nhwc = layout == "nhwc"
    act = (activation, 0.1)
    grad = through_activation(dy, saved, *act, nhwc)
    assert not torch.equal(grad, dy)

    controls().reset()
    dw, db = OPS.conv2d_act_wgrad(dy, saved, x, *case.kernel, *case.geometry, *act, True, nhwc, False)
    assert all(name.startswith("thin") or name == "split_sum" for name in launched())
    alone, _ = OPS.conv2d_act_wgrad(
        grad, None, x, *case.kernel, *case.geometry, "none", 0.0, True, nhwc, False
    )
    assert torch.equal(dw, alone)
    assert_accurate(dw, OPS.conv2d_wgrad(grad, x, *case.kernel, *case.geometry, nhwc, False).double(), alone)
    assert_accurate(db, grad.double().sum((0, 2, 3)), grad.sum((0, 2, 3)), "bias")

    whole = LAYOUTS[layout](integers(dy.shape, dtype, "cpu"))
    _, db = OPS.conv2d_act_wgrad(whole, None, x, *case.kernel, *case.geometry, "none", 0.0, True, nhwc, False)
    assert_exact(db, whole.double().sum((0, 2, 3)), "bias")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", named("c1", "c3-odd", "filters-9"))
def test_epilogue(chip, case, dtype, layout):
    """Bias, residual and activation, and what is kept for the backward."""
    chip(132)
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    residual = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    expected = reference_output(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))


#: First layers of ImageNet models and of a small CNN on a part of an image, a chip as many times smaller.
FIRST_LAYERS = [
    thin("7x7-s2", 3, 64, (112, 112), (7, 7), batch=1, **STEM),
    thin("3x3", 3, 64, (56, 56), batch=1, **SAME),
    thin("3x3-s2", 3, 32, (112, 112), batch=1, stride=(2, 2), **SAME),
    thin("patch", 3, 96, (112, 112), (4, 4), batch=1, stride=(4, 4)),
    thin("11x11-s4", 3, 64, (112, 112), (11, 11), batch=1, stride=(4, 4), padding=(2, 2, 2, 2)),
    thin("c1-28", 1, 32, (28, 28), batch=4, **SAME),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", FIRST_LAYERS)
def test_bytes_near_the_floor(chip, case, dtype, layout):
    """Every access counts, as if there were no cache: halos and what blocks read in common included. What
    every block reads or writes once, its weights or its sums, is a small part of a whole layer, not of this.
    """
    chip(1)
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    controls().reset()
    results(case, x, w, bias, dy)
    fprop, wgrad, *_ = controls().launches()
    image, output = (t.numel() * t.element_size() for t in (x, dy))
    weights = fprop["grid"][0] * w.numel() * w.element_size()
    sums = wgrad["global_bytes_written"]
    assert fprop["global_bytes_written"] == output
    for launch, more in ((fprop, weights), (wgrad, sums)):
        moved = launch["global_bytes_read"] + launch["global_bytes_written"] - more
        # In float32 the weights of 11x11 leave little room to pixels; FMA units take much longer anyway.
        most = 2 if case.id == "11x11-s4" and dtype == torch.float32 else 1.25
        assert moved <= most * (image + output), (launch["name"], moved / (image + output))
        assert 16 * launch["global_loads"][16] >= 0.8 * image


def test_wgrad_is_one_round_of_the_blocks_that_fit(emulated_on_cpu):
    """On an A100 shared memory, not registers, says how many."""
    plan = fastcnn.plan(
        "conv2d_wgrad",
        (128, 3, 224, 224),
        (64, 3, 7, 7),
        stride=2,
        padding=3,
        dtype=torch.float32,
        chip="A100",
    )
    assert plan.kernel == "thin_wgrad"
    resident = 108 * (164 * 1024 // (plan.shared_bytes + 1024))
    assert 0.9 * resident <= plan.grid <= resident


@pytest.mark.parametrize("width", [224, 1440, 3840])
def test_few_outputs_of_wide_images(emulated_on_cpu, width):
    layer = {"padding": 2, "dtype": torch.bfloat16, "channels_last": True, "chip": "H200"}
    assert fastcnn.plan("conv2d_fprop", (1, 64, 32, width), (3, 64, 5, 5), **layer).kernel == "thin_fprop"


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_and_sums_are_small_beside_a_layer(channels_last):
    for shape, weight, stride, padding in (
        ((256, 3, 224, 224), (64, 3, 7, 7), 2, 3),
        ((256, 3, 224, 224), (64, 3, 3, 3), 1, 1),
        ((256, 3, 224, 224), (96, 3, 4, 4), 4, 0),
        ((256, 3, 224, 224), (64, 3, 11, 11), 4, 2),
    ):
        options = {"stride": stride, "padding": padding, "channels_last": channels_last, "chip": "H200"}
        fprop = fastcnn.plan("conv2d_fprop", shape, weight, dtype=torch.bfloat16, **options)
        wgrad = fastcnn.plan("conv2d_wgrad", shape, weight, dtype=torch.bfloat16, **options)
        assert (fprop.kernel, wgrad.kernel) == ("thin_fprop", "thin_wgrad")
        assert "16-byte loads" in fprop.reason
        assert "tensor cores" in wgrad.reason
        size = 2 * math.prod(shape) + 2 * shape[0] * weight[0] * (shape[2] // stride) ** 2
        assert fprop.grid * 2 * math.prod(weight) < size / 8
        assert 2 * wgrad.workspace_bytes < size / 6


def last(id: str, channels: int, filters: int, image: tuple[int, int], kernel=(3, 3), **rest):
    return thin(id, channels, filters, image, kernel, **rest)


#: Few output channels; turned around, what dgrad of a first layer computes.
LAST_LAYERS = [
    last("k1", 8, 1, (6, 7), **SAME),
    last("k3", 64, 3, (9, 11), **SAME),
    last("k4", 40, 4, (5, 8), **SAME),
    last("k8", 24, 8, (7, 5), **SAME),
    last("c-two-steps", 72, 2, (4, 5), **SAME),
    last("5x5", 16, 3, (8, 9), (5, 5), padding=(2, 2, 2, 2)),
    last("1x1", 32, 5, (5, 7), (1, 1)),
    last("1x1-image", 16, 2, (1, 1), (1, 1)),
    last("one-column", 16, 3, (9, 1), (3, 1), padding=(1, 1, 0, 0)),
    last("wide-image", 8, 2, (2, 300), batch=1, **SAME),
    last("tall-image", 8, 2, (300, 2), batch=1, **SAME),
    last("dilated", 16, 3, (9, 12), padding=(2, 2, 3, 3), dilation=(2, 3)),
    last("pad-kernel-minus-1", 16, 3, (4, 5), (3, 4), padding=(2, 2, 3, 3)),
    last("asymmetric-padding", 16, 3, (6, 5), (2, 4), padding=(0, 1, 1, 2)),
    last("kernel-over-image", 8, 2, (3, 4), (7, 5), padding=(3, 3, 2, 2)),
    last("many-tiles", 8, 3, (40, 37), **SAME),
]


def turned(case: Conv) -> Conv:
    n, c, h, w = case.input
    return replace(case, input=(n, case.out_channels, h, w), out_channels=c)


def outputs(case: Conv, x, w, bias, dy, saved=None) -> torch.Tensor:
    """dgrad, NHWC."""
    if saved is None:
        return OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, True, False)
    return OPS.conv2d_act_dgrad(dy, saved, w, *case.input[2:], *case.geometry, "gelu", 0.0, True, False)


def check_outputs(case: Conv, dtype: torch.dtype, make=integers) -> None:
    """fprop of the case and dgrad of the turned one."""
    x, w, bias, dy = tensors(case, dtype, "nhwc", make)
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert launched() == ["thin_fprop_output_mma"]
    back = turned(case)
    bx, bw, bbias, bdy = tensors(back, dtype, "nhwc", make)
    controls().reset()
    dx = outputs(back, bx, bw, bbias, bdy)
    assert launched() == ["thin_dgrad_mma"]

    def dgrad(w, dy):
        x = bx.to(w.dtype).requires_grad_()
        return torch.autograd.grad(reference_output(back, x, w, None), x, dy)[0]

    exact = (references(case, x, w, bias, dy)["fprop"], dgrad(bw.double(), bdy.double()))
    if make is integers:
        assert_exact(y, exact[0], "fprop")
        assert_exact(dx, exact[1], "dgrad")
    else:
        assert_accurate(y, exact[0], torchs(case, x, w, bias, dy)["fprop"], "fprop")
        assert_accurate(dx, exact[1], dgrad(bw, bdy), "dgrad")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@parametrize("case", LAST_LAYERS)
def test_few_outputs_are_exact(chip, case, dtype):
    chip(132 if dtype == torch.float16 else 1)
    check_outputs(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@parametrize("case", [case for case in LAST_LAYERS if case.id in ("k3", "k8", "5x5")])
def test_few_outputs_as_accurate_as_torch(chip, case, dtype):
    chip(4)
    check_outputs(case, dtype, normal)


def test_few_outputs_fuse_what_others_do(chip):
    """The epilogue of fprop; the activation's backward in dgrad's loads, bit for bit."""
    chip(4)
    case = LAST_LAYERS[1]
    dtype = torch.bfloat16
    x, w, bias, dy = tensors(case, dtype, "nhwc", integers)
    residual = LAYOUTS["nhwc"](integers(dy.shape, dtype, "cpu", seed=5))
    expected = reference_output(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))

    back = turned(case)
    x, w, bias, dy = tensors(back, dtype, "nhwc", normal)
    saved = LAYOUTS["nhwc"](normal(dy.shape, dtype, "cpu", seed=5))
    ones = torch.ones(dy.shape[1], 1, 1, 1, dtype=dtype)
    pointwise = (1, 1, 0, 0, 0, 0, 1, 1, dy.shape[1])
    grad = OPS.conv2d_act_dgrad(dy, saved, ones, *dy.shape[2:], *pointwise, "gelu", 0.0, True, False)
    assert torch.equal(outputs(back, x, w, bias, dy, saved), outputs(back, x, w, bias, grad))


def test_few_outputs_keep_infinities_apart(chip):
    """In channels, rows, and where the padding of channels and columns would meet them."""
    chip(132)
    case = last("", 40, 3, (9, 10))
    x, w, bias, dy = tensors(case, torch.float16, "nhwc", integers)
    x[0, 39, 2, 3] = torch.inf
    w[1, 38, 1, 1] = torch.inf
    x[1, 38] = 1
    x[0, 38] = 2
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert launched()[-1] == "thin_fprop_output_mma"
    assert_exact(y, references(case, x, w, bias, dy)["fprop"])


def test_few_outputs_read_x_about_once(chip):
    chip(1)
    case = last("", 64, 3, (64, 64), batch=1, **SAME)
    x, w, bias, dy = tensors(case, torch.bfloat16, "nhwc", integers)
    controls().reset()
    OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    (launch,) = controls().launches()
    floor = 2 * (x.numel() + dy.numel())
    moved = launch["global_bytes_read"] + launch["global_bytes_written"] - launch["grid"][0] * 2 * w.numel()
    assert moved <= 1.3 * floor, moved / floor


@pytest.mark.parametrize(
    "case",
    [
        last("c12", 12, 3, (6, 5), **SAME),
        last("stride-2", 16, 3, (6, 5), stride=(2, 2), **SAME),
        last("many-columns", 16, 4, (6, 6), (5, 5), padding=(2, 2, 2, 2)),
        last("many-channels", 520, 3, (3, 3), batch=1, **SAME),
    ],
    ids=lambda case: case.id,
)
def test_other_few_outputs_reduce_rows_of_taps(chip, case):
    """test_thin_output_rows.py has what that kernel leaves."""
    chip(132)
    x, w, bias, dy = tensors(case, torch.float16, "nhwc", integers)
    controls().reset()
    y = OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False)
    assert launched() == ["thin_fprop_output_rows"]
    assert_exact(y, references(case, x, w, bias, dy)["fprop"])
