"""What a call costs beside its arithmetic: ours and torch's on the same small tensors, `python -m
benchmarks.call_overhead`.

The two take turns, round by round, in one process (`fastcnn.testing.timing.call_times`); a figure is a median
over the rounds. On CPU tensors without the emulated library our functions hand over to torch's, and the ratio
is what that costs; with --device cuda it is the time until a call returns, the kernels left to run behind it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fastcnn import functional
from fastcnn.testing.timing import Contender, WallTimer, call_times, default_timer

Call = Callable[[], object]


def cases(device: str) -> dict[str, Callable[[object], Call]]:
    """Each case builds, from a module of functions, the call that is timed."""
    image = torch.randn(1, 2, 4, 4, device=device)
    weight = torch.randn(2, 2, 3, 3, device=device)
    bias = torch.randn(2, device=device)
    leaves = [t.clone().requires_grad_() for t in (image, weight, bias)]
    functions = {
        "conv2d": (lambda m, x, w, b: m.conv2d(x, w, b, 1, 1), 3),
        "max_pool2d": (lambda m, x: m.max_pool2d(x, 2), 1),
        "avg_pool2d": (lambda m, x: m.avg_pool2d(x, 2), 1),
        "adaptive_avg_pool2d": (lambda m, x: m.adaptive_avg_pool2d(x, 1), 1),
        "adaptive_max_pool2d": (lambda m, x: m.adaptive_max_pool2d(x, 2), 1),
    }
    found = {}
    for name, (function, count) in functions.items():
        plain, tracked = (image, weight, bias)[:count], leaves[:count]

        def forward(module, function=function, operands=plain) -> Call:
            return lambda: function(module, *operands)

        def recorded(module, function=function, operands=tracked) -> Call:
            return lambda: function(module, *operands)

        def backward(module, function=function, operands=tracked) -> Call:
            along = torch.ones_like(function(module, *operands))
            return lambda: torch.autograd.grad(function(module, *operands), operands, along)

        found[f"{name}, forward"] = forward
        found[f"{name}, forward recorded"] = recorded
        found[f"{name}, forward and backward"] = backward
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_overhead", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--calls", type=int, default=50, help="calls in one round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timer = default_timer() if options.device == "cuda" else WallTimer()
    print(f"torch {torch.__version__}, {options.device}; median us per call over {options.rounds} rounds")
    print(f"{'call':<44}{'torch':>9}{'fastcnn':>9}{'ratio':>8}")
    for name, build in cases(options.device).items():
        contenders = [Contender(module.__name__, [build(module)]) for module in (F, functional)]
        times = call_times(contenders, rounds=options.rounds, most_calls=options.calls, timer=timer)
        torchs, ours = (times[contender.name].median for contender in contenders)
        print(f"{name:<44}{torchs:>9.2f}{ours:>9.2f}{ours / torchs:>8.2f}")


if __name__ == "__main__":
    main()
