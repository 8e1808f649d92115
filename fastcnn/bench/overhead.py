"""What a call costs the host beside its arithmetic: ours and torch's on the same tiny tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F

from fastcnn import functional
from fastcnn.bench.cases import Case
from fastcnn.bench.problem import OURS, Call, Operands, Problem, Way, rounding

MODES = ("forward", "recorded", "backward")
_FUNCTIONS: dict[str, tuple[Callable, int]] = {
    "conv2d": (lambda m, x, w, b: m.conv2d(x, w, b, 1, 1), 3),
    "max_pool2d": (lambda m, x: m.max_pool2d(x, 2), 1),
    "avg_pool2d": (lambda m, x: m.avg_pool2d(x, 2), 1),
    "adaptive_avg_pool2d": (lambda m, x: m.adaptive_avg_pool2d(x, 1), 1),
    "adaptive_max_pool2d": (lambda m, x: m.adaptive_max_pool2d(x, 2), 1),
}
CALLS = tuple(f"{name} {mode}" for name in _FUNCTIONS for mode in MODES)


def tiny_operands(device: torch.device | str) -> Operands:
    """An image, a weight and a bias, so small that no kernel takes any time."""
    image = torch.randn(1, 2, 4, 4, device=device)
    return image, torch.randn(2, 2, 3, 3, device=device), torch.randn(2, device=device)


def tiny_call(name: str, module: ModuleType, operands: Operands) -> Call:
    """The call `name` (one of `CALLS`) of a module of functions: forward without and with a record for the
    backward pass, or forward and backward."""
    function, _, mode = name.partition(" ")
    called, count = _FUNCTIONS[function]
    used = operands[:count]
    if mode == "forward":
        return lambda: called(module, *used)
    used = tuple(t.detach().clone().requires_grad_() for t in used)
    if mode == "recorded":
        return lambda: called(module, *used)
    along = torch.ones_like(called(module, *used))
    return lambda: torch.autograd.grad(called(module, *used), used, along)


def overhead_problem(case: Case, device: torch.device) -> Problem:
    """Host time only."""
    name = case.row.layer

    def way(who: str, module: ModuleType) -> Way:
        def bind(operands: Operands) -> Call:
            return tiny_call(name, module, operands)

        return Way(who, bind, "contiguous")

    def truth(operands: Operands) -> Operands:
        wide = tuple(t.double() for t in operands)
        done = tiny_call(name, F, wide)()
        return (done.detach(),) if isinstance(done, torch.Tensor) else done

    return Problem(
        ways=[way(OURS, functional), way("eager", F)],
        operands=lambda index: tiny_operands(device),
        truth=truth,
        rule=rounding(case.dtype, False, 18),
        bytes_per_call=1 << 10,
        most_sets=1,
        host_time_only=True,
    )
