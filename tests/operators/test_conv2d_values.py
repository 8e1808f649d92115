"""conv2d and its three gradients: exact on integers, as accurate as torch on random numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcnn.testing import assert_accurate, assert_exact, evaluate, in_float64

from .backends import ours
from .calls import conv2d, torch_conv2d
from .operands import LAYOUTS, integers, normal, odd_where_one
from .shapes import CONVS, Conv, parametrize

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SOME = [case for case in CONVS if case.id in ("3x3", "odd-everything", "groups", "depthwise", "1x1")]
EVERY_FAMILY = [
    Conv("dense", (1, 16, 1, 1), 24, (3, 3), padding=(1, 1, 1, 1)),
    Conv("1x1", (1, 16, 1, 1), 24, (1, 1)),
    Conv("depthwise", (1, 16, 1, 1), 16, (3, 3), padding=(1, 1, 1, 1), groups=16),
    Conv("depthwise-large", (1, 16, 1, 1), 16, (9, 9), padding=(4, 4, 4, 4), groups=16),
    Conv("grouped", (1, 16, 1, 1), 16, (3, 3), padding=(1, 1, 1, 1), groups=2),
    Conv("thin", (1, 4, 1, 1), 16, (3, 3), padding=(1, 1, 1, 1)),
    Conv("few-outputs", (1, 16, 1, 1), 4, (3, 3), padding=(1, 1, 1, 1)),
]
NAMES = ("grad_input", "grad_weight", "grad_bias")


def operands(case: Conv, dtype: torch.dtype, device: str, make) -> tuple[torch.Tensor, ...]:
    return (
        make(case.input, dtype, device, seed=1),
        make(case.weight, dtype, device, seed=2),
        make((case.out_channels,), dtype, device, seed=3),
    )


def check_exact(case: Conv, tensors: tuple, device: str) -> None:
    value = torch_conv2d(case)(*tensors)
    along = integers(value.shape, torch.float64, device, seed=4)
    reference = in_float64(torch_conv2d(case), *tensors, grad_output=along.cpu())
    result = evaluate(conv2d(case), *tensors, grad_output=along)
    assert_exact(result.value, reference.value)
    for name, got, expected in zip(NAMES, result.grads, reference.grads, strict=True):
        assert_exact(got, expected, name)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", CONVS)
def test_integers_are_exact(backend, case, layout):
    input, weight, bias = operands(case, torch.float32, backend.device, integers)
    check_exact(case, (LAYOUTS[layout](input), LAYOUTS[layout](weight), bias), backend.device)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", SOME)
def test_integers_are_exact_in_every_dtype(backend, case, layout, dtype):
    input, weight, bias = operands(case, dtype, backend.device, integers)
    check_exact(case, (LAYOUTS[layout](input), LAYOUTS[layout](weight), bias), backend.device)


@pytest.mark.parametrize("weight_layout", ["nchw", "nhwc", "sliced"])
@pytest.mark.parametrize("input_layout", list(LAYOUTS))
@parametrize("case", [c for c in CONVS if c.id in ("3x3", "groups", "depthwise-multiplier")])
def test_any_layout(backend, case, input_layout, weight_layout):
    input, weight, bias = operands(case, torch.float32, backend.device, integers)
    check_exact(case, (LAYOUTS[input_layout](input), LAYOUTS[weight_layout](weight), bias), backend.device)


@parametrize("case", [c for c in CONVS if c.id in ("3x3", "depthwise")])
def test_expanded_operands(backend, case):
    input, weight, bias = operands(case, torch.float32, backend.device, integers)
    tensors = (
        input[:1, :1].expand(case.input),
        weight[:, :, :1, :1].expand(case.weight),
        bias[:1].expand(case.out_channels),
    )
    check_exact(case, tensors, backend.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", [(1, 1, 9), (1, 9, 1), (3, 1, 1)], ids=str)
@parametrize("case", EVERY_FAMILY)
@ours
def test_any_stride_of_an_axis_of_one(backend, case, size, layout, dtype):
    """Padding beside such an axis must not become a misaligned address."""
    batch, *image = size
    case = replace(case, input=(batch, case.input[1], *image))
    x, w = (LAYOUTS[layout](t) for t in operands(case, dtype, backend.device, integers)[:2])
    y = torch_conv2d(case)(x, w)
    dy = LAYOUTS[layout](integers(y.shape, dtype, backend.device, seed=4))
    expected = in_float64(torch_conv2d(case), x, w, grad_output=dy.double().cpu())
    x, w, dy = odd_where_one(x), odd_where_one(w), odd_where_one(dy)
    ops, geometry = torch.ops.fastcnn, (*case.geometry, layout == "nhwc", False)
    assert_exact(ops.conv2d(x, w, None, None, *case.geometry, "none", 0.0, False), expected.value)
    assert_exact(ops.conv2d_dgrad(dy, w, *image, *geometry), expected.grads[0], "grad_input")
    assert_exact(ops.conv2d_wgrad(dy, x, *case.kernel, *geometry), expected.grads[1], "grad_weight")


@parametrize("case", SOME)
def test_without_bias(backend, case):
    input, weight, _ = operands(case, torch.float32, backend.device, integers)
    reference = in_float64(torch_conv2d(case), input, weight, None)
    result = evaluate(conv2d(case), input, weight, None)
    assert_exact(result.value, reference.value)
    assert_exact(result.grads[0], reference.grads[0], "grad_input")
    assert_exact(result.grads[1], reference.grads[1], "grad_weight")
    assert result.grads[2] is None


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@parametrize("case", [*SOME, *(c for c in CONVS if c.id in ("3-channels-7x7", "long-reduction"))])
def test_random_as_accurate_as_torch(backend, case, dtype, layout):
    input, weight, bias = operands(case, dtype, backend.device, normal)
    tensors = (LAYOUTS[layout](input), LAYOUTS[layout](weight), bias)
    along = normal(torch_conv2d(case)(*tensors).shape, dtype, backend.device, seed=4)
    reference = in_float64(torch_conv2d(case), *tensors, grad_output=along.cpu())
    torchs = evaluate(torch_conv2d(case), *tensors, grad_output=along)
    result = evaluate(conv2d(case), *tensors, grad_output=along)
    assert_accurate(result.value, reference.value, torchs.value)
    for name, got, expected, other in zip(NAMES, result.grads, reference.grads, torchs.grads, strict=True):
        assert_accurate(got, expected, other, name)


@parametrize("case", SOME)
def test_float64_is_float64(backend, case):
    tensors = operands(case, torch.float64, backend.device, normal)
    reference = in_float64(torch_conv2d(case), *tensors)
    magnitude = in_float64(torch_conv2d(case), *(t.abs() for t in tensors))
    result = evaluate(conv2d(case), *tensors)
    for got, expected, size in zip(
        (result.value, *result.grads),
        (reference.value, *reference.grads),
        (magnitude.value, *magnitude.grads),
        strict=True,
    ):
        assert ((got.cpu() - expected).abs() <= 16 * torch.finfo(torch.float64).eps * size).all()


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@parametrize("case", [c for c in CONVS if c.id in ("3x3-valid", "depthwise", "asymmetric-padding")])
def test_fused_activation(backend, case, dtype, activation):
    # Small weights keep sigmoid and tanh away from their flat ends, where every gradient is nearly zero.
    input, weight, bias = operands(case, dtype, backend.device, normal)
    tensors = (input, weight * 0.2, bias)
    reference = in_float64(torch_conv2d(case, activation), *tensors)
    torchs = evaluate(torch_conv2d(case, activation), *tensors)
    result = evaluate(conv2d(case, activation), *tensors)
    assert_accurate(result.value, reference.value, torchs.value)
    for name, got, expected, other in zip(NAMES, result.grads, reference.grads, torchs.grads, strict=True):
        assert_accurate(got, expected, other, name)


def test_only_asked_gradients_are_computed(backend):
    input, weight, bias = operands(CONVS[0], torch.float32, backend.device, integers)
    call = conv2d(CONVS[0])
    full = evaluate(call, input, weight, bias).grads
    for asked in range(3):
        tensors = [t.detach().requires_grad_(i == asked) for i, t in enumerate((input, weight, bias))]
        output = call(*tensors)
        kept = [t for t in output.grad_fn.saved_tensors if t is not None]
        assert len(kept) == (0 if asked == 2 else 1)
        output.sum().backward()
        assert torch.equal(tensors[asked].grad, full[asked])
        assert all(t.grad is None for i, t in enumerate(tensors) if i != asked)


def test_unbatched(backend):
    case = CONVS[0].with_batch(1)
    input, weight, bias = operands(case, torch.float32, backend.device, integers)
    batched = evaluate(conv2d(case), input, weight, bias)
    single = evaluate(conv2d(case), input[0], weight, bias)
    assert torch.equal(single.value, batched.value[0])
    assert torch.equal(single.grads[0], batched.grads[0][0])
    assert torch.equal(single.grads[1], batched.grads[1])


@pytest.mark.parametrize("kernel", [(2, 2), (3, 4), (1, 5)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding(backend, kernel, dilation):
    from fastcnn import functional

    input = integers((1, 2, 8, 14), torch.float32, backend.device)
    weight = integers((3, 2, *kernel), torch.float32, backend.device, seed=1)

    def padded_same(module):
        return lambda x, w: module.conv2d(x, w, padding="same", dilation=dilation)

    reference = in_float64(padded_same(torch.nn.functional), input, weight)
    result = evaluate(padded_same(functional), input, weight)
    for got, expected in zip((result.value, *result.grads), (reference.value, *reference.grads), strict=True):
        assert_exact(got, expected)
    valid = functional.conv2d(input, weight, padding="valid", dilation=dilation)
    assert_exact(valid, torch.nn.functional.conv2d(input, weight, padding="valid", dilation=dilation))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@parametrize("case", [c for c in CONVS if c.id in ("3x3", "depthwise", "pad-over-kernel")])
def test_nan_and_inf_propagate(backend, case, bad):
    input, weight, bias = operands(case, torch.float32, backend.device, integers)
    input[0, 0, 1, 1] = bad
    weight = weight.abs() + 1
    reference = torch_conv2d(case)(input.double().cpu(), weight.double().cpu(), bias.double().cpu())
    assert_exact(conv2d(case)(input, weight, bias), reference)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_activations_of_nan_and_inf(backend, activation):
    case = Conv("1x1", (1, 1, 1, 4), 1, (1, 1))
    input = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0], device=backend.device)[
        None, None, None
    ]
    weight = torch.ones(1, 1, 1, 1, device=backend.device)
    assert_exact(conv2d(case, activation)(input, weight), torch_conv2d(case, activation)(input, weight))
