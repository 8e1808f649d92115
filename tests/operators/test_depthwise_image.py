"""The fast kernels of depthwise fprop and dgrad: values at the edges of their tiles, bytes near the floor."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.testing import assert_accurate, assert_exact
from tests.emulator import controls

from .fused_backward import launched
from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
HALVES = (torch.float16, torch.bfloat16)


def layer(id: str, channels: int, image: tuple[int, int], kernel: int | tuple[int, int] = 3, **rest) -> Conv:
    """Square settings may be one number; "same" padding unless `pad` says otherwise."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    stride, dilation = rest.get("stride", 1), rest.get("dilation", 1)
    stride = (stride, stride) if isinstance(stride, int) else stride
    dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
    pad = rest.get("pad", tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)))
    pad = (pad, pad) if isinstance(pad, int) else pad
    pad = pad if len(pad) == 4 else (pad[0], pad[0], pad[1], pad[1])
    input = (rest.get("batch", 2), channels, *image)
    return Conv(id, input, channels, kernel, stride, pad, dilation, channels)


#: (kernel, stride, dilation) of the strips.
KINDS = [(k, s, d) for k in (3, 5, 7) for s, d in ((1, 1), (2, 1), (1, 2), (2, 2))]

STRIPS = [
    *(layer(f"{k}x{k}-stride-{s}-dilation-{d}", 16, (9, 16), k, stride=s, dilation=d) for k, s, d in KINDS),
    layer("one-pixel", 8, (1, 1)),
    layer("one-row", 8, (1, 15), 5),
    layer("one-column", 8, (15, 1), 5),
    layer("tile-minus-1", 8, (7, 6)),
    layer("tile", 8, (8, 7)),
    layer("tile-plus-1", 8, (9, 8)),
    layer("no-padding", 8, (9, 10), pad=0),
    layer("no-padding-stride-2", 8, (9, 10), pad=0, stride=2),
    layer("no-padding-5x5-stride-2", 8, (10, 11), 5, pad=1, stride=2),
    layer("pad-kernel-minus-1", 8, (5, 6), 5, pad=4),
    layer("pad-kernel-minus-1-stride-2", 8, (5, 6), 5, pad=4, stride=2),
    layer("pad-over-kernel", 8, (4, 3), pad=4),
    layer("pad-over-kernel-stride-2", 8, (4, 3), pad=5, stride=2),
    layer("asymmetric-padding", 8, (7, 9), pad=(0, 1, 2, 0)),
    layer("asymmetric-padding-stride-2", 8, (7, 9), pad=(0, 1, 2, 1), stride=2),
    layer("kernel-over-image", 8, (3, 2), 7),
    layer("kernel-over-image-stride-2", 8, (3, 2), 7, stride=2),
    layer("dilation-over-image", 8, (4, 5), dilation=3),
    layer("dilation-without-padding", 8, (11, 9), dilation=2, pad=0),
    layer("uneven-dilation", 8, (9, 12), dilation=(1, 3)),
    layer("stride-4-dilation-2", 8, (14, 13), dilation=2, stride=4, pad=1),
    layer("stride-3-dilation-3", 8, (14, 13), dilation=3, stride=3, pad=1),
    layer("stride-2-dilation-3", 8, (10, 15), dilation=3, stride=2),
    layer("stride-2-dilation-4", 8, (11, 15), dilation=4, stride=2, pad=3),
    layer("pad-over-kernel-dilated", 8, (8, 9), dilation=2, pad=7),
    layer("pad-over-kernel-stride-2-dilation-2", 8, (8, 9), dilation=2, stride=2, pad=7),
    layer("channels-of-several-chunks", 136, (3, 4), 5),
    layer("wide", 8, (3, 300), 3, batch=1),
    layer("wide-stride-2", 8, (4, 290), 5, batch=1, stride=2),
    layer("wide-of-many-channels", 64, (2, 80), 7, batch=1),
    layer("tall", 8, (90, 2), 3, batch=1),
    layer("many-steps", 64, (40, 15), batch=1),
    layer("many-steps-stride-2", 64, (40, 31), 5, batch=1, stride=2),
]

#: What dgrad leaves to the kernel for every shape: a stride that its step does not have.
STRIDED = {"stride-4-dilation-2", "stride-2-dilation-3"}
#: Left to it as a whole: most of what threads make would not exist.
IDLE = {"dilation-over-image"}


def tensors(case: Conv, dtype: torch.dtype, layout: str, make) -> tuple[torch.Tensor, ...]:
    """x, w, bias and dy."""
    x, w = make(case.input, dtype, "cpu", seed=1), make(case.weight, dtype, "cpu", seed=2)
    bias = make((case.out_channels,), dtype, "cpu", seed=3)
    dy = make(reference(case, x, w, None).shape, dtype, "cpu", seed=4)
    return LAYOUTS[layout](x), w, bias, LAYOUTS[layout](dy)


def reference(case: Conv, x, w, bias) -> torch.Tensor:
    top, bottom, left, right = case.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, bias, case.stride, 0, case.dilation, case.groups)


def references(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, torch.Tensor]:
    """y and dx in the operands' dtype."""
    x = x.detach().requires_grad_()
    y = reference(case, x, w, bias)
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def results(case: Conv, x, w, bias, dy) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        OPS.conv2d(x, w, bias, None, *case.geometry, "none", 0.0, False),
        OPS.conv2d_dgrad(dy, w, *case.input[2:], *case.geometry, x.stride(1) == 1, False),
    )


def check(case: Conv, dtype: torch.dtype, layout: str, names: list[str]) -> None:
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    got = results(case, *operands)
    assert launched() == names
    wanted = references(case, *(t.double() for t in operands))
    for name, value, expected in zip(names, got, wanted, strict=True):
        assert_exact(value, expected, name)


def names(case: Conv, kernel: str) -> list[str]:
    fprop = "depthwise" if case.id in IDLE else kernel
    dgrad = "depthwise" if case.id in IDLE | STRIDED else kernel
    return [f"{fprop}_fprop", f"{dgrad}_dgrad"]


@parametrize("case", STRIPS)
def test_strips_are_exact(chip, case):
    chip(1)  # long strips
    check(case, torch.float32, "nhwc", names(case, "depthwise_strip"))
    chip(132)
    # The two half types share their kernels' code: they take turns.
    check(case, HALVES[len(case.id) % 2], "nhwc", names(case, "depthwise_strip"))


#: Planes that come whole, rows that come as one run, and parts of rows: of wide images, of a class of rows,
#: of the rows that a stride leaves.
TILES = [
    # Of one pixel, either layout is NHWC.
    *(case for case in STRIPS if case.id != "one-pixel"),
    layer("planes-of-odd-size", 9, (7, 7), batch=3),
    layer("dilated-planes-of-odd-size", 9, (7, 7), batch=3, dilation=2),
    layer("one-channel-more-than-a-block", 65, (3, 3), 5, batch=1),
    layer("rows-in-strips", 2, (70, 90), batch=1),
    layer("rows-in-strips-stride-2", 2, (70, 90), 5, batch=1, stride=2),
    layer("a-strip-below-the-image", 1, (250, 91), batch=1, pad=(1, 45, 1, 1)),
    layer("a-strip-below-the-image-stride-2", 1, (250, 91), batch=1, stride=2, pad=(1, 75, 1, 1)),
    layer("columns-in-parts", 2, (6, 1500), batch=1),
    layer("columns-in-parts-stride-2", 1, (5, 1501), batch=1, stride=2),
    layer("columns-in-parts-no-padding", 1, (10, 1003), 5, batch=1, stride=2, pad=0),
    layer("columns-in-parts-pad-over-kernel", 1, (6, 1002), batch=1, pad=4),
    layer("columns-in-parts-dilated", 1, (9, 1203), batch=1, dilation=2),
    layer("rows-of-a-class", 2, (71, 91), batch=1, dilation=2, pad=1),
    layer("rows-of-a-class-5x5", 1, (45, 91), 5, batch=1, dilation=3),
    layer("rows-of-a-class-dilation-12", 1, (33, 33), batch=1, dilation=12),
    layer("rows-left-out", 3, (9, 70), dilation=2, stride=2),
    layer("rows-left-out-stride-4", 2, (17, 67), dilation=4, stride=4, pad=3),
    layer("rows-of-a-class-stride-2", 1, (71, 97), batch=1, dilation=2, stride=2, pad=1),
]


@parametrize("case", TILES)
def test_tiles_are_exact(chip, case):
    chip(2)
    check(case, torch.float32, "nchw", names(case, "depthwise_tile"))
    check(case, HALVES[len(case.id) % 2], "nchw", names(case, "depthwise_tile"))


@pytest.mark.parametrize(
    ("size", "rest", "tile"),
    [
        ((56, 56), {"dilation": 2, "padding": 2}, "1 plane"),
        ((224, 224), {"padding": 1}, "16 rows of one plane"),
        ((224, 224), {"dilation": 2, "padding": 2}, "28 x 112 of one plane"),
        ((64, 64), {"dilation": 2, "padding": 2, "stride": 2}, "32 x 32 of one plane"),
        ((1080, 1920), {"padding": 1}, r"\d+ x \d+ of one plane"),
    ],
)
def test_what_a_tile_is(emulated_on_cpu, size, rest, tile):
    plan = fastcnn.plan("conv2d_fprop", (1, 512, *size), (512, 1, 3, 3), groups=512, chip="H200", **rest)
    assert plan.kernel == "depthwise_tile_fprop"
    assert re.fullmatch(f"{tile}; a thread makes 4 x 7", plan.tile), plan.tile


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (layer("a target a class", 8, (9, 9), dilation=9), "nchw"),
        (layer("a target a class", 8, (9, 9), dilation=9), "nhwc"),
        (layer("half a vector of channels", 12, (5, 5)), "nhwc"),
        (layer("other taps", 8, (6, 6), (3, 5)), "nhwc"),
        (layer("stride 3", 8, (9, 9), stride=3), "nhwc"),
        (layer("two strides", 8, (9, 9), stride=(1, 2)), "nchw"),
    ],
    ids=lambda value: value.id if isinstance(value, Conv) else value,
)
def test_the_rest_is_left_to_the_kernels_for_every_shape(chip, case, layout):
    check(case, torch.float16, layout, ["depthwise_fprop", "depthwise_dgrad"])


SOME_IDS = (
    "3x3-stride-1-dilation-1",
    "5x5-stride-2-dilation-1",
    "7x7-stride-1-dilation-1",
    "no-padding-stride-2",
    "3x3-stride-1-dilation-2",
    "3x3-stride-2-dilation-2",
)
SOME = [case for case in STRIPS if case.id in SOME_IDS]
#: Parts of rows too.
SOME += [
    layer("columns-in-parts", 8, (9, 520), batch=1),
    layer("rows-left-out", 8, (9, 67), dilation=2, stride=2, batch=1),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", SOME)
def test_random_numbers_are_as_accurate_as_torch(chip, case, dtype, layout):
    operands = tensors(case, dtype, layout, normal)
    wanted = references(case, *(t.double() for t in operands))
    for got, expected, other in zip(
        results(case, *operands), wanted, references(case, *operands), strict=True
    ):
        assert_accurate(got, expected, other)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", SOME)
def test_epilogue(chip, case, dtype, layout):
    """Bias, residual and activation, and what is kept for the backward."""
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    residual = LAYOUTS[layout](integers(dy.shape, dtype, "cpu", seed=5))
    expected = reference(case, x.double(), w.double(), bias.double()) + residual.double()
    y, kept = OPS.conv2d_with_preactivation(x, w, bias, residual, *case.geometry, "hardswish", 0.0, False)
    assert_exact(kept, expected, "preactivation")
    torch.testing.assert_close(y, F.hardswish(expected).to(dtype))


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "channel-slice"])
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(torch.float32, "gelu"), (torch.float16, "relu"), (torch.bfloat16, "hardswish")],
    ids=str,
)
@parametrize("case", SOME)
def test_dgrad_through_an_activation(chip, case, activation, dtype, layout):
    """Bit for bit what the activation's backward and dgrad give one after the other; in the kernels for every
    shape and for many taps too, which take slices of channels."""
    _, w, _, dy = tensors(case, dtype, layout, normal)
    saved = LAYOUTS[layout](normal(dy.shape, dtype, "cpu", seed=5))
    channels, *image = dy.shape[1:]
    pointwise = (1, 1, 0, 0, 0, 0, 1, 1, channels)
    ones = torch.ones(channels, 1, 1, 1, dtype=dtype)
    act, nhwc = (activation, 0.0), layout != "nchw"
    controls().reset()
    grad = OPS.conv2d_act_dgrad(dy, saved, ones, *image, *pointwise, *act, nhwc, False)
    dx = OPS.conv2d_act_dgrad(dy, saved, w, *case.input[2:], *case.geometry, *act, nhwc, False)
    expected = {"nhwc": "depthwise_strip_dgrad", "nchw": "depthwise_tile_dgrad"}
    rest = "depthwise_large_dgrad" if case.kernel == (7, 7) else "depthwise_dgrad"
    assert launched() == ["depthwise_dgrad", expected.get(layout, rest)]
    assert not torch.equal(grad, dy)
    grad = LAYOUTS[layout](grad)
    assert torch.equal(dx, OPS.conv2d_dgrad(grad, w, *case.input[2:], *case.geometry, nhwc, False))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("case", SOME)
def test_padding_is_left_out(chip, case, dtype, layout):
    """Infinite weights make nothing of the padding that they lie on; infinite pixels reach what sees them."""
    x, w, bias, dy = tensors(case, dtype, layout, integers)
    x, dy = x.abs() + 1, dy.abs() + 1
    w[:, :, 0, :] = torch.inf
    w[1, :, :, 0] = torch.nan
    # A transposed convolution, which has no padding of zeros; in bfloat16 torch's dilated ones have.
    dx = references(case, *(t.double() for t in (x, w, bias, dy)))[1]
    # Of y, sums over the taps inside: infinities and NaNs as if padding had no taps.
    _, kept = inside_sums(case, x.double(), w.double())
    y, ours = results(case, x, w, None, dy)
    assert torch.equal(torch.isinf(y), torch.isinf(kept))
    assert torch.equal(torch.isnan(y), torch.isnan(kept))
    assert torch.equal(y[kept.isfinite()].double(), kept[kept.isfinite()])
    assert torch.equal(torch.isnan(ours), torch.isnan(dx))
    x[0, 2, 1, 1] = torch.inf
    w = w.nan_to_num(1, 1, 1)
    for got, expected in zip(results(case, x, w, bias, dy), references(case, x, w, bias, dy), strict=True):
        assert torch.equal(torch.isinf(got), torch.isinf(expected))


def inside_sums(case: Conv, x, w) -> tuple[torch.Tensor, torch.Tensor]:
    """How many taps of each window lie inside, and the sums over them."""
    top, bottom, left, right = case.padding
    ones = F.pad(torch.ones_like(x), (left, right, top, bottom))
    padded = F.pad(x, (left, right, top, bottom))
    total = count = 0
    for r in range(case.kernel[0]):
        for s in range(case.kernel[1]):
            window = [
                slice(at * d, at * d + (size - d * (k - 1) - 1) // t * t + 1, t)
                for at, d, size, k, t in zip(
                    (r, s), case.dilation, padded.shape[2:], case.kernel, case.stride, strict=True
                )
            ]
            inside = ones[:, :, window[0], window[1]]
            product = padded[:, :, window[0], window[1]] * w[:, 0, r, s].reshape(1, -1, 1, 1)
            total = total + torch.where(inside > 0, product, 0.0)
            count = count + inside
    return count, total


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_thread_order_does_not_show(chip, layout):
    for case in SOME:
        operands = tensors(case, torch.float16, layout, normal)
        seen = set()
        for seed in range(3):
            controls().set_seed(seed)
            seen.add(
                tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in results(case, *operands))
            )
        assert len(seen) == 1


#: The depthwise layers of MobileNetV2, EfficientNet-B0 and ConvNeXt-T: image, kernel, stride.
NETWORKS = [
    *((size, 3, 1) for size in (112, 56, 28, 14, 7)),
    *((size, 3, 2) for size in (112, 56, 28, 14)),
    *((size, 5, 1) for size in (28, 14, 7)),
    *((size, 5, 2) for size in (56, 14)),
    *((size, 7, 1) for size in (56, 28, 14, 7)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("size", "kernel", "stride"), NETWORKS)
def test_bytes_near_the_floor(chip, size, kernel, stride, layout, dtype):
    """Every access counts, as if there were no cache: halos and what blocks read in common included."""
    chip(1)
    case = layer("", 8 if size == 112 else 16, (size, size), kernel, stride=stride, batch=1)
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    results(case, *operands)
    x, w, _, dy = operands
    floor = sum(t.numel() * t.element_size() for t in (x, w, dy))
    launches = controls().launches()
    assert len(launches) == 2
    for launch, source in zip(launches, (x, dy), strict=True):
        moved = launch["global_bytes_read"] + launch["global_bytes_written"]
        assert moved <= 1.1 * floor, (launch["name"], moved / floor)
        wide = 16 * launch["global_loads"][16]
        # All but a tensor's last elements and, of strided layers, rows that no tap reaches.
        assert wide >= 0.9 * source.numel() * source.element_size(), launch["name"]


#: Layers and layouts, what of x their taps see in each.
DILATED = [
    (layer("56x56-dilation-2", 16, (56, 56), batch=1, dilation=2), {"nhwc": 1.0, "nchw": 1.0}),
    (layer("5x5-dilation-2", 16, (28, 28), 5, batch=1, dilation=2), {"nhwc": 1.0, "nchw": 1.0}),
    (layer("rows-of-a-class", 8, (65, 65), batch=1, dilation=2), {"nhwc": 1.0, "nchw": 1.0}),
    (layer("stride-2-dilation-2", 8, (64, 64), batch=1, dilation=2, stride=2), {"nhwc": 0.25, "nchw": 0.5}),
    (layer("33x33-dilation-6", 8, (33, 33), batch=1, dilation=6), {"nchw": 1.0}),
    (layer("columns-in-parts", 1, (60, 1000), batch=1), {"nchw": 1.0}),
    (layer("columns-in-parts-stride-2", 1, (60, 1000), batch=1, stride=2), {"nchw": 1.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("case", "layout", "seen"),
    [pytest.param(case, *item, id=f"{case.id}-{item[0]}") for case, of in DILATED for item in of.items()],
)
def test_bytes_of_dilated_and_wide_layers(chip, case, layout, seen, dtype):
    chip(1)
    operands = tensors(case, dtype, layout, integers)
    controls().reset()
    results(case, *operands)
    x, w, _, dy = (t.numel() * t.element_size() for t in operands)
    for launch, floor in zip(controls().launches(), (seen * x + w + dy, dy + w + x), strict=True):
        moved = launch["global_bytes_read"] + launch["global_bytes_written"]
        assert moved <= 1.1 * floor, (launch["name"], moved / floor)
