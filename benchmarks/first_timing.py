"""A first timing of every operator against torch on the GPU: `python -m benchmarks.first_timing --out FILE`.

Device time by CUDA events, one call per sample, ours and torch's in turn (A B A B), after a warm-up, with
cudnn.benchmark on and TF32 off for both. The stream is kept busy while a call is being issued, so that the
events see no waiting for Python. Buffers stay in the L2 cache where they fit: this is a first look, no
verdict. Each result is checked before it is timed. What the time limit leaves out is named in the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.operators import Case, disagreement, large_cases
from benchmarks.record import spread, write_json

WARM_UP = 3
SAMPLES = 21
AHEAD_CYCLES = 400_000  # about 0.2 ms: longer than Python takes to issue a call


def timed(call: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Issues a call between two events, behind some idling of the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    call()
    end.record()
    return start, end


def measure(case: Case) -> dict:
    """All samples of one case, in microseconds, with medians and their ratio."""
    for _ in range(WARM_UP):
        case.ours()
        case.torchs()
    events = [(timed(case.ours), timed(case.torchs)) for _ in range(SAMPLES)]
    torch.cuda.synchronize()
    samples = {
        "fastcnn": [1e3 * ours[0].elapsed_time(ours[1]) for ours, _ in events],
        "torch": [1e3 * torchs[0].elapsed_time(torchs[1]) for _, torchs in events],
    }
    spreads = {who: spread(values) for who, values in samples.items()}
    return {
        "name": case.name,
        "operator": case.operator,
        "microseconds": spreads,
        "torch_over_fastcnn": spreads["torch"]["median"] / spreads["fastcnn"]["median"],
        "samples": samples,
    }


def line(entry: dict) -> str:
    """An entry as a line of the table."""
    ours, torchs = entry["microseconds"]["fastcnn"], entry["microseconds"]["torch"]
    columns = (f"{part['median']:9.1f} [{part['p10']:8.1f} {part['p90']:8.1f}]" for part in (ours, torchs))
    return f"{'  '.join(columns)}  {entry['torch_over_fastcnn']:6.2f}  {entry['name']}"


HEADER = f"{'fastcnn us [p10 p90]':>29}  {'torch us [p10 p90]':>29}  torch/fastcnn"


def main(argv: Sequence[str] | None = None) -> int:
    """Times the cases until the limit; returns 1 if a result disagreed with torch's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_timing", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=60.0, help="begin no further case after this long")
    arguments = parser.parse_args(argv)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    end = time.monotonic() + arguments.seconds
    content: dict = {"timings": [], "wrong": [], "left_out": []}
    print(HEADER)
    for case in large_cases("cuda"):
        if time.monotonic() > end:
            content["left_out"].append(case.name)
            continue
        fault = disagreement(case)
        if fault:
            content["wrong"].append(fault)
            print(f"not timed, since it is wrong: {fault}")
        else:
            content["timings"].append(measure(case))
            print(line(content["timings"][-1]))
        write_json(arguments.out, content)
    counts = (f"{len(content[key])} {name}" for key, name in COUNTS.items())
    print(", ".join(counts))
    return 1 if content["wrong"] else 0


COUNTS = {"timings": "timed", "wrong": "wrong", "left_out": "left out for lack of time"}


if __name__ == "__main__":
    sys.exit(main())
