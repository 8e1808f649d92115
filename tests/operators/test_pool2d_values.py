"""Pools and their gradients: exact where the arithmetic is, as accurate as torch elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcnn import functional
from fastcnn.testing import assert_accurate, assert_exact, evaluate, in_float64

from .calls import avg_pool2d, max_pool2d
from .operands import LAYOUTS, distinct, integers, normal
from .shapes import ADAPTIVE, DILATED_POOLS, POOLS, parametrize

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
MAX_POOLS = [case for case in POOLS if "divisor" not in case.id and "counted" not in case.id] + DILATED_POOLS
SOME = [case for case in POOLS if case.id in ("3x3-ceil-padded", "uneven", "2x2-rest")]


def same_as(ours, torchs, input, grad_output_like=None) -> None:
    """Value and gradient equal torch's in float64, rounded once."""
    reference_value = torchs(input.double().cpu())
    along = integers(reference_value.shape, torch.float64, "cpu", seed=7)
    reference = in_float64(torchs, input, grad_output=along)
    result = evaluate(ours, input, grad_output=along)
    assert_exact(result.value, reference.value)
    assert_exact(result.grads[0], reference.grads[0], "grad_input")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", MAX_POOLS)
def test_max(backend, case, layout):
    input = LAYOUTS[layout](distinct(case.input, torch.float32, backend.device))
    same_as(max_pool2d(case), max_pool2d(case, module=F), input)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", MAX_POOLS)
def test_max_with_indices(backend, case, layout):
    input = LAYOUTS[layout](distinct(case.input, torch.float32, backend.device))
    value, indices = max_pool2d(case, return_indices=True)(input)
    expected, expected_indices = max_pool2d(case, return_indices=True, module=F)(input.cpu())
    assert indices.dtype == torch.int64
    assert torch.equal(value.cpu(), expected)
    assert torch.equal(indices.cpu(), expected_indices)
    same_as(
        lambda x: max_pool2d(case, return_indices=True)(x)[0],
        lambda x: max_pool2d(case, return_indices=True, module=F)(x)[0],
        input,
    )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@parametrize("case", [*SOME, DILATED_POOLS[0]])
def test_max_in_every_dtype(backend, case, dtype):
    input = distinct(case.input, dtype, backend.device)
    same_as(max_pool2d(case), max_pool2d(case, module=F), input)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@parametrize("case", [*SOME, DILATED_POOLS[1]])
def test_max_in_any_layout(backend, case, layout):
    input = LAYOUTS[layout](distinct(case.input, torch.float32, backend.device))
    same_as(max_pool2d(case), max_pool2d(case, module=F), input)


@parametrize("case", [case for case in MAX_POOLS if case.input[1] < 8])
def test_ties_go_to_the_first(backend, case):
    input = integers(case.input, torch.float32, backend.device).clamp(0, 1)
    value, indices = max_pool2d(case, return_indices=True)(input)
    expected, expected_indices = max_pool2d(case, return_indices=True, module=F)(input.cpu())
    assert torch.equal(value.cpu(), expected)
    assert torch.equal(indices.cpu(), expected_indices)
    same_as(max_pool2d(case), max_pool2d(case, module=F), input)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", [case for case in MAX_POOLS if case.id in ("3x3-overlapping", "uneven", "dilated")])
def test_max_of_nan_and_inf(backend, case, layout):
    input = distinct(case.input, torch.float32, backend.device)
    input[0, 0, 1, 1] = input[0, 1, 2, 3] = input[0, 1, 2, 4] = float("nan")
    input[0, 2] = -float("inf")
    input[0, 3, 3, 3] = float("inf")
    input = LAYOUTS[layout](input)
    value, indices = max_pool2d(case, return_indices=True)(input)
    expected, expected_indices = max_pool2d(case, return_indices=True, module=F)(input.cpu())
    assert_exact(value, expected)
    assert torch.equal(indices.cpu(), expected_indices)
    assert_exact(max_pool2d(case)(input), expected)


def test_offsets_are_bytes_for_small_windows(backend):
    input = distinct((1, 2, 18, 19), torch.float32, backend.device)
    for kernel, dtype in ((16, torch.uint8), (17, torch.int32)):
        offsets = torch.ops.fastcnn.max_pool2d_with_offsets(input, kernel, kernel, 1, 1, 0, 0, 1, 1, False)[1]
        assert offsets.dtype == dtype
        flat = F.max_pool2d(input.cpu(), kernel, 1, return_indices=True)[1]
        rows = torch.arange(offsets.shape[2])[:, None]
        columns = torch.arange(offsets.shape[3])
        expected = (flat // 19 - rows) * kernel + flat % 19 - columns
        assert torch.equal(offsets.cpu().long(), expected)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@parametrize("case", POOLS)
def test_average(backend, case, layout):
    input = LAYOUTS[layout](normal(case.input, torch.float32, backend.device))
    check_average(avg_pool2d(case), avg_pool2d(case, module=F), input)


def check_average(ours, torchs, input) -> None:
    along = normal(torchs(input).shape, input.dtype, "cpu", seed=5)
    reference = in_float64(torchs, input, grad_output=along)
    torch_result = evaluate(torchs, input, grad_output=along)
    result = evaluate(ours, input, grad_output=along)
    assert_accurate(result.value, reference.value, torch_result.value)
    assert_accurate(result.grads[0], reference.grads[0], torch_result.grads[0], "grad_input")


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
@parametrize("case", SOME)
def test_average_in_any_layout_and_dtype(backend, case, layout, dtype):
    input = LAYOUTS[layout](normal(case.input, dtype, backend.device))
    check_average(avg_pool2d(case), avg_pool2d(case, module=F), input)


@parametrize("case", [case for case in POOLS if case.kernel in ((2, 2), (1, 1)) or case.divisor == -2])
def test_average_of_integers_is_exact(backend, case):
    # Windows of a power of two divide exactly, clipped ones of 1 and 2 too.
    if case.ceil_mode and case.padding != (0, 0) and not case.count_include_pad:
        pytest.fail("divides by a clipped count")
    input = integers(case.input, torch.float32, backend.device)
    same_as(avg_pool2d(case), avg_pool2d(case, module=F), input)


def test_average_in_float64(backend):
    input = normal((2, 3, 9, 8), torch.float64, backend.device)
    got = functional.avg_pool2d(input, 3, 2, 1)
    torch.testing.assert_close(got.cpu(), F.avg_pool2d(input.cpu(), 3, 2, 1), rtol=1e-15, atol=1e-15)


def test_average_of_nan_and_inf(backend):
    input = normal((1, 2, 6, 6), torch.float32, backend.device)
    input[0, 0, 2, 2], input[0, 1, 3, 3], input[0, 1, 3, 4] = float("nan"), float("inf"), -float("inf")
    for pool in (lambda m, x: m.avg_pool2d(x, 3, 1, 1), lambda m, x: m.adaptive_avg_pool2d(x, 4)):
        got, expected = pool(functional, input).cpu(), pool(F, input.cpu())
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.isposinf(), expected.isposinf())


@pytest.mark.parametrize("layout", list(LAYOUTS))
@parametrize("case", ADAPTIVE)
def test_adaptive_average(backend, case, layout):
    shape, size = case
    input = LAYOUTS[layout](normal(shape, torch.float32, backend.device))
    check_average(
        lambda x: functional.adaptive_avg_pool2d(x, size), lambda x: F.adaptive_avg_pool2d(x, size), input
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
@parametrize("case", ADAPTIVE)
def test_adaptive_max(backend, case, layout):
    shape, size = case
    input = LAYOUTS[layout](distinct(shape, torch.float32, backend.device))
    same_as(
        lambda x: functional.adaptive_max_pool2d(x, size), lambda x: F.adaptive_max_pool2d(x, size), input
    )
    indices = functional.adaptive_max_pool2d(input, size, return_indices=True)[1]
    assert torch.equal(indices.cpu(), F.adaptive_max_pool2d(input.cpu(), size, return_indices=True)[1])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_adaptive_in_every_dtype(backend, dtype):
    input = distinct((2, 4, 7, 9), dtype, backend.device)
    same_as(lambda x: functional.adaptive_max_pool2d(x, 4), lambda x: F.adaptive_max_pool2d(x, 4), input)
    input = integers((2, 4, 8, 12), dtype, backend.device)  # windows of 2 x 4: division is exact
    same_as(
        lambda x: functional.adaptive_avg_pool2d(x, (4, 3)),
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
        input,
    )


@pytest.mark.parametrize("size", [None, (None, 3), (2, None), 3, (4, 2)])
def test_adaptive_sizes(backend, size):
    input = distinct((1, 2, 5, 6), torch.float32, backend.device)
    if size is None:
        with pytest.raises(TypeError):
            functional.adaptive_avg_pool2d(input, None)
        return
    assert_exact(functional.adaptive_max_pool2d(input, size), F.adaptive_max_pool2d(input, size))
    assert functional.adaptive_avg_pool2d(input, size).shape == F.adaptive_avg_pool2d(input, size).shape


def test_adaptive_to_nothing(backend):
    input = normal((2, 3, 4, 5), torch.float32, backend.device).requires_grad_()
    for pool in (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d):
        output = pool(input, (0, 3))
        assert output.shape == (2, 3, 0, 3)
        (grad,) = torch.autograd.grad(output.sum(), input)
        assert torch.equal(grad, torch.zeros_like(input))


def test_unbatched(backend):
    # Averages of 8 and 16 whole numbers: exact, in whatever order they are added.
    input = distinct((3, 8, 8), torch.float32, backend.device)
    for pool in (
        lambda m, x: m.max_pool2d(x, 2),
        lambda m, x: m.max_pool2d(x, 2, return_indices=True)[1],
        lambda m, x: m.avg_pool2d(x, (2, 4)),
        lambda m, x: m.adaptive_avg_pool2d(x, 2),
        lambda m, x: m.adaptive_max_pool2d(x, (2, 3), return_indices=True)[0],
        lambda m, x: m.adaptive_max_pool2d(x, (2, 3), return_indices=True)[1],
    ):
        assert_exact(pool(functional, input), pool(F, input))
    same_as(lambda x: functional.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2), input)
