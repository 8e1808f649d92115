"""Runs every operator on small shapes on the GPU: once for compute-sanitizer, or repeatedly for equal bits.

    compute-sanitizer python -m benchmarks.workload
    python -m benchmarks.workload --repeat 10 --check

Exit status 1: two runs differed, or a result disagrees with torch's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

import fastcnn
from benchmarks.operators import Case, disagreement, small_cases


def bits(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Copies of a call's results as bytes, NaNs and the sign of zero included."""
    results = (result,) if isinstance(result, Tensor) else result
    return [tensor.contiguous().flatten().view(torch.uint8).clone() for tensor in results]


def differing_run(case: Case, repeat: int) -> int | None:
    """The first of `repeat` runs whose bits are not the first run's, or None."""
    once = bits(case.ours())
    for run in range(1, repeat):
        if not all(map(torch.equal, once, bits(case.ours()))):
            return run
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases; prints what was wrong and, last, how many there were."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workload", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each call, compared bit by bit")
    parser.add_argument("--check", action="store_true", help="compare each result with torch's in float64")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th case")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False
    wrong: list[str] = []
    count = 0
    for index, case in enumerate(small_cases(arguments.device)):
        if index % arguments.every:
            continue
        count += 1
        run = differing_run(case, arguments.repeat)
        if run is not None:
            wrong.append(f"{case.name}: run {run} has other bits than the first")
        if arguments.check and (fault := disagreement(case)):
            wrong.append(fault)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    for fault in wrong:
        print(fault)
    print(f"fastcnn {fastcnn.__version__}: {count} calls, {arguments.repeat} runs each, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
