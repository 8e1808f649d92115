"""The depthwise and bias gradient kernels: values on every path of their plans, and what lies below them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from build_support.build_info import ROOT
from fastcnn.testing import assert_accurate, assert_exact, evaluate, in_float64

from .backends import ours
from .calls import conv2d, torch_conv2d
from .operands import LAYOUTS, integers, normal
from .shapes import Conv, parametrize

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("grad_input", "grad_weight", "grad_bias")


def depthwise(
    id: str, input: tuple[int, int, int, int], kernel: tuple[int, int], multiplier: int = 1, **rest
):
    channels = input[1]
    return Conv(id, input, channels * multiplier, kernel, groups=channels, **rest)


SHAPES = [
    depthwise("3x3", (2, 16, 9, 10), (3, 3), padding=(1, 1, 1, 1)),
    depthwise("3x3-stride-2", (2, 16, 11, 9), (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    depthwise("3x3-stride-3", (1, 8, 14, 13), (3, 3), stride=(3, 3), padding=(1, 1, 1, 1)),
    depthwise("uneven-strides", (1, 8, 13, 12), (3, 3), stride=(1, 3), padding=(1, 1, 1, 1)),
    depthwise("stride-over-kernel", (2, 8, 13, 14), (2, 2), stride=(5, 3)),
    depthwise("stride-over-image", (2, 8, 7, 6), (3, 3), stride=(1 << 25, 1 << 25), padding=(1, 1, 1, 1)),
    depthwise("stride-over-image", (2, 8, 5, 5), (3, 3), stride=(9, 9), padding=(1, 1, 1, 1)),
    depthwise("1x1", (2, 8, 5, 7), (1, 1)),
    depthwise("1x1-stride-2", (2, 8, 5, 7), (1, 1), stride=(2, 2)),
    depthwise("even-kernel", (1, 16, 8, 9), (4, 2), padding=(2, 1, 1, 0)),
    depthwise("dilated", (1, 8, 12, 13), (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3)),
    depthwise(
        "dilated-strided", (1, 8, 15, 13), (3, 3), stride=(2, 3), padding=(3, 3, 2, 2), dilation=(3, 2)
    ),
    depthwise("pad-kernel-minus-1", (1, 8, 5, 6), (4, 5), padding=(3, 3, 4, 4)),
    depthwise("kernel-over-image", (1, 8, 3, 4), (7, 5), padding=(3, 3, 2, 2)),
    depthwise("more-taps-than-shared-memory", (1, 64, 10, 9), (9, 9), padding=(4, 4, 4, 4)),
    depthwise("one-output-row", (2, 16, 3, 8), (3, 3)),
    depthwise("one-output-column", (2, 16, 8, 3), (3, 3)),
    depthwise("one-output-pixel", (3, 8, 3, 3), (3, 3)),
    depthwise("many-channels-few-pixels", (1, 600, 2, 2), (2, 2)),
    depthwise("channels-beside-the-vector", (2, 13, 7, 6), (3, 3), padding=(1, 1, 1, 1)),
    depthwise("half-a-vector", (2, 12, 7, 6), (3, 3), padding=(1, 1, 1, 1)),
    depthwise("two-channels", (2, 2, 17, 19), (3, 3), padding=(1, 1, 1, 1)),
    depthwise("multiplier-2", (2, 8, 7, 6), (3, 3), 2, padding=(1, 1, 1, 1)),
    depthwise("multiplier-3-strided", (1, 5, 9, 8), (3, 2), 3, stride=(2, 1), padding=(1, 1, 1, 1)),
    depthwise("multiplier-taps-over-shared-memory", (1, 33, 5, 5), (5, 5), 3, padding=(2, 2, 2, 2)),
]
SOME_IDS = ("3x3", "3x3-stride-2", "multiplier-3-strided", "half-a-vector")
SOME = [case for case in SHAPES if case.id in SOME_IDS]


def operands(case: Conv, dtype: torch.dtype, device: str, make) -> tuple[torch.Tensor, ...]:
    return (
        make(case.input, dtype, device, seed=1),
        make(case.weight, dtype, device, seed=2),
        make((case.out_channels,), dtype, device, seed=3),
    )


def check_exact(case: Conv, dtype: torch.dtype, device: str, layout: str, grad_layout: str) -> None:
    input, weight, bias = operands(case, dtype, device, integers)
    input = LAYOUTS[layout](input)
    value = torch_conv2d(case)(input, weight, bias)
    along = LAYOUTS[grad_layout](integers(value.shape, torch.float64, device, seed=4))
    reference = in_float64(torch_conv2d(case), input, weight, bias, grad_output=along.cpu())
    result = evaluate(conv2d(case), input, weight, bias, grad_output=along)
    assert_exact(result.value, reference.value)
    for name, got, expected in zip(NAMES, result.grads, reference.grads, strict=True):
        assert_exact(got, expected, name)


@ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", SHAPES)
def test_integers_are_exact(backend, case, layout, dtype):
    check_exact(case, dtype, backend.device, layout, layout)


@ours
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", SOME)
def test_integers_are_exact_in_the_other_dtypes(backend, case, layout, dtype):
    check_exact(case, dtype, backend.device, layout, layout)


@ours
@pytest.mark.parametrize("grad_layout", ["nchw", "nhwc", "sliced"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
@parametrize("case", SOME)
def test_any_layout(backend, case, layout, grad_layout):
    check_exact(case, torch.float32, backend.device, layout, grad_layout)


@ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", SOME)
def test_random_numbers_are_as_accurate_as_torch(backend, case, layout, dtype):
    input, weight, bias = operands(case, dtype, backend.device, normal)
    input = LAYOUTS[layout](input)
    along = normal(torch_conv2d(case)(input, weight, bias).shape, dtype, backend.device, seed=4)
    reference = in_float64(torch_conv2d(case), input, weight, bias, grad_output=along.cpu())
    result = evaluate(conv2d(case), input, weight, bias, grad_output=along)
    torchs = evaluate(torch_conv2d(case), input, weight, bias, grad_output=along)
    assert_accurate(result.value, reference.value, torchs.value)
    for got, expected, peer in zip(result.grads, reference.grads, torchs.grads, strict=True):
        assert_accurate(got, expected, peer)


@ours
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", SOME)
def test_float64_sums_in_float64(backend, case, layout):
    input, weight, bias = operands(case, torch.float64, backend.device, normal)
    input = LAYOUTS[layout](input)
    reference = in_float64(torch_conv2d(case), input, weight, bias)
    result = evaluate(conv2d(case), input, weight, bias)
    for got, expected in zip((result.value, *result.grads), (reference.value, *reference.grads), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=1e-13)


@ours
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_activation_is_fused(backend, layout, activation):
    case = SHAPES[0]
    input, weight, bias = operands(case, torch.float32, backend.device, normal)
    input = LAYOUTS[layout](input)
    reference = in_float64(torch_conv2d(case, activation), input, weight, bias)
    torchs = evaluate(torch_conv2d(case, activation), input, weight, bias)
    result = evaluate(conv2d(case, activation), input, weight, bias)
    assert_accurate(result.value, reference.value, torchs.value)


@ours
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_padding_is_skipped_not_multiplied(backend, layout):
    """An infinite weight meets padding only at the border: nothing there turns into NaN."""
    case = SHAPES[0]
    input, weight, _ = operands(case, torch.float32, backend.device, integers)
    input = LAYOUTS[layout](input.abs() + 1)
    weight[:, :, 0, 0] = float("inf")
    value = conv2d(case)(input, weight)
    assert not value.isnan().any()
    assert value[:, :, 0].isfinite().all()
    assert value[:, :, :, 0].isfinite().all()
    assert value[:, :, 1:, 1:].isposinf().all()


@ours
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_nan_reaches_just_its_windows(backend, layout):
    case = SHAPES[0]
    input, weight, bias = operands(case, torch.float32, backend.device, normal)
    input[1, 3, 4, 5] = float("nan")
    value = conv2d(case)(LAYOUTS[layout](input), weight, bias)
    expected = torch.zeros(value.shape, dtype=torch.bool)
    expected[1, 3, 3:6, 4:7] = True
    assert torch.equal(value.isnan().cpu(), expected)


@ours
@pytest.mark.parametrize("multiplier", [1, 2])
def test_empty_batch(backend, multiplier):
    case = depthwise("empty", (0, 8, 6, 6), (3, 3), multiplier, padding=(1, 1, 1, 1))
    tensors = operands(case, torch.float32, backend.device, integers)
    result = evaluate(conv2d(case), *tensors)
    assert result.value.shape == (0, 8 * multiplier, 6, 6)
    assert result.grads[0].shape == case.input
    assert not result.grads[1].any()
    assert not result.grads[2].any()


GRADS = {
    "nhwc-vectors": ((3, 16, 13, 11), "nhwc"),
    "nhwc-odd-channels": ((3, 13, 13, 11), "nhwc"),
    "nchw-vectors": ((3, 5, 16, 12), "nchw"),
    "nchw-odd-image": ((3, 5, 13, 11), "nchw"),
    "one-pixel": ((70, 9, 1, 1), "nchw"),
    "one-channel": ((2, 1, 40, 41), "nchw"),
    "one-row": ((4, 3, 1, 64), "nchw"),
    "one-column": ((4, 3, 64, 1), "nchw"),
    "many-channels": ((2, 1030, 2, 2), "nhwc"),
    "sliced": ((2, 6, 9, 8), "sliced"),
    "channel-slice": ((2, 8, 9, 8), "channel-slice"),
    "transposed": ((2, 8, 9, 8), "transposed"),
    "batch-last": ((8, 8, 3, 4), "batch-last"),
    "empty-batch": ((0, 8, 3, 4), "nchw"),
}


@ours
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(GRADS))
def test_bias_grad(backend, name, dtype):
    shape, layout = GRADS[name]
    grad = LAYOUTS[layout](integers(shape, dtype, backend.device))
    assert_exact(torch.ops.fastcnn.conv2d_bias_grad(grad), grad.double().sum((0, 2, 3)).cpu())


@ours
def test_bias_grad_of_an_expanded_gradient(backend):
    grad = torch.ones((), device=backend.device).expand(3, 4, 5, 6)
    assert_exact(torch.ops.fastcnn.conv2d_bias_grad(grad), torch.full((4,), 90.0, dtype=torch.float64))


@ours
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_bias_grad_of_long_sums_is_as_accurate_as_torch(backend, layout):
    grad = LAYOUTS[layout](normal((4, 8, 64, 96), torch.float32, backend.device) + 0.5)
    result = torch.ops.fastcnn.conv2d_bias_grad(grad)
    assert_accurate(result, grad.double().sum((0, 2, 3)).cpu(), grad.sum((0, 2, 3)))


@ours
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_same_bits_in_every_run(backend, layout):
    case = depthwise("bits", (3, 16, 17, 15), (3, 3), padding=(1, 1, 1, 1))
    tensors = operands(case, torch.float32, backend.device, normal)
    tensors = (LAYOUTS[layout](tensors[0]), *tensors[1:])
    first = evaluate(conv2d(case), *tensors)
    for _ in range(9):
        again = evaluate(conv2d(case), *tensors)
        assert torch.equal(again.value, first.value)
        for got, expected in zip(again.grads, first.grads, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_past_two_to_the_31_elements(kernels_on_cuda, layout):
    shape = (3, 2, 16384, 24576) if layout == "nchw" else (3, 8, 8192, 12288)
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    if torch.cuda.mem_get_info()[0] < 8 * elements:
        pytest.skip("needs more free memory on the GPU")
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    input = torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=memory_format)
    input.random_(-3, 4)
    weight = integers((shape[1], 1, 3, 3), torch.float16, "cuda")
    value = conv2d(Conv("far", shape, shape[1], (3, 3), padding=(1, 1, 1, 1), groups=shape[1]))(input, weight)
    corner = F.conv2d(input[-1:, :, -5:, -5:].double(), weight.double(), padding=1, groups=shape[1])
    assert torch.equal(value[-1:, :, -4:, -4:].double(), corner[:, :, -4:, -4:])


@pytest.fixture(scope="session")
def program() -> Path:
    from tests import emulator

    kernels = ROOT / "csrc" / "conv2d"
    try:
        return emulator.build_program(
            [
                Path(__file__).with_name("depthwise_program.cpp"),
                *sorted(kernels.glob("depthwise*.c*[pu]")),
                *sorted(kernels.glob("bias_grad*.c*[pu]")),
                kernels / "split_sum.cu",
            ]
        )
    except emulator.EmulatorUnavailable as reason:
        pytest.skip(f"the emulator cannot be built: {reason}")


@pytest.mark.emulated
@pytest.mark.parametrize("check", ["launches", "seeds", "far", "bytes", "plans"])
def test_below_the_operators(program, check):
    result = subprocess.run([program, check], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
