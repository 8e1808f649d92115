"""What needs a GPU, in one run of at most 8 minutes: `python -m benchmarks.gpu_check --out DIR`.

With fastcnn installed, or its library named by FASTCNN_LIBRARY, and nothing to be reached on a network: equal
bits over ten runs, a first timing of every operator against torch, the tests marked `cuda`, the emulator's
conformance, and compute-sanitizer over every operator. Each step is a process with its own time limit and its
log in DIR; DIR/record.json is written anew after each, to be kept in benchmarks/results/. A table comes last.
Exit status: 0 all right, 1 something was wrong or late, 2 no GPU here.

    python -m benchmarks.gpu_check --list-pending

names the kernel families whose present sources no passing record in benchmarks/results/ covers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.first_timing import HEADER, line
from benchmarks.steps import Budget, Outcome, Step, run, table
from build_support.cuda import find_cuda_home

WHOLE_RUN_SECONDS = 450.0  # of the 480 promised: the rest is for starting and for writing the record
TIMING_SECONDS = 70
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_EXIT = "86"


def find_sanitizer() -> Path | None:
    """compute-sanitizer on PATH or in the toolkit, or None."""
    on_path = shutil.which("compute-sanitizer")
    if on_path:
        return Path(on_path)
    home = find_cuda_home()
    candidates = (
        (home / "bin" / "compute-sanitizer", home / "compute-sanitizer" / "compute-sanitizer") if home else ()
    )
    return next((path for path in candidates if path.exists()), None)


def judge_info(log: str) -> str | None:
    """What is wrong with what `fastcnn info --json` says, or None."""
    facts = json.loads(log[log.index("{") :])
    cuda = facts["runs"]["cuda"]
    if cuda["kernels"] != "fastcnn":
        return f"CUDA tensors do not run fastcnn's kernels: {cuda['why']}"
    if facts["sources_changed_since_build"]:
        return "the library was built from other sources than this checkout's csrc: build it again"
    return None


def judge_tests(log: str) -> str | None:
    """What is wrong with a pytest run that ended well: that nothing ran."""
    closing = log.strip().splitlines()[-1] if log.strip() else ""
    return None if " passed" in closing else f"no test passed: {closing.strip(' =')}"


def plan_steps(out: Path, sanitizer: Path | None) -> list[Step]:
    """The steps in their order: what decides whether the rest means anything comes first."""
    python = sys.executable
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10")
    workload = (python, "-m", "benchmarks.workload")
    timing = (python, "-m", "benchmarks.first_timing", "--out", out / "timing.json")
    steps = [
        Step("library", (python, "-m", "fastcnn", "info", "--json"), 40, judge=judge_info),
        Step("determinism", (*workload, "--repeat", "10", "--check"), 40),
        Step("timing", (*timing, "--seconds", str(TIMING_SECONDS)), TIMING_SECONDS + 30),
        Step("tests", (*pytest, "-m", "cuda and not conformance"), 130, judge=judge_tests),
        Step("conformance", (*pytest, "-m", "conformance"), 60, judge=judge_tests),
    ]
    for tool in SANITIZER_TOOLS:
        command = (sanitizer, "--tool", tool, "--error-exitcode", SANITIZER_EXIT, *workload, "--every", "7")
        missing = None if sanitizer else "compute-sanitizer is not installed here"
        # torch's caching allocator hides from the tools where one tensor ends and the next begins.
        environ = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        steps.append(Step(f"sanitizer-{tool}", command, 40, missing=missing, environ=environ))
    return steps


def machine() -> dict:
    """The GPU and the software it runs under."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": record.nvidia_smi(),
    }


def check(out: Path, steps: Sequence[Step], content: dict, seconds: float = WHOLE_RUN_SECONDS) -> dict:
    """Runs the steps, writing out/record.json anew after each; returns the finished record."""
    budget = Budget(seconds)
    outcomes: list[Outcome] = []
    finished = {**content, "ok": False, "steps": []}
    for step in steps:
        print(f"-- {step.name}", flush=True)
        outcomes.append(run(step, budget, out))
        finished["steps"] = [vars(outcome) for outcome in outcomes]
        timing = out / "timing.json"
        if timing.exists():
            finished["timing"] = json.loads(timing.read_text())
        record.write_json(out / "record.json", finished)
    finished["ok"] = not any(outcome.wrong for outcome in outcomes)
    finished["seconds"] = seconds - budget.left()
    record.write_json(out / "record.json", finished)
    print(summary(finished, outcomes))
    return finished


def summary(finished: dict, outcomes: Sequence[Outcome]) -> str:
    """The closing table: timings, steps, and the verdict."""
    timings = finished.get("timing", {}).get("timings", [])
    lines = ["", HEADER, *map(line, timings), ""] if timings else [""]
    wrong = [outcome.name for outcome in outcomes if outcome.wrong]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "all right"
    return "\n".join([*lines, table(outcomes), "", f"gpu_check: {verdict}"])


def result_name(gpu: str, date: str) -> str:
    """A file name for a record: "nvidia-h100-80gb-hbm3-20260102T030405.json"."""
    words = "".join(letter if letter.isalnum() else " " for letter in gpu.lower()).split()
    return f"{'-'.join(words)}-{date.replace('-', '').replace(':', '')[:15]}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks, or lists the families without a record; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder for record.json and the logs")
    parser.add_argument(
        "--list-pending", action="store_true", help="name the kernel families that no record covers, and end"
    )
    arguments = parser.parse_args(argv)
    if arguments.list_pending:
        print("\n".join(record.pending()) or "every kernel family has a record of its present sources")
        return 0
    if arguments.out is None:
        parser.error("--out DIR is needed (or --list-pending)")
    if not torch.cuda.is_available():
        print("gpu_check needs an NVIDIA GPU that torch can use, and there is none here.", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "timing.json").unlink(missing_ok=True)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    content = {
        "date": date,
        "commit": record.commit(),
        "sources": record.families(),
        "machine": machine(),
    }
    finished = check(out, plan_steps(out, find_sanitizer()), content)
    keep = record.RESULTS / result_name(content["machine"]["gpu"], date)
    print(f"record: {out / 'record.json'}; to keep it, copy it to {keep}")
    return 0 if finished["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
