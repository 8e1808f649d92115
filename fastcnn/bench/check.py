"""Whether a result is right: its error against the truth, held to a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcnn.bench.problem import Operands, Rule

_ELEMENTS = 1 << 26  # compared at once in float64


@dataclass(frozen=True)
class Errors:
    """Of the worst of a call's results: `rms` over the truth's root mean square, `max` over its largest."""

    rms: float
    max: float

    def as_dict(self) -> dict[str, float]:
        return {"rms": self.rms, "max": self.max}


class WrongShape(ValueError):
    """Results that cannot be compared with the truth; the message says why."""


def errors(got: Operands, truth: Operands) -> Errors:
    """The errors of a call's results. A NaN or infinity that the truth has not is an infinite error.

    Raises:
        WrongShape: other shapes, or another number of results, than the truth has.
    """
    if [t.shape for t in got] != [t.shape for t in truth]:
        shapes = ([tuple(t.shape) for t in tensors] for tensors in (got, truth))
        raise WrongShape("it has the shapes {}, expected {}".format(*shapes))
    each = [_one(one, exact) for one, exact in zip(got, truth, strict=True)]
    return Errors(max(error.rms for error in each), max(error.max for error in each))


def _one(got: Tensor, truth: Tensor) -> Errors:
    if truth.numel() == 0:
        return Errors(0.0, 0.0)
    got, truth = got.detach(), truth.detach()
    rows = max(1, _ELEMENTS // max(1, truth[0].numel())) if truth.dim() else 1
    squares = largest = truth_squares = truth_largest = 0.0
    for some, exact in zip(got.split(rows), truth.split(rows), strict=True):
        exact = exact.double()
        difference = some.double().sub_(exact).nan_to_num_(torch.inf, torch.inf, torch.inf).abs_()
        largest = max(largest, difference.max().item())
        squares += difference.square_().sum().item()
        truth_largest = max(truth_largest, exact.abs().max().item())
        truth_squares += exact.square().sum().item()
    scale = (truth_squares**0.5 or 1.0, truth_largest or 1.0)
    return Errors(squares**0.5 / scale[0], largest / scale[1])


def fault_of_baseline(found: Errors, rule: Rule) -> str | None:
    """Why a baseline's result is wrong, or None."""
    if rule.exact:
        return None if found.max == 0 else f"its values are not the expected ones (error {found.max:.3g})"
    if found.rms <= rule.bound:
        return None
    return f"its result is wrong: error {found.rms:.3g}, at most {rule.bound:.3g} is rounding"


def fault_of_ours(found: Errors, baselines: Mapping[str, Errors], rule: Rule) -> str | None:
    """Why our result is refused, or None."""
    if rule.exact:
        return None if found.max == 0 else f"values differ from the expected ones (error {found.max:.3g})"
    allowed_rms = allowed_max = rule.bound
    said = "rounding"
    if baselines:
        name, least = min(baselines.items(), key=lambda item: item[1].rms)
        allowed_rms = rule.factor * least.rms + rule.unit
        allowed_max = 2 * rule.factor * max(e.max for e in baselines.values()) + 2 * rule.unit
        said = f"{name}'s error of {least.rms:.3g}"
        if rule.at_least_bound:
            allowed_rms, allowed_max = max(allowed_rms, rule.bound), max(allowed_max, 2 * rule.bound)
    else:
        allowed_max = 4 * rule.bound
    for kind, value, allowed in (("rms", found.rms, allowed_rms), ("largest", found.max, allowed_max)):
        if not value <= allowed:
            return f"{kind} error {value:.3g}, at most {allowed:.3g} allowed for {said}"
    return None
