"""What counts as equal.

Integer-valued operands must give the very same values: an index error cannot hide behind a tolerance. Random
ones may be off by twice what torch's own kernel is off, plus one unit in the last place (ulp). That is asked
of the root mean square; the largest error of a few hundred is a matter of luck, so it gets twice the room.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at each of `values`, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.double().abs().clamp(min=info.smallest_normal)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


def _worst(name: str, actual: Tensor, expected: Tensor, wrong: Tensor, size: Tensor) -> str:
    index = tuple(torch.unravel_index(torch.where(wrong, size, -1.0).argmax(), wrong.shape))
    place = tuple(int(i) for i in index)
    return (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} values are wrong, the worst at {place}: "
        f"{actual[place].item()!r}, expected {expected[place].item()!r}"
    )


def assert_exact(actual: Tensor, reference: Tensor, name: str = "value") -> None:
    """`actual` is `reference` rounded once to its dtype; NaN equals NaN."""
    assert actual.shape == reference.shape, (
        f"{name}: shape {tuple(actual.shape)}, not {tuple(reference.shape)}"
    )
    got, expected = actual.cpu().double(), reference.cpu().to(actual.dtype).double()
    wrong = ~((got == expected) | (got.isnan() & expected.isnan()))
    if wrong.any():
        raise AssertionError(_worst(name, got, expected, wrong, (got - expected).abs().nan_to_num(torch.inf)))


def assert_accurate(actual: Tensor, reference: Tensor, torchs: Tensor, name: str = "value") -> None:
    """`actual` is about as close to `reference` as torch's own result is.

    The root mean square error may be twice torch's, plus one ulp; the largest single error, which varies more
    from draw to draw at the sizes of a test, four times torch's largest, plus one ulp.
    """
    assert actual.dtype == torchs.dtype, f"{name}: dtype {actual.dtype}, torch's is {torchs.dtype}"
    assert actual.shape == reference.shape, (
        f"{name}: shape {tuple(actual.shape)}, not {tuple(reference.shape)}"
    )
    if actual.numel() == 0:
        return
    got, expected = actual.cpu().double(), reference.double()
    error, torchs_error = (got - expected).abs(), (torchs.cpu().double() - expected).abs()
    unit = ulp(expected, actual.dtype)
    allowed = 4 * torchs_error.max() + unit
    wrong = ~(error <= allowed)
    if wrong.any():
        size = (error / allowed).nan_to_num(torch.inf)
        raise AssertionError(
            _worst(name, got, expected, wrong, size) + f", {size.max().item():.3g} times the allowed"
        )
    mean, allowed_mean = _rms(error), 2 * _rms(torchs_error) + _rms(unit)
    assert mean <= allowed_mean, f"{name}: the mean error is {mean:.3g}, allowed {allowed_mean:.3g}"


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
