"""1x1 convolutions in half precision: the tensor-core product of their own, at the edges of its tiles."""

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
HALVES = {"nhwc": torch.float16, "nchw": torch.bfloat16}


def pointwise(id: str, channels: int, filters: int, image: tuple[int, int], batch: int = 2, **rest) -> Conv:
    return Conv(id, (batch, channels, *image), filters, (1, 1), **rest)


SHAPES = [
    pointwise("one-pixel", 5, 1, (1, 1), batch=1),
    pointwise("one-channel", 1, 9, (5, 7)),
    pointwise("one-filter", 9, 1, (5, 7)),
    pointwise("vector-minus-1", 7, 7, (3, 5)),
    pointwise("vector", 8, 16, (4, 6)),
    pointwise("vector-of-filters", 16, 8, (4, 6)),
    pointwise("vector-plus-1", 9, 9, (3, 5)),
    pointwise("half-vectors", 12, 20, (6, 6)),
    pointwise("step-minus-vector", 24, 40, (5, 5)),
    pointwise("step", 32, 32, (4, 8)),
    pointwise("step-plus-vector", 40, 24, (5, 5)),
    pointwise("tile-minus-vector", 56, 120, (8, 15), batch=1),
    pointwise("tile", 64, 128, (8, 16), batch=1),
    pointwise("tile-plus-1", 65, 129, (3, 43), batch=1),
    pointwise("tile-plus-vector", 72, 136, (8, 17), batch=1),
    pointwise("planes-of-4", 16, 24, (2, 2), batch=9),
    pointwise("planes-of-49", 16, 24, (7, 7), batch=3),
    pointwise("pixel-an-image", 96, 20, (1, 1), batch=5),
    pointwise("stride-2", 16, 24, (9, 7), stride=(2, 2)),
    pointwise("stride-2-even", 24, 16, (8, 16), stride=(2, 2)),
    pointwise("stride-of-rows", 16, 16, (7, 16), stride=(3, 1)),
    pointwise("stride-of-columns", 16, 16, (4, 9), stride=(1, 2)),
    pointwise("stride-over-image", 16, 8, (3, 4), stride=(5, 7)),
    # In 32 bits these would be cells of no pixel, and of one.
    pointwise("product-of-strides-2-to-the-32", 16, 24, (3, 4), stride=(1 << 16, 1 << 16)),
    pointwise("product-of-strides-2-to-the-32-plus-1", 16, 24, (3, 4), stride=(641, 6700417)),
    pointwise("stride-2-to-7x7", 40, 33, (14, 14), stride=(2, 2)),
    pointwise("stride-2-odd-channels", 33, 17, (6, 9), stride=(2, 2), batch=3),
    pointwise("stride-3x2-of-pairs", 9, 16, (7, 10), stride=(3, 2)),
]


def some(*ids: str) -> list[Conv]:
    return [case for case in SHAPES if case.id in ids]


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    dy = make(F.conv2d(x, w, stride=case.stride).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), LAYOUTS[layout](w), bias, LAYOUTS[layout](dy)


def torchs(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    """y, dx and dw as torch has them in the operands' dtype."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = F.conv2d(x, w, bias, case.stride)
    return (y.detach(), *torch.autograd.grad(y, (x, w), dy))


def references(case: Conv, *operands) -> tuple[torch.Tensor, ...]:
    return torchs(case, *(t.double() for t in operands))


def results(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, ...]:
    nhwc = x.stride(1) == 1
    return (
        OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, nhwc, False),
        OPS.conv2d_wgrad(dy, x, *case.kernel, *case.geometry, nhwc, False),
    )


def check(case: Conv, dtype: torch.dtype, layout: str) -> None:
    """Exact, and no launch beyond the kernel's but the sum of wgrad's splits."""
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    names = launched()
    # Few channels on one side may be the thin kernels'.
    thin = {"thin"} if min(case.input[1], case.out_channels) <= 8 else set()
    kernels = {name.split("_")[0] for name in names if name != "split_sum"}
    assert {"pointwise"} <= kernels <= {"pointwise"} | thin
    assert len([name for name in names if name != "split_sum"]) == len(PASSES)
    for name, value, expected in zip(PASSES, got, references(case, *operands), strict=True):
        assert_exact(value, expected, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", SHAPES)
def test_integers_are_exact(chip, case, layout, sm_count):
    """On 132 SMs mostly in small tiles; on one in large ones, of which a block has several."""
    chip(sm_count)
    check(case, HALVES[layout], layout)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "channel-slice", "batch-last"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)], ids=str)
def test_any_layout(chip, layout, stride):
    for sm_count in (132, 1):
        chip(sm_count)
        check(pointwise("", 24, 16, (8, 8), stride=stride), torch.float16, layout)


@pytest.mark.parametrize("vector", [8, 4, 1], ids=["aligned", "off-by-4", "off-by-1"])
def test_views_of_a_wider_channels_last_tensor(chip, vector):
    """DenseNet's concatenations: the next pixel is farther away than the channels are many. Off by 4
    channels, loads are narrower; off by one, they are of single elements."""
    chip(1)
    case = pointwise("", 32, 40, (6, 7))
    x, w, bias, dy = tensors(case, torch.bfloat16, "nhwc", integers)
    start = vector
    wide_x = torch.full((2, 6, 7, 64), 99.0, dtype=x.dtype)
    wide_dy = torch.full((2, 6, 7, 56), 99.0, dtype=x.dtype)
    view_x = wide_x[..., start : start + 32].permute(0, 3, 1, 2).copy_(x)
    view_dy = wide_dy[..., start : start + 40].permute(0, 3, 1, 2).copy_(dy)
    operands = (view_x, w, bias, view_dy)
    controls().reset()
    got = results(case, *operands)
    for name, value, expected in zip(PASSES, got, references(case, *operands), strict=True):
        assert_exact(value, expected, name)
    gathered = [x, dy, x]
    for launch, tensor in zip(controls().launches(), gathered, strict=False):
        bytes_of_one = tensor.numel() * tensor.element_size()
        assert 2 * vector * launch["global_loads"][2 * vector] >= bytes_of_one


@pytest.mark.parametrize("layouts", [("nhwc", "nchw"), ("nchw", "nhwc")], ids=str)
def test_mixed_layouts(chip, layouts):
    """x and dy lie differently: the tiles follow each."""
    chip(1)
    case = pointwise("", 24, 16, (8, 6), stride=(1, 1))
    x, w, bias, dy = tensors(case, torch.float16, layouts[0], integers)
    operands = (x, w, bias, LAYOUTS[layouts[1]](dy))
    for name, value, expected in zip(
        PASSES, results(case, *operands), references(case, *operands), strict=True
    ):
        assert_exact(value, expected, name)


def test_expanded_gradients(chip):
    """What `sum().backward()` gives: one element in memory, all strides zero."""
    chip(132)
    case = pointwise("", 16, 24, (5, 6))
    x, w, bias, dy = tensors(case, torch.float16, "nhwc", integers)
    operands = (x, w, bias, torch.tensor(2.0, dtype=x.dtype).expand(dy.shape))
    for name, value, expected in zip(
        PASSES, results(case, *operands), references(case, *operands), strict=True
    ):
        assert_exact(value, expected, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", some("tile-plus-1", "stride-2", "planes-of-49"))
def test_random_as_accurate_as_torch(chip, case, dtype, layout, sm_count):
    chip(sm_count)
    operands = tensors(case, dtype, layout, normal)
    for name, got, expected, other in zip(
        PASSES,
        results(case, *operands),
        references(case, *operands),
        torchs(case, *operands),
        strict=True,
    ):
        assert_accurate(got, expected, other, name)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [8, 1])
def test_thread_order_does_not_show(chip, layout, sm_count):
    chip(sm_count)
    case = pointwise("", 40, 24, (6, 6), batch=8, stride=(1, 1))
    operands = tensors(case, torch.bfloat16, layout, normal)
    seen = set()
    for seed in range(6):
        controls().set_seed(seed)
        seen.add(tuple(t.double().numpy().tobytes() for t in results(case, *operands)))
    assert len(seen) == 1


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", some("vector-plus-1", "step-plus-vector", "stride-2"))
def test_infinities_and_nan_stay_where_torch_leaves_them(chip, case, layout, sm_count):
    """Beside pixels, channels and filters that exist in a tile only as zeros."""
    chip(sm_count)
    x, w, bias, dy = tensors(case, torch.float16, layout, integers)
    x[0, 0, 0, 0] = x[-1, -1, -1, -1] = torch.inf
    x[0, -1, 1, 1] = torch.nan
    dy[0, 0, 0, 0] = dy[-1, -1, -1, -1] = -torch.inf
    w[-1, -1] = torch.inf
    for name, got, expected in zip(
        PASSES, results(case, x, w, bias, dy), references(case, x, w, bias, dy), strict=True
    ):
        assert_exact(got, expected, name)


@pytest.mark.parametrize(
    "case",
    [
        Conv("3x3", (1, 8, 5, 5), 8, (3, 3)),
        Conv("1x2", (1, 8, 5, 5), 8, (1, 2)),
        Conv("padded", (1, 8, 5, 5), 8, (1, 1), padding=(1, 1, 0, 0)),
        Conv("padded-after", (1, 8, 5, 5), 8, (1, 1), padding=(0, 1, 0, 0)),
        Conv("groups", (1, 8, 5, 5), 8, (1, 1), groups=2),
    ],
    ids=lambda case: case.id,
)
def test_other_shapes_are_other_kernels_(chip, case):
    chip(132)
    x, w = (integers(shape, torch.float16, "cpu") for shape in (case.input, case.weight))
    controls().reset()
    OPS.conv2d(x, w, None, None, *case.geometry, "none", 0.0, False)
    assert not launched()[0].startswith("pointwise")


#: Layers as ResNet-50, DenseNet and MobileNet have them, smaller, on a chip of one SM.
LAYERS = [
    pointwise("56-c64-k64", 64, 64, (28, 28), batch=1),
    pointwise("28-c128-k128", 128, 128, (28, 28), batch=1),
    pointwise("14-c96-k24", 96, 24, (14, 14), batch=4),
    pointwise("56-c64-k128-s2", 64, 128, (56, 28), batch=1, stride=(2, 2)),
    pointwise("7-c96-k40", 96, 40, (7, 7), batch=8),
    pointwise("odd-c63-k33", 63, 33, (19, 19), batch=1),
    pointwise("14-c64-k48-s2", 64, 48, (14, 14), batch=4, stride=(2, 2)),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@parametrize("case", LAYERS)
def test_bytes_near_the_floor(chip, case, layout):
    """x, y, dy and dx move once where one tile of columns covers the channels; the weights once a tile of
    128 pixels, from L2."""
    chip(1)
    x, w, _, dy = tensors(case, HALVES[layout], layout, integers)
    controls().reset()
    got = results(case, x, w, None, dy)
    used = x[:, :, :: case.stride[0], :: case.stride[1]]

    def size(*tensors: torch.Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    pixel_tiles = -(-dy.numel() // dy.shape[1] // 128)
    floors = {
        "fprop": size(used, dy) + pixel_tiles * size(w),
        "dgrad": size(dy, got[1]) + pixel_tiles * size(w),
        "wgrad": size(used, dy, w),
    }
    *launches, last = controls().launches()
    if last["name"] == "conv2d::split_sum":
        floors["wgrad"] += last["global_bytes_read"] - size(w)  # partial sums in place of the result
    else:
        launches.append(last)
    for launch, (name, floor) in zip(launches, floors.items(), strict=True):
        moved = launch["global_bytes_read"] + launch["global_bytes_written"]
        assert 0.9 * floor <= moved <= 1.10 * floor, (name, moved / floor)


def plan(op: str, batch: int, channels: int, filters: int, size: int, stride: int = 1, layout: str = "nhwc"):
    return fastcnn.plan(
        f"conv2d_{op}",
        (batch, channels, size, size),
        (filters, channels, 1, 1),
        stride=stride,
        dtype=torch.bfloat16,
        channels_last=layout == "nhwc",
        chip="H100",
    )


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_plans_say_what_they_do(emulated_on_cpu, layout):
    text = plan("fprop", 128, 64, 256, 56, layout=layout)
    assert text.kernel == "pointwise_fprop_mma"
    assert text.tile == "128x128x32"
    assert "x in loads of 16 bytes" in text.reason
    assert "stores of 16 bytes" in text.reason
    assert "tensor cores" in plan("wgrad", 128, 256, 64, 28, layout=layout).reason
    assert "x in loads of 8 bytes" in plan("fprop", 32, 64, 64, 14, layout="nchw").reason
    assert "x in loads of 16 bytes" in plan("fprop", 32, 64, 64, 28, layout="nchw").reason


def test_plans_say_what_single_elements_are(emulated_on_cpu):
    """Lanes run along what lies closest."""
    assert "x in loads of single elements, w of 16" in plan("fprop", 32, 512, 2048, 7, layout="nchw").reason
    assert "stores of single elements" in plan("fprop", 32, 512, 2048, 7, layout="nchw").reason
    assert "x in loads of single elements, w" in plan("fprop", 32, 65, 64, 28).reason
    assert "x in loads of single elements, 2 apart, w" in plan("fprop", 8, 64, 96, 28, 2, "nchw").reason
    assert "x of single elements, 2 apart," in plan("wgrad", 8, 64, 96, 28, 2, "nchw").reason
    assert "stores of 4 bytes, with a zero each" in plan("dgrad", 8, 64, 96, 28, 2, "nchw").reason
    assert "stores of single elements, 2 apart" in plan("dgrad", 8, 64, 96, 27, 2, "nchw").reason
    assert "partial sums in stores of 16 bytes" in plan("wgrad", 32, 64, 96, 28).reason
    assert "partial sums in stores of single elements" in plan("wgrad", 32, 63, 96, 28).reason


def test_strided_gradients_are_stored_with_their_zeros(chip):
    """By words of two pixels where rows are even, by elements otherwise."""
    chip(1)
    for width, words in ((16, 1), (15, 0)):
        case = pointwise("", 16, 24, (6, width), stride=(2, 2))
        _, w, _, dy = tensors(case, torch.float16, "nchw", integers)
        controls().reset()
        dx = OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, False, False)
        (launch,) = controls().launches()
        assert launch["global_stores"][4] == words * dx.numel() // 2
        assert launch["global_stores"][2] == (1 - words) * dx.numel()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("channels", "filters"), [(9, 17), (12, 17), (17, 12)])
def test_partial_sums_of_any_size(chip, channels, filters, layout):
    """Splits of odd matrices, and of even ones with an odd bias gradient behind each."""
    chip(132)
    case = pointwise("", channels, filters, (27, 27), batch=1)
    x, _, _, dy = tensors(case, HALVES[layout], layout, integers)
    controls().reset()
    dw, db = OPS.conv2d_act_wgrad(
        dy, None, x, *case.kernel, *case.geometry, "none", 0.0, True, layout == "nhwc", False
    )
    assert launched() == ["pointwise_wgrad_mma", "split_sum"]
    assert_exact(dw, torch.einsum("nkhw,nchw->kc", dy.double(), x.double())[..., None, None], "wgrad")
    assert_exact(db, dy.double().sum((0, 2, 3)), "bias")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    ("channels", "filters", "size"),
    [
        (64, 256, 56),
        (256, 64, 56),
        (512, 128, 28),
        (128, 512, 28),
        (1024, 256, 14),
        (512, 2048, 7),
        (2048, 512, 7),
    ],
)
def test_one_image_fills_the_chip_without_workspace(emulated_on_cpu, channels, filters, size, layout):
    for op in ("fprop", "dgrad"):
        text = plan(op, 1, channels, filters, size, layout=layout)
        assert text.workspace_bytes == 0
        assert text.grid >= 0.7 * 132, text


def test_small_problems_are_not_split(emulated_on_cpu):
    for channels, filters in ((96, 4), (1152, 48), (48, 1152)):
        for op in PASSES:
            text = plan(op, 128, channels, filters, 1)
            assert (text.splits, text.workspace_bytes) == (1, 0)
    assert plan("wgrad", 1, 512, 2048, 7).splits == 1
    assert plan("wgrad", 128, 64, 256, 56).splits > 64


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", some("half-vectors", "stride-2", "planes-of-49", "tile-plus-vector"))
def test_fused_backward_is_the_unfused_one(chip, case, sm_count, activation, layout):
    """Bit for bit; and the bias gradient that wgrad sums beside its own is exact on whole numbers."""
    chip(sm_count)
    dtype = HALVES[layout]
    x, w, _, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    nhwc = layout == "nhwc"
    act = (activation, 0.1)
    grad = through_activation(dy, saved, *act, nhwc)
    assert not torch.equal(grad, dy)

    controls().reset()
    dx = OPS.conv2d_act_dgrad(dy, saved, w, *case.input[2:], *case.geometry, *act, nhwc, False)
    dw, db = OPS.conv2d_act_wgrad(dy, saved, x, *case.kernel, *case.geometry, *act, True, nhwc, False)
    assert all(name.startswith("pointwise") or name == "split_sum" for name in launched())
    assert torch.equal(dx, OPS.conv2d_dgrad(grad, w, *case.input[2:], *case.geometry, nhwc, False))
    assert torch.equal(dw, OPS.conv2d_wgrad(grad, x, *case.kernel, *case.geometry, nhwc, False))
    assert_accurate(db, grad.double().sum((0, 2, 3)), grad.sum((0, 2, 3)), "bias")

    whole = LAYOUTS[layout](integers(dy.shape, dtype, "cpu"))
    _, db = OPS.conv2d_act_wgrad(whole, None, x, *case.kernel, *case.geometry, "none", 0.0, True, nhwc, False)
    assert_exact(db, whole.double().sum((0, 2, 3)), "bias")


def test_the_backward_fits_chips_of_little_shared_memory(emulated_on_cpu):
    """The small tile is the best for few results, but with `saved` too large for 99 KiB: others are taken."""
    device = controls()
    case = pointwise("few-results", 64, 96, (4, 4))
    x, _, _, dy = tensors(case, torch.float16, "nhwc", integers)
    saved = torch.ones_like(dy)
    try:
        device.set_chip(compute_capability=89, sm_count=128, shared_bytes_per_block=99 * 1024)
        device.reset()
        dw, db = OPS.conv2d_act_wgrad(
            dy, saved, x, *case.kernel, *case.geometry, "relu", 0.0, True, True, False
        )
        names = launched()
    finally:
        device.set_chip()
    assert all(name.startswith("pointwise") or name == "split_sum" for name in names)
    assert_exact(dw, torch.einsum("nkhw,nchw->kc", dy.double(), x.double())[..., None, None], "wgrad")
    assert_exact(db, dy.double().sum((0, 2, 3)), "bias")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("sm_count", [132, 1])
@parametrize("case", some("vector-plus-1", "half-vectors", "planes-of-49", "tile", "stride-2"))
def test_epilogue(chip, case, sm_count, layout):
    """Bias, residual and activation, and what is kept for the backward."""
    chip(sm_count)
    x, w, bias, dy = tensors(case, HALVES[layout], layout, integers)
    residual = LAYOUTS[layout](integers(dy.shape, x.dtype, "cpu", seed=5))
    expected = F.conv2d(x.double(), w.double(), bias.double(), case.stride) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(x.dtype))


def test_a_bias_off_its_alignment(chip):
    chip(1)
    case = pointwise("", 16, 24, (4, 4))
    x, w, bias, _ = tensors(case, torch.float16, "nhwc", integers)
    shifted = torch.zeros(25, dtype=bias.dtype)[1:].copy_(bias)
    y = OPS.conv2d(x, w, shifted, None, *case.geometry, "none", 0.0, False)
    assert_exact(y, F.conv2d(x.double(), w.double(), bias.double()), "fprop")
