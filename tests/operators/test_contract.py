"""What every operator promises beside its values: schema, fakes, strides, derivatives, determinism."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fastcnn import functional, ops
from fastcnn._checks import ACTIVATIONS
from fastcnn._shapes import conv_channels_last, memory_format, suggests_channels_last

from .operands import LAYOUTS, distinct, integers, normal
from .shapes import CONVS, Conv, parametrize

_ops = torch.ops.fastcnn
MAX = (3, 2, 2, 1, 1, 1, 2, 1, True)
AVG = (3, 2, 2, 1, 1, 1, True, False, 0)
CONV = (2, 1, 1, 0, 0, 1, 1, 2, 2)


def samples(device: str, dtype: torch.dtype, layout: str) -> dict[str, tuple]:
    """Arguments for each operator that takes tensors."""

    def tensor(*shape: int) -> torch.Tensor:
        return LAYOUTS[layout](distinct(shape, dtype, device) / 64).requires_grad_()

    input, weight, bias = tensor(2, 4, 6, 7), tensor(6, 2, 3, 2), normal((6,), dtype, device).requires_grad_()
    channels_last = layout == "nhwc"
    output = tensor(2, 6, 3, 6)
    residual = normal((2, 6, 3, 6), dtype, device, seed=1).requires_grad_()
    saved = normal((2, 6, 3, 6), dtype, device, seed=2).requires_grad_()
    ungrouped = LAYOUTS[layout](normal((6, 4, 3, 2), dtype, device, seed=3)).requires_grad_()
    pooled, offsets = _ops.max_pool2d_with_offsets(input, *MAX)
    indices = _ops.max_pool2d_with_indices(input, *MAX)[1]
    adaptive, adaptive_indices = _ops.adaptive_max_pool2d(input, 3, 4)
    pooled_grad, adaptive_grad = tensor(*pooled.shape), tensor(*adaptive.shape)
    average_grad = tensor(*_ops.avg_pool2d(input, *AVG).shape)
    return {
        "conv2d": (input, weight, bias, residual, *CONV, "silu", 0.0, False),
        "conv2d_with_preactivation": (input, weight, bias, residual, *CONV, "gelu", 0.0, False),
        "conv2d_act_max_pool2d": (input, ungrouped, bias, *CONV[:-1], 1, "tanh", 0.0, False),
        "conv2d_act_max_pool2d_with_offsets": (input, ungrouped, bias, *CONV[:-1], 1, "silu", 0.0, False),
        "conv2d_act_dgrad": (output, saved, weight, 6, 7, *CONV, "gelu", 0.0, channels_last, False),
        "conv2d_act_wgrad": (output, saved, input, 3, 2, *CONV, "silu", 0.0, True, channels_last, False),
        "conv2d_dgrad": (output, weight, 6, 7, *CONV, channels_last, False),
        "conv2d_wgrad": (output, input, 3, 2, *CONV, channels_last, False),
        "conv2d_bias_grad": (output,),
        "max_pool2d": (input, *MAX),
        "max_pool2d_with_offsets": (input, *MAX),
        "max_pool2d_with_indices": (input, *MAX),
        "max_pool2d_backward": (pooled_grad, offsets, 6, 7, *MAX, channels_last),
        "max_pool2d_gather": (input, indices, *MAX),
        "avg_pool2d": (input, *AVG),
        "avg_pool2d_backward": (average_grad, 6, 7, *AVG, channels_last),
        "adaptive_avg_pool2d": (input, 3, 4),
        "adaptive_avg_pool2d_backward": (adaptive_grad, 6, 7, channels_last),
        "adaptive_max_pool2d": (input, 3, 4),
        "adaptive_max_pool2d_backward": (adaptive_grad, adaptive_indices, 6, 7, channels_last),
        "adaptive_max_pool2d_gather": (input, adaptive_indices),
    }


NAMES = [schema.partition("(")[0] for schema in ops.SCHEMAS if schema.partition("(")[0] != "plan"]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(backend, name, layout):
    arguments = samples(backend.device, torch.float32, layout)[name]
    # How an operator is registered has no layout; what its fake says of strides has.
    checks = {} if layout == "nchw" else {"test_utils": "test_faketensor"}
    torch.library.opcheck(getattr(_ops, name).default, arguments, **checks)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(backend, name):
    """First and second derivatives of every operator, so of every derivative too."""
    arguments = samples(backend.device, torch.float64, "nchw")[name]
    op = getattr(_ops, name).default
    differentiable = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def function(*tensors):
        full = list(arguments)
        for i, tensor in zip(differentiable, tensors, strict=True):
            full[i] = tensor
        result = op(*full)
        return tuple(r for r in result if r.is_floating_point()) if isinstance(result, tuple) else result

    tensors = tuple(arguments[i].detach().requires_grad_() for i in differentiable)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


FUNCTIONS = {
    "conv2d": lambda x, w: functional.conv2d(x, w, None, (2, 1), 1, (1, 2), 2),
    "conv2d_act_max_pool2d": lambda x, w: functional.conv2d_act_max_pool2d(x, w, groups=2),
    "max_pool2d": lambda x, w: functional.max_pool2d(x, 3, 2, 1, 2),
    "max_pool2d-indices": lambda x, w: functional.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "avg_pool2d": lambda x, w: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda x, w: functional.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive_max_pool2d": lambda x, w: functional.adaptive_max_pool2d(x, (3, 4)),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_derivatives_through_functional(backend, name):
    """The eager fast path: first and second derivatives."""
    input = (distinct((1, 4, 7, 7), torch.float64, backend.device) / 512).requires_grad_()
    weight = (distinct((4, 2, 3, 2), torch.float64, backend.device) / 16).requires_grad_()
    tensors = (input, weight) if name.startswith("conv2d") else (input,)
    function = FUNCTIONS[name]
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, w=weight: function(x, w), tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("added", [False, True], ids=["plain", "residual"])
def test_derivatives_of_activations(backend, activation, added):
    """The eager fast path with every activation; weights of both signs, on both sides of every kink."""
    tensors = [
        normal(shape, torch.float64, backend.device, seed=seed).requires_grad_()
        for seed, shape in enumerate([(1, 2, 4, 3), (4, 1, 2, 2), (4,), (1, 4, 3, 2)])
    ]

    def function(input, weight, bias, residual=None):
        options = {"activation": activation, "residual": residual, "negative_slope": 0.3}
        return functional.conv2d_act(input, weight, bias, groups=2, **options)

    tensors = tuple(tensors if added else tensors[:3])
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("asked", ["all", "bias"])
def test_derivatives_of_pooled_activations(backend, activation, asked):
    """Through `functional` and, with the offsets computed again, through the operator."""
    shapes = [(1, 2, 5, 6), (3, 2, 2, 2), (3,)]
    tensors = [normal(shape, torch.float64, backend.device, seed=seed) for seed, shape in enumerate(shapes)]
    first = 2 if asked == "bias" else 0
    for tensor in tensors[first:]:
        tensor.requires_grad_()

    def through_functional(*given):
        options = {"activation": activation, "negative_slope": 0.3}
        return functional.conv2d_act_max_pool2d(*tensors[:first], *given, padding=1, **options)

    def through_operator(*given):
        conv = (1, 1, 1, 1, 1, 1, 1, 1, 1)
        return _ops.conv2d_act_max_pool2d(*tensors[:first], *given, *conv, activation, 0.3, False)

    for function in (through_functional, through_operator):
        assert gradcheck(function, tuple(tensors[first:]), fast_mode=True)
        assert gradgradcheck(function, tuple(tensors[first:]), fast_mode=True)


def test_third_derivative(backend):
    input = normal((1, 2, 3, 3), torch.float64, backend.device).requires_grad_()
    weight = normal((2, 2, 2, 2), torch.float64, backend.device).requires_grad_()

    def third(conv2d):
        value = conv2d(input, weight).pow(4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, weight, create_graph=True)
            value = grad.pow(2).sum()
        return grad

    torch.testing.assert_close(third(functional.conv2d), third(F.conv2d), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_ten_runs_give_the_same_bits(backend, name):
    arguments = samples(backend.device, torch.float32, "nchw")[name]
    op = getattr(_ops, name).default
    with torch.no_grad():
        runs = [op(*arguments) for _ in range(10)]
    for run in runs[1:]:
        pairs = zip(run, runs[0], strict=True) if isinstance(run, tuple) else ((run, runs[0]),)
        for again, first in pairs:
            assert torch.equal(again, first)


@pytest.mark.parametrize("weight_layout", ["nchw", "nhwc", "sliced"])
@pytest.mark.parametrize("input_layout", list(LAYOUTS))
@parametrize(
    "case", [c for c in CONVS if c.id in ("3x3-valid", "1x1", "1-channel", "one-output-pixel", "depthwise")]
)
def test_conv2d_output_strides_follow_torch(backend, case, input_layout, weight_layout):
    input = LAYOUTS[input_layout](integers(case.input, torch.float32, backend.device))
    weight = LAYOUTS[weight_layout](integers(case.weight, torch.float32, backend.device))
    got = _ops.conv2d(input, weight, None, None, *case.geometry, "none", 0.0, False)
    assert got.is_contiguous(memory_format=memory_format(conv_channels_last(input, weight)))
    if input_layout in ("nchw", "nhwc") and weight_layout in ("nchw", "nhwc"):
        padding = (case.padding[0], case.padding[2])
        torchs = F.conv2d(input, weight, None, case.stride, padding, case.dilation, case.groups)
        assert same_strides(got, torchs)


def same_strides(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal strides, but for dimensions of one element."""
    return all(
        size == 1 or a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True)
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 1, 6, 6), (1, 5, 3, 3)])
def test_pool_output_strides_follow_torch(backend, shape, layout):
    input = LAYOUTS[layout](distinct(shape, torch.float32, backend.device))
    rule = memory_format(suggests_channels_last(input))
    for pool in (
        lambda m: m.max_pool2d(input, 3, 2, 1),
        lambda m: m.max_pool2d(input, 3, 2, 1, return_indices=True)[1],
        lambda m: m.avg_pool2d(input, 3, 2, 1),
        lambda m: m.adaptive_avg_pool2d(input, 2),
        lambda m: m.adaptive_max_pool2d(input, 2, return_indices=True)[1],
    ):
        assert pool(functional).is_contiguous(memory_format=rule)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1)),
        ((2, 3, 4, 5), (60, 1, 15, 3)),
        ((2, 1, 4, 5), (20, 20, 5, 1)),
        ((2, 1, 4, 5), (20, 1, 5, 1)),
        ((2, 3, 1, 1), (3, 1, 1, 1)),
        ((2, 3, 1, 1), (3, 1, 3, 3)),
        ((2, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 3, 4, 5), (0, 0, 5, 1)),
        ((2, 3, 4, 5), (1, 2, 30, 6)),
        ((4, 3, 4, 5), (240, 2, 40, 8)),
        ((1, 1, 4, 1), (4, 1, 1, 1)),
    ],
)
def test_layout_rule_is_atens(shape, strides):
    tensor = torch.empty(1000).as_strided(shape, strides)
    assert suggests_channels_last(tensor) == (
        torch._prims_common.suggest_memory_format(tensor) == torch.channels_last
    )


@parametrize(
    "case", [Conv("empty", (0, 4, 5, 6), 3, (3, 3)), Conv("empty-groups", (0, 4, 5, 6), 4, (3, 3), groups=4)]
)
def test_empty_batch(backend, case):
    input = torch.empty(case.input, device=backend.device, requires_grad=True)
    weight = torch.ones(case.weight, device=backend.device, requires_grad=True)
    bias = torch.ones(case.out_channels, device=backend.device, requires_grad=True)
    through_functional = functional.conv2d(input, weight, bias, groups=case.groups)
    through_operator = _ops.conv2d(input, weight, bias, None, *case.geometry, "relu", 0.0, False)
    for output in (through_functional, through_operator):
        assert output.shape == (0, case.out_channels, 3, 4)
        grads = torch.autograd.grad(output.sum(), (input, weight, bias))
        assert grads[0].shape == input.shape
        assert torch.equal(grads[1], torch.zeros_like(weight))
        assert torch.equal(grads[2], torch.zeros_like(bias))


def test_empty_batch_of_the_pooled_convolution(backend):
    input = torch.empty((0, 3, 6, 7), device=backend.device, requires_grad=True)
    weight = torch.ones((4, 3, 3, 3), device=backend.device, requires_grad=True)
    bias = torch.ones(4, device=backend.device, requires_grad=True)
    through_operator = _ops.conv2d_act_max_pool2d(
        input, weight, bias, 1, 1, 0, 0, 0, 0, 1, 1, 1, "relu", 0.0, False
    )
    for output in (functional.conv2d_act_max_pool2d(input, weight, bias), through_operator):
        assert output.shape == (0, 4, 2, 2)
        grads = torch.autograd.grad(output.sum(), (input, weight, bias))
        assert grads[0].shape == input.shape
        assert torch.equal(grads[1], torch.zeros_like(weight))
        assert torch.equal(grads[2], torch.zeros_like(bias))


def test_empty_batch_pools(backend):
    input = torch.empty((0, 3, 5, 6), device=backend.device, requires_grad=True)
    for output in (
        _ops.max_pool2d(input, 2, 2, 2, 2, 0, 0, 1, 1, False),
        _ops.max_pool2d_with_offsets(input, 2, 2, 2, 2, 0, 0, 1, 1, False)[0],
        _ops.avg_pool2d(input, 2, 2, 2, 2, 0, 0, False, True, 0),
        _ops.adaptive_avg_pool2d(input, 2, 3),
        _ops.adaptive_max_pool2d(input, 2, 3)[0],
        functional.max_pool2d(input, 2),
        functional.avg_pool2d(input, 2),
        functional.adaptive_avg_pool2d(input, (2, 3)),
        functional.adaptive_max_pool2d(input, (2, 3)),
    ):
        assert output.shape == (0, 3, 2, 3)
        (grad,) = torch.autograd.grad(output.sum(), input)
        assert grad.shape == input.shape


def test_inputs_are_left_alone(backend):
    for name, arguments in samples(backend.device, torch.float32, "nhwc").items():
        before = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        result = getattr(_ops, name).default(*arguments)
        outputs = result if isinstance(result, tuple) else (result,)
        for old, new in zip(before, arguments, strict=True):
            if isinstance(old, torch.Tensor):
                assert torch.equal(old, new)
                assert all(new.data_ptr() != output.data_ptr() for output in outputs)
