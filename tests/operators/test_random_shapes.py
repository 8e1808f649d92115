"""Shapes that nobody thought of: values and gradients exact on whole numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastcnn import _shapes, functional
from fastcnn.testing import assert_exact, evaluate, in_float64

from .calls import avg_pool2d, conv2d, max_pool2d, torch_conv2d
from .operands import LAYOUTS, distinct, integers
from .shapes import DILATED_POOLS, POOLS, Conv, Pool, parametrize

# Each test runs its examples within one setting of the backend, which the fixture makes.
QUIET = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
layouts = st.sampled_from(list(LAYOUTS))


@st.composite
def convs(draw) -> Conv:
    groups = draw(st.integers(1, 3))
    channels, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))
    kernel, stride, dilation = (
        (draw(st.integers(1, limit)), draw(st.integers(1, limit))) for limit in (4, 3, 3)
    )
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    assume(height + padding[0] + padding[1] > dilation[0] * (kernel[0] - 1))
    assume(width + padding[2] + padding[3] > dilation[1] * (kernel[1] - 1))
    input = (draw(st.integers(1, 3)), channels, height, width)
    return Conv("random", input, outputs, kernel, stride, padding, dilation, groups)


@QUIET
@given(case=convs(), input_layout=layouts, weight_layout=layouts)
def test_conv2d(backend, case, input_layout, weight_layout):
    tensors = (
        LAYOUTS[input_layout](integers(case.input, torch.float32, backend.device)),
        LAYOUTS[weight_layout](integers(case.weight, torch.float32, backend.device, seed=1)),
        integers((case.out_channels,), torch.float32, backend.device, seed=2),
    )
    along = integers(torch_conv2d(case)(*tensors).shape, torch.float64, "cpu", seed=3)
    reference = in_float64(torch_conv2d(case), *tensors, grad_output=along)
    result = evaluate(conv2d(case), *tensors, grad_output=along)
    for got, expected in zip((result.value, *result.grads), (reference.value, *reference.grads), strict=True):
        assert_exact(got, expected)


def every_window_has_a_tap(case: Pool) -> bool:
    """Whether every window reads at least one pixel of the image.

    A dilated window can step over the whole image. It has no maximum then: torch gives an index outside the
    image, and its backward writes there. So torch is no reference for such a case, and must not run on it.
    """
    outputs = _shapes.max_pool_output_shape(case.input, case.max_geometry)[2:]
    return all(
        any(0 <= window * stride - pad + tap * dilation < size for tap in range(kernel))
        for size, count, kernel, stride, pad, dilation in zip(
            case.input[2:], outputs, case.kernel, case.stride, case.padding, case.dilation, strict=True
        )
        for window in range(count)
    )


@parametrize("case", POOLS + DILATED_POOLS)
def test_torch_is_a_reference_for_the_listed_pools(case):
    assert every_window_has_a_tap(case)


@pytest.mark.parametrize(
    ("case", "answer"),
    [
        (Pool("steps-over", (1, 4, 2, 5), (2, 3), (2, 7), (1, 1), (3, 3), ceil_mode=True), False),
        (Pool("as-long-as-the-step", (1, 4, 3, 5), (2, 3), (2, 7), (1, 1), (3, 3), ceil_mode=True), True),
        (Pool("short-but-hit", (1, 1, 1, 4), (3, 1), (1, 1), (1, 0), (1, 1)), True),
        (Pool("only-the-second-window", (1, 1, 5, 2), (1, 2), (1, 1), (0, 1), (1, 3)), False),
    ],
    ids=lambda value: value.id if isinstance(value, Pool) else None,
)
def test_windows_without_a_tap_are_known(case, answer):
    assert every_window_has_a_tap(case) is answer


@st.composite
def pools(draw) -> Pool:
    kernel, stride, dilation = (
        (draw(st.integers(1, limit)), draw(st.integers(1, limit))) for limit in (4, 4, 3)
    )
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    input = tuple(draw(st.integers(1, limit)) for limit in (3, 9, 10, 10))
    ceil_mode = draw(st.booleans())
    for size, k, p, d in zip(input[2:], kernel, padding, dilation, strict=True):
        assume(size + 2 * p > d * (k - 1))
    case = Pool("random", input, kernel, stride, padding, dilation, ceil_mode, draw(st.booleans()))
    assume(every_window_has_a_tap(case))
    return case


@QUIET
@given(case=pools(), layout=layouts)
def test_max_pool2d(backend, case, layout):
    input = LAYOUTS[layout](distinct(case.input, torch.float32, backend.device))
    value, indices = max_pool2d(case, return_indices=True)(input)
    expected, expected_indices = max_pool2d(case, return_indices=True, module=F)(input.cpu())
    assert torch.equal(value.cpu(), expected)
    assert torch.equal(indices.cpu(), expected_indices)
    along = integers(expected.shape, torch.float64, "cpu")
    reference = in_float64(max_pool2d(case, module=F), input, grad_output=along)
    assert_exact(evaluate(max_pool2d(case), input, grad_output=along).grads[0], reference.grads[0])


@QUIET
@given(case=pools(), layout=layouts)
def test_avg_pool2d(backend, case, layout):
    input = LAYOUTS[layout](integers(case.input, torch.float32, backend.device))
    reference = in_float64(avg_pool2d(case, module=F), input)
    result = evaluate(avg_pool2d(case), input)
    for got, expected in ((result.value, reference.value), (result.grads[0], reference.grads[0])):
        torch.testing.assert_close(got.cpu(), expected.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
@QUIET
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 10), st.integers(1, 10)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    layout=layouts,
)
def test_adaptive_pools(backend, name, shape, size, layout):
    input = LAYOUTS[layout](distinct(shape, torch.float32, backend.device))
    reference = in_float64(lambda x: getattr(F, name)(x, size), input)
    result = evaluate(lambda x: getattr(functional, name)(x, size), input)
    for got, expected in ((result.value, reference.value), (result.grads[0], reference.grads[0])):
        torch.testing.assert_close(got.cpu(), expected.float(), rtol=2e-6, atol=1e-5)
