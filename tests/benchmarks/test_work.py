"""fastcnn.bench.work against counting: by torch's own sums and gradients, and by the emulator's counters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcnn.bench.work import Work, work
from tests.emulator import controls

OPS = torch.ops.fastcnn
CONV_PASSES = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def touched(result: torch.Tensor, image: torch.Tensor) -> int:
    """How many elements of the image the result depends on."""
    return int((torch.autograd.grad(result.sum(), image)[0] != 0).sum())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.sampled_from((1, 2, 4)),
    bias=st.booleans(),
)
def test_convolutions_against_counting(sizes, kernel, stride, padding, dilation, groups, bias):
    if any(h + 2 * p < d * (r - 1) + 1 for h, p, d, r in zip(sizes, padding, dilation, kernel, strict=True)):
        return
    n, c, k = 2, 4, 8
    image = torch.ones(n, c, *sizes, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(k, c // groups, *kernel, dtype=torch.float64)
    output = F.conv2d(image, weight, None, stride, padding, dilation, groups)
    # Padded with ones, every tap adds one.
    padded = F.pad(image.detach(), (padding[1], padding[1], padding[0], padding[0]), value=1.0)
    products = int(F.conv2d(padded, weight, None, stride, 0, dilation, groups).sum())
    read = touched(output, image)
    found = {
        op: work(
            op,
            image.shape,
            weight.shape,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            dtype=torch.bfloat16,
            bias=bias,
        )
        for op in (*CONV_PASSES, "conv2d_forward_backward")
    }
    extra = k if bias else 0
    small = weight.numel() + output.numel()
    biased = output.numel() if bias else 0
    assert found["conv2d_fprop"] == Work(2 * (read + small + extra), 2 * products + biased)
    assert found["conv2d_dgrad"] == Work(2 * (image.numel() + small), 2 * products)
    assert found["conv2d_wgrad"] == Work(2 * (read + small), 2 * products)
    assert found["conv2d_forward_backward"] == sum((found[op] for op in CONV_PASSES), Work(0, 0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=pairs,
    stride=pairs,
    pads=st.booleans(),
    ceil_mode=st.booleans(),
    index_dtype=st.sampled_from((torch.uint8, torch.int64)),
)
def test_pools_against_counting(sizes, kernel, stride, pads, ceil_mode, index_dtype):
    image = torch.ones(2, 3, *sizes, dtype=torch.float64, requires_grad=True)
    padding = tuple(size // 2 for size in kernel) if pads else (0, 0)
    sums = F.avg_pool2d(image, kernel, stride, padding, ceil_mode, divisor_override=1)
    taps, read = int(sums.sum()), touched(sums, image)
    outputs, size = sums.numel(), index_dtype.itemsize
    window = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}

    def found(op: str, index: torch.dtype | None = None) -> Work:
        return work(op, image.shape, dtype=torch.float32, index_dtype=index, **window)

    assert found("avg_pool2d") == found("max_pool2d") == Work(4 * (read + outputs), taps)
    assert found("max_pool2d", index_dtype) == Work(4 * (read + outputs) + size * outputs, taps)
    assert found("avg_pool2d_backward") == Work(4 * (image.numel() + outputs), taps)
    backward = found("max_pool2d_backward", index_dtype)
    assert backward == Work(4 * (image.numel() + outputs) + size * outputs, outputs)
    assert found("max_pool2d_gather", index_dtype) == Work((8 + size) * outputs, 0)


@pytest.mark.parametrize("output_size", [1, 3, (7, 2), (10, 9)])
def test_adaptive_pools_against_counting(output_size):
    image = torch.ones(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    means = F.adaptive_avg_pool2d(image, output_size)
    # A window of t elements gives each of them 1/t: the reciprocals of single outputs' gradients add up.
    taps = sum(
        round(1 / torch.autograd.grad(mean, image, retain_graph=True)[0].max().item())
        for mean in means[0, 0].flatten()
    )
    shared = {"output_size": output_size, "dtype": torch.float16}
    elements = image.numel() + means.numel()
    assert work("adaptive_avg_pool2d", image.shape, **shared) == Work(2 * elements, 6 * taps)
    indexed = work("adaptive_max_pool2d_backward", image.shape, index_dtype=torch.int64, **shared)
    assert indexed == Work(2 * elements + 8 * means.numel(), means.numel())


def test_dilated_max_pools_skip_what_no_window_reads():
    found = work("max_pool2d", (1, 1, 5, 5), kernel_size=2, stride=4, dilation=4, dtype=torch.float32)
    assert found == Work(4 * (4 + 1), 4)


def test_a_known_layer():
    """ResNet-50's stem at 128 images: 30 GFLOP."""
    found = work("conv2d_fprop", (128, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, dtype=torch.bfloat16)
    assert found.flops == 2 * 128 * 64 * 112 * 112 * 3 * 49
    assert found.bytes == 2 * (128 * 3 * 224 * 224 + 64 * 3 * 49 + 128 * 64 * 112 * 112)


def test_a_pooled_convolution_makes_what_its_windows_hold():
    """5x5 pixels make 2x2 windows: the last row and column are left out, and so is what only they read."""
    layer = {"dtype": torch.float16, "padding": 1}
    found = work("conv2d_act_max_pool2d", (2, 3, 5, 5), (8, 3, 3, 3), bias=True, **layer)
    assert found.bytes == 2 * (2 * 3 * 5 * 5 + 8 * 3 * 9 + 8 + 2 * 8 * 2 * 2)
    assert found.flops == 2 * 2 * 8 * 4 * 4 * 3 * 9 + 2 * 8 * 4 * 4
    point = work("conv2d_act_max_pool2d", (2, 3, 5, 5), (8, 3, 1, 1), dtype=torch.float16)
    assert point.bytes == 2 * (2 * 3 * 4 * 4 + 8 * 3 + 2 * 8 * 2 * 2)


def test_arguments_that_do_not_belong_are_refused():
    shape = (1, 4, 8, 8)
    for op, keywords, words in (
        ("conv3d", {}, "op must be one of"),
        ("avg_pool2d_gather", {"kernel_size": 2}, "op must be one of"),
        ("max_pool2d_backward", {"kernel_size": 2}, "reads indices, so index_dtype is needed"),
        ("avg_pool2d", {"kernel_size": 2, "index_dtype": torch.int64}, "has no indices"),
        ("conv2d_fprop", {"weight": (4, 4, 1, 1), "index_dtype": torch.int64}, "has no indices"),
        ("max_pool2d", {"kernel_size": 2, "bias": True}, "has no bias"),
        ("max_pool2d", {"output_size": 2}, "takes kernel_size"),
    ):
        with pytest.raises(ValueError, match=words):
            work(op, shape, dtype=torch.float32, **keywords)


def moved() -> int:
    """Bytes that the launches since the last reset read and wrote."""
    launches = controls().launches()
    controls().reset()
    return sum(launch["global_bytes_read"] + launch["global_bytes_written"] for launch in launches)


@pytest.mark.emulated
def test_kernels_move_no_less_and_the_simplest_exactly_that(emulated_on_cpu):
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    controls().reset()
    pool = {"kernel_size": 2, "dtype": torch.float32}
    OPS.avg_pool2d(x, 2, 2, 2, 2, 0, 0, False, True, 0)
    assert moved() == work("avg_pool2d", x.shape, **pool).bytes
    y, offsets = OPS.max_pool2d_with_offsets(x, 2, 2, 2, 2, 0, 0, 1, 1, False)
    assert moved() == work("max_pool2d", x.shape, index_dtype=offsets.dtype, **pool).bytes
    OPS.max_pool2d_backward(y, offsets, 6, 6, 2, 2, 2, 2, 0, 0, 1, 1, False, True)
    assert moved() >= work("max_pool2d_backward", x.shape, index_dtype=offsets.dtype, **pool).bytes

    for weight_shape, stride, padding, groups in (
        ((8, 8, 1, 1), 2, 0, 1),
        ((8, 1, 3, 3), 2, 1, 8),
    ):
        w = torch.randn(weight_shape).contiguous(memory_format=torch.channels_last)
        geometry = (stride, stride, *(padding,) * 4, 1, 1, groups)
        layer = {"stride": stride, "padding": padding, "groups": groups, "dtype": torch.float32}
        dy = OPS.conv2d(x, w, None, None, *geometry, "none", 0.0, False)
        assert moved() >= work("conv2d_fprop", x.shape, w.shape, **layer).bytes
        OPS.conv2d_dgrad(dy, w, 6, 6, *geometry, True, False)
        assert moved() >= work("conv2d_dgrad", x.shape, w.shape, **layer).bytes
        OPS.conv2d_wgrad(dy, x, *weight_shape[2:], *geometry, True, False)
        assert moved() >= work("conv2d_wgrad", x.shape, w.shape, **layer).bytes
