"""Measures cases side by side with torch's within a time: `python -m benchmarks.measure --out FILE`.

    --quick           a few layers of every kind, and some of each kernel family that they leave out
    --family NAME ... of those, only the cases of these kernel families
    --suite NAME ...  then whole suites (fastcnn.bench.suites has their names and groups): bfloat16 in
                      channels_last first, then float32, TF32 and NCHW

The suites' cases that no record in benchmarks/results/ has of the present sources come first, so that one
call after another gets through all of them. A case that crashes or hangs costs its own time only, and FILE is
a valid record at every moment (benchmarks.supervise). Without our library the baselines are measured alone.
Exit status: 0, or 1 where our result of a case was wrong, or 2 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.figures import CURRENT, latest
from benchmarks.records import RESULTS, load_records
from benchmarks.supervise import ALL_MEASURED, TIME_OVER, Start, supervise
from fastcnn.bench import machine
from fastcnn.bench.cases import Case, expand, quick
from fastcnn.bench.measure import Settings, blank, build, measure
from fastcnn.bench.record import OURS, families_of, new_record
from fastcnn.bench.session import gpu_settings
from fastcnn.bench.suites import ConvRow, OtherRow, PoolRow, SuiteError, select
from fastcnn.testing.timing import Ceilings, WallTimer, measure_ceilings

#: The dtypes and layouts of whole suites, in the order in which a budget is best spent.
COMBINATIONS = (
    ("bf16", "channels_last"),
    ("fp32", "channels_last"),
    ("tf32", "channels_last"),
    ("bf16", "nchw"),
    ("fp32", "nchw"),
)
CASES_OF_FAMILY = 6  # that a quick run takes of a family which the quick choice leaves out
LAYER_SECONDS, NETWORK_SECONDS = 90.0, 400.0  # the longest that a case may take, compilation included
CONTEXT_LOST = 70  # a worker's exit status where CUDA can no longer be used
LEFT_OUT = "left out: an earlier run of it crashed or did not end"


def is_layer(case: Case) -> bool:
    """Whether the planner can tell which kernel a case runs."""
    return isinstance(case.row, (ConvRow, PoolRow))


def planned_families(case: Case, settings: Settings, known: Mapping[str, str]) -> list[str]:
    """The kernel families that a case runs, as the planner says; all that it may, where it says nothing."""
    kernel = None
    if known and is_layer(case):
        try:
            kernel = build(case, settings).kernel
        except Exception as error:  # measure() meets it again, and records it
            print(f"{case.id}: {error}", flush=True)
    return families_of(case.op, (kernel or {}).get("name"), known)


def quick_cases(only: Sequence[str], settings: Settings, known: Mapping[str, str]) -> list[Case]:
    """The quick choice, and some of the suites' layers for each family that it leaves out; networks last.

    Args:
        only: families whose cases are wanted; none stands for all.
        known: the library's families.
    """
    chosen = {case: planned_families(case, settings, known) for case in quick()}
    reached = {family for case, families in chosen.items() if is_layer(case) for family in families}
    missing = dict.fromkeys((f for f in only or known if f in known and f not in reached), CASES_OF_FAMILY)
    layers = (
        case
        for dtype, layout in COMBINATIONS
        for case in expand(select(["convs", "pools"]), dtypes=[dtype], layouts=[layout])
    )
    for case in layers if missing else ():
        families = planned_families(case, settings, known)
        if case not in chosen and any(missing.get(family, 0) > 0 for family in families):
            chosen[case] = families
            missing.update({f: missing[f] - 1 for f in families if f in missing})
        if max(missing.values()) <= 0:
            break
    wanted = [case for case, families in chosen.items() if not only or set(only) & set(families)]
    return sorted(wanted, key=lambda case: not is_layer(case))


def suite_cases(names: Sequence[str]) -> list[Case]:
    """Every case of suites and groups of suites, in the order of COMBINATIONS."""
    rows = select(names)
    by_combination = (expand(rows, dtypes=[dtype], layouts=[layout]) for dtype, layout in COMBINATIONS)
    return list(dict.fromkeys(case for cases in by_combination for case in cases))


def unmeasured_first(
    cases: Sequence[Case], records: Sequence[Mapping], gpu: str | None, known: Mapping[str, str]
) -> list[Case]:
    """The cases without a figure of these sources on this GPU, then the others, the oldest figures first."""
    figures = latest(records, known).get(gpu, [])
    dates = {figure.case["id"]: figure.record["date"] for figure in figures if figure.sources == CURRENT}
    return sorted(cases, key=lambda case: dates.get(case.id, ""))


def chosen_cases(arguments: argparse.Namespace, settings: Settings, known: Mapping[str, str]) -> list[Case]:
    """What the command line asks for, in the order of measuring: the same in every worker."""
    cases = quick_cases(arguments.family, settings, known) if arguments.quick else []
    if arguments.suite:
        gpu = machine.machine()["gpu"]
        cases += unmeasured_first(suite_cases(arguments.suite), load_records(RESULTS), gpu, known)
    return list(dict.fromkeys(cases))


def say(**event: object) -> None:
    """A line for benchmarks.supervise."""
    print(json.dumps(event), flush=True)


def work(arguments: argparse.Namespace) -> None:
    """A worker: measures from a case on, and says what it does."""
    start = Start(**json.loads(arguments.worker))
    settings = Settings(WallTimer()) if arguments.cpu else gpu_settings()
    settings = replace(settings, autotune=not arguments.quick)
    known = machine.sources()
    cases = chosen_cases(arguments, settings, known)
    if start.ceilings is None:
        start.ceilings = asdict(measure_ceilings(settings.timer))
        say(event="start", ceilings=start.ceilings, protocol=settings.protocol())
    settings = replace(settings, ceilings=Ceilings(**start.ceilings))
    for index in range(start.index, len(cases)):
        case = cases[index]
        families = planned_families(case, settings, known)
        out = case.id in start.without_cases or set(families) & set(start.without_families)
        patience = NETWORK_SECONDS if isinstance(case.row, OtherRow) else LAYER_SECONDS
        say(event="begin", index=index, seconds=patience, case={**blank(case), "families": families})
        found = measure(case, replace(settings, without_ours=LEFT_OUT) if out else settings)
        if settings.timer.device.type == "cuda" and not context_lives():
            os._exit(CONTEXT_LOST)
        say(event="case", index=index, case=found)
    say(event="end")


def context_lives() -> bool:
    """Whether CUDA still works in this process: an illegal access ends it for good."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(str(error).splitlines()[0], flush=True)
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Measures under supervision; prints, last, how far it came."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measure", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="the record to write")
    parser.add_argument("--seconds", type=float, default=300.0, help="for everything (default: %(default)g)")
    parser.add_argument("--quick", action="store_true", help="a few cases of every kind and family")
    parser.add_argument(
        "--family", nargs="+", default=[], metavar="NAME", help="of those, only these families'"
    )
    parser.add_argument("--suite", nargs="+", default=[], metavar="NAME", help="whole suites")
    parser.add_argument(
        "--cpu", action="store_true", help="try it all out on CPU tensors, by the host's clock"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        work(arguments)
        return 0
    if arguments.out is None or not (arguments.quick or arguments.suite):
        parser.error("--out FILE and --quick or --suite NAME are needed")
    try:
        select(arguments.suite)
    except SuiteError as error:
        parser.error(str(error))
    if not arguments.cpu and not torch.cuda.is_available():
        print(
            "benchmarks.measure needs an NVIDIA GPU that torch can use, and there is none here.",
            file=sys.stderr,
        )
        return 2
    asked = list(sys.argv[1:] if argv is None else argv)
    record = new_record("benchmark", path=arguments.out)
    why = supervise(
        record,
        lambda start: [
            sys.executable,
            "-m",
            "benchmarks.measure",
            *asked,
            "--worker",
            json.dumps(vars(start)),
        ],
        arguments.seconds,
    )
    cases = record.cases
    wrong = sum(bool(case["wrong"]) for case in cases)
    record.finish(ok=why in (ALL_MEASURED, TIME_OVER) and not wrong)
    times = sum(OURS in case["contenders"] for case in cases)
    print(f"{len(cases)} cases, {times} with times of ours, {wrong} wrong; {why}")
    return 1 if wrong else 0 if cases else 2


if __name__ == "__main__":
    sys.exit(main())
