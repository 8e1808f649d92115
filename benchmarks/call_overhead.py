"""What a call costs beside its arithmetic: ours and torch's on the same small tensors, `python -m
benchmarks.call_overhead`.

The two take turns, round by round, in one process (`fastcnn.testing.timing.call_times`); a figure is a median
over the rounds. On CPU tensors without the emulated library our functions hand over to torch's, and the ratio
is what that costs; with --device cuda it is the time until a call returns, the kernels left to run behind it.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from fastcnn import functional
from fastcnn.bench.overhead import CALLS, tiny_call, tiny_operands
from fastcnn.testing.timing import Contender, WallTimer, call_times, default_timer


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
    operands = tiny_operands(options.device)
    for name in CALLS:
        contenders = [Contender(m.__name__, [tiny_call(name, m, operands)]) for m in (F, functional)]
        times = call_times(contenders, rounds=options.rounds, most_calls=options.calls, timer=timer)
        torchs, ours = (times[contender.name].median for contender in contenders)
        print(f"{name:<44}{torchs:>9.2f}{ours:>9.2f}{ours / torchs:>8.2f}")


if __name__ == "__main__":
    main()
