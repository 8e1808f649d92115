"""Running a function of tensors together with its gradients, and the same in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Evaluation(NamedTuple):
    """A function's value, and its gradient by each operand (None for an operand that was None)."""

    value: Tensor
    grads: tuple[Tensor | None, ...]


def evaluate(
    function: Callable[..., Tensor], *operands: Tensor | None, grad_output: Tensor | None = None
) -> Evaluation:
    """`function(*operands)` and its gradients along `grad_output` (ones by default).

    The operands' strides are kept; they are not written to. `grad_output` is brought to the value's dtype and
    device.
    """
    leaves = [None if t is None else t.detach().requires_grad_(True) for t in operands]
    value = function(*leaves)
    along = torch.ones_like(value) if grad_output is None else grad_output.to(value)
    grads = iter(torch.autograd.grad(value, [t for t in leaves if t is not None], along))
    return Evaluation(value.detach(), tuple(None if t is None else next(grads) for t in leaves))


def in_float64(
    function: Callable[..., Tensor], *operands: Tensor | None, grad_output: Tensor | None = None
) -> Evaluation:
    """`evaluate` on float64 copies of the operands on the CPU: what other results are measured against."""
    exact = [None if t is None else t.detach().cpu().to(torch.float64) for t in operands]
    return evaluate(function, *exact, grad_output=grad_output)
