"""What needs a GPU, in one call with a time budget: `python -m benchmarks.gpu_check --out DIR --minutes 8`.

With fastcnn installed, or its library named by FASTCNN_LIBRARY, and nothing to be reached on a network; the
most useful first: the library, equal bits over ten runs, the tests marked `cuda`, the emulator's
conformance, a quick benchmark of every kernel family, the suites that --suite names, and compute-sanitizer
over every operator.

    --pending      only what no record in benchmarks/results/ has of the present sources
    --suite NAME   measure these suites (or "all") in the time that is left
    --list-pending names the kernel families that lack a record, and ends; so does benchmarks.report --pending

Each step is a process with its own time limit. DIR/check.json is the record of the check, DIR/benchmark.json
that of the measurements: both are valid at every moment, also where the run is cut short or killed. What the
steps printed is in DIR/log.txt. Where our library is missing or wrong, baselines are measured nevertheless.
Exit status: 0 all right, 1 something was wrong or an essential step had no time, 2 no GPU here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.figures import latest
from benchmarks.records import RESULTS, Pending, load_records, pending
from benchmarks.steps import SECONDS, SKIPPED, Budget, Outcome, Step, run, table
from benchmarks.tables import short_lines
from build_support.cuda import find_cuda_home
from fastcnn.bench.record import Record, new_record, result_name

DEFAULT_MINUTES = 8.0
CLOSING_SECONDS = 20.0  # of these minutes, for starting and for the last record
SANITIZER_SECONDS = 40.0
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_EXIT = "86"
HAS_RECORD = "a record has it of the present sources"


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


def judge_info(output: str) -> str | None:
    """What is wrong with what `fastcnn info --json` says, or None."""
    facts = json.loads(output[output.index("{") :])
    cuda = facts["runs"]["cuda"]
    if cuda["kernels"] != "fastcnn":
        return f"CUDA tensors do not run fastcnn's kernels: {cuda['why']}"
    if facts["sources_changed_since_build"]:
        return "the library was built from other sources than this checkout's csrc: build it again"
    return None


def judge_tests(output: str) -> str | None:
    """What is wrong with a pytest run that ended well: that nothing ran."""
    closing = output.strip().splitlines()[-1] if output.strip() else ""
    return None if " passed" in closing else f"no test passed: {closing.strip(' =')}"


def check_steps() -> list[Step]:
    """Whether the kernels are right; the first step decides whether the others mean anything."""
    python = sys.executable
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10")
    workload = (python, "-m", "benchmarks.workload")
    return [
        Step("library", (python, "-m", "fastcnn", "info", "--json"), 40, judge=judge_info),
        Step("determinism", (*workload, "--repeat", "10", "--check"), 40),
        Step("tests", (*pytest, "-m", "cuda and not conformance"), 130, judge=judge_tests),
        Step("conformance", (*pytest, "-m", "conformance"), 60, judge=judge_tests),
    ]


def sanitizer_steps(sanitizer: Path | None) -> list[Step]:
    """compute-sanitizer's tools over every operator."""
    workload = (sys.executable, "-m", "benchmarks.workload", "--every", "7")
    missing = None if sanitizer else "compute-sanitizer is not installed here"
    # torch's caching allocator hides from the tools where one tensor ends and the next begins.
    environ = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step(
            f"sanitizer-{tool}",
            (sanitizer, "--tool", tool, "--error-exitcode", SANITIZER_EXIT, *workload),
            SANITIZER_SECONDS,
            missing=missing,
            environ=environ,
            essential=False,
        )
        for tool in SANITIZER_TOOLS
    ]


def measuring_step(out: Path, quick: bool, only: Sequence[str], suites: Sequence[str]) -> Step:
    """Measures a quick choice of cases, of these families only (of all, if none is named), then suites."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.measure",
        "--out",
        out / "benchmark.json",
        "--seconds",
        SECONDS,
    ]
    command += ["--quick"] if quick else []
    command += ["--family", *only] if only else []
    command += ["--suite", *suites] if suites else []
    # All the time there is, but for a look by the first two of the sanitizer's tools.
    reserve = 2 * SANITIZER_SECONDS
    return Step("benchmark", command, float("inf"), reserve=reserve, essential=False)


def plan_steps(
    out: Path, sanitizer: Path | None, lacking: Sequence[Pending] | None, suites: Sequence[str]
) -> list[Step]:
    """The steps in their order. `lacking` is what records lack, if only that is to be done."""
    checks, sanitizers = check_steps(), sanitizer_steps(sanitizer)
    if lacking is None:
        return [*checks, measuring_step(out, True, (), suites), *sanitizers]
    unmeasured = [item.family for item in lacking if not item.measured]
    if all(item.checked for item in lacking):
        # Whether the library is the right one is always looked at.
        checks = [checks[0], *(replace(step, missing=HAS_RECORD) for step in checks[1:])]
        sanitizers = [replace(step, missing=HAS_RECORD) for step in sanitizers]
    measuring = measuring_step(out, bool(unmeasured), unmeasured, suites)
    if not unmeasured and not suites:
        measuring = replace(measuring, missing=HAS_RECORD)
    return [*checks, measuring, *sanitizers]


def check(out: Path, steps: Sequence[Step], record: Record, seconds: float) -> list[Outcome]:
    """Runs the steps, each entering the record when it ends; returns how they went."""
    budget = Budget(seconds)
    outcomes: list[Outcome] = []
    for step in steps:
        print(f"-- {step.name}", flush=True)
        if outcomes and outcomes[0].wrong and step.name != "benchmark" and step.missing is None:
            step = replace(step, missing=f"without sense, as {steps[0].name} went wrong")
        outcomes.append(run(step, budget, out / "log.txt"))
        record.add_step(vars(outcomes[-1]))
    record.finish(ok=is_ok(outcomes))
    return outcomes


def is_ok(outcomes: Sequence[Outcome]) -> bool:
    """Whether nothing was wrong and every essential step was done, by this run or an earlier one."""
    done = all(o.status != SKIPPED or o.note == HAS_RECORD for o in outcomes if o.essential)
    return done and not any(outcome.wrong for outcome in outcomes)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The closing table and the verdict."""
    wrong = [outcome.name for outcome in outcomes if outcome.wrong]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "all right"
    return "\n".join(["", table(outcomes), "", f"gpu_check: {verdict}"])


def measured_lines(path: Path) -> list[str]:
    """What the benchmark's record has, a line for each group of layers; its worst cases are named."""
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    by_gpu = latest([record], record["sources"])
    return [line for of_gpu in by_gpu.values() for line in short_lines(of_gpu)]


def execute(out: Path, steps: Sequence[Step], seconds: float) -> int:
    """Runs the steps, leaving records and log in `out`, prints what came of it; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("check.json", "benchmark.json", "log.txt"):
        (out / name).unlink(missing_ok=True)
    # Asked to end, it ends as after an error: what it started is ended too, the records stay as they are.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    record = new_record("check", path=out / "check.json")
    outcomes = check(out, steps, record, seconds)
    print("\n".join(measured_lines(out / "benchmark.json")))
    print(summary(outcomes))
    for name in ("check", "benchmark"):
        if (out / f"{name}.json").exists():
            kept = RESULTS / result_name(record.content["machine"]["gpu"] or "", name, record.content["date"])
            print(f"to keep it: cp {out / name}.json {kept}")
    return 0 if record.content["ok"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks, or lists the families without a record; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder for the records and the log")
    parser.add_argument(
        "--minutes", type=float, default=DEFAULT_MINUTES, help="for everything (default: %(default)g)"
    )
    parser.add_argument(
        "--pending", action="store_true", help="only what no record has of the present sources"
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        default=[],
        metavar="NAME",
        help="suites to measure in the time that is left, or all",
    )
    parser.add_argument(
        "--list-pending", action="store_true", help="name the kernel families that lack a record, and end"
    )
    arguments = parser.parse_args(argv)
    if arguments.list_pending:
        return report.main(["--pending"])
    if arguments.out is None:
        parser.error("--out DIR is needed (or --list-pending)")
    if not arguments.minutes > CLOSING_SECONDS / 60:
        parser.error(f"--minutes must be above {CLOSING_SECONDS / 60:.2f}, but is {arguments.minutes:g}")
    lacking = pending(load_records(RESULTS)) if arguments.pending else None
    if lacking == [] and not arguments.suite:
        print(report.EVERYTHING_COVERED)
        return 0
    if not torch.cuda.is_available():
        print("gpu_check needs an NVIDIA GPU that torch can use, and there is none here.", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    steps = plan_steps(out, find_sanitizer(), lacking, arguments.suite)
    return execute(out, steps, 60 * arguments.minutes - CLOSING_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
