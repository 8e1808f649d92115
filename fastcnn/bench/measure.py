"""One case: build it, check every contender, time those that are right side by side, say what it means."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from fastcnn.bench.cases import Case
from fastcnn.bench.check import Errors, WrongShape, errors, fault_of_baseline, fault_of_ours
from fastcnn.bench.convs import conv_problem
from fastcnn.bench.networks import network_problem
from fastcnn.bench.overhead import overhead_problem
from fastcnn.bench.pools import pool_problem
from fastcnn.bench.problem import OURS, NotHere, Operands, Problem, Way, laid_out, precision, sizeof
from fastcnn.bench.record import families_of
from fastcnn.bench.suites import ConvRow, PoolRow
from fastcnn.testing.timing import (
    Ceilings,
    Contender,
    ContenderError,
    DeviceTimer,
    Samples,
    call_times,
    compare,
    device_times,
    rotations,
)

_MEMORY_SHARE = 0.7  # of what is free: the rest is for workspaces and fragments
_LONGEST_QUEUE_US = 20e3  # device time that host timing lets pile up in a round


@dataclass(frozen=True)
class Settings:
    """How cases are measured, whichever they are.

    Attributes:
        timer: the device; "cpu" timers are for trying the pipeline out.
        ceilings: for the percentage of the roofline; None leaves that out.
        rounds: samples of each contender.
        target_ms: length of a burst of calls.
        host_rounds: samples of the host's time per call; 0 leaves it out.
        autotune: whether networks compete with torch.compile's max-autotune too.
        without_ours: why only baselines are measured, or None: ours takes part.
    """

    timer: DeviceTimer
    ceilings: Ceilings | None = None
    rounds: int = 9
    target_ms: float = 2.0
    pause_ms: float = 4.0
    host_rounds: int = 5
    autotune: bool = True
    without_ours: str | None = None

    def protocol(self) -> dict:
        """What a record says of how its times were taken."""
        return {
            "rounds": self.rounds,
            "burst_ms": self.target_ms,
            "pause_ms": self.pause_ms,
            "order": "A B A B, one sample of each contender a round",
            "cudnn_benchmark": True,
            "data": "random normal, weights scaled by 1/sqrt(C/groups * R * S)",
            "device": self.timer.device.type,
            "max_autotune": self.autotune,
        }


def build(case: Case, settings: Settings) -> Problem:
    """The case on the device. Raises what the operators raise on an impossible one."""
    device = settings.timer.device
    if isinstance(case.row, ConvRow):
        return conv_problem(case, device)
    if isinstance(case.row, PoolRow):
        return pool_problem(case, device)
    if case.row.suite == "call_overhead":
        return overhead_problem(case, device)
    return network_problem(case, device, autotune=settings.autotune)


def measure(case: Case, settings: Settings, make: Callable[[Case, Settings], Problem] = build) -> dict:
    """The case as a record has it (benchmarks/results/README.md).

    A contender whose result is wrong is not timed, the others are: why ours was refused is in "wrong", a
    baseline is named in "skipped" beside those that could not be had. A case that cannot be measured here has
    no contenders, and every reason in "skipped".
    """
    found = blank(case)
    try:
        with precision(case.tf32):
            problem = make(case, settings)
            found["kernel"] = problem.kernel
            found["families"] = families_of(case.op, (problem.kernel or {}).get("name"))
            found["skipped"].update(problem.missing)
            if problem.oracle != "float64":
                found["oracle"] = problem.oracle
            if problem.work is not None:
                found["bytes"], found["flops"] = problem.work
            _measure(case, problem, settings, found)
    except torch.OutOfMemoryError:
        _cannot(found, "the device has not enough memory for it")
    except NotHere as reason:
        _cannot(found, str(reason))
    except Exception as error:  # whatever a model or a compiler raises, the other cases go on
        _cannot(found, _sentence(error))
    finally:
        problem = None
        _tidy(settings)
    return found


def blank(case: Case) -> dict:
    """A case as a record has it before anything is known of it."""
    return {
        "id": case.id,
        "suite": case.row.suite,
        "layer": case.row.layer,
        "count": case.row.count,
        "op": case.op,
        "shape": case.row.shape(),
        "dtype": case.dtype,
        "layout": case.layout,
        "tf32": case.tf32,
        "families": [],
        "kernel": None,
        "bytes": None,
        "flops": None,
        "contenders": {},
        "baseline": None,
        "ratio": None,
        "tflops": None,
        "gbps": None,
        "percent_of_roofline": None,
        "wrong": None,
        "skipped": {},
    }


def _cannot(found: dict, reason: str) -> None:
    found["contenders"] = {}
    found["skipped"][OURS] = reason


def _measure(case: Case, problem: Problem, settings: Settings, found: dict) -> None:
    first = problem.operands(0)
    ways, accuracy = _check(problem, first, found, settings.without_ours)
    if not ways:
        return
    sets = _sets(problem, ways, first, settings)
    contenders = _contenders(problem, ways, first, sets)
    del first
    host = problem.host_time_only
    take = _host_times if host else _device_times
    times = take(contenders, settings, found["skipped"])
    if not times:
        return
    calls: dict[str, Samples] = {}
    if not host and settings.host_rounds:
        left = [contender for contender in contenders if contender.name in times]
        longest = max(samples.median for samples in times.values())
        most = max(1, min(50, int(_LONGEST_QUEUE_US / max(longest, 1e-3))))
        calls = _host_times(left, settings, found["skipped"], most, settings.host_rounds)
    for name, samples in times.items():
        found["contenders"][name] = {
            **_spread(samples),
            "method": samples.method,
            "calls": samples.calls,
            "note": samples.note,
            "error": accuracy[name].as_dict(),
            "call_us": _spread(calls[name]) if name in calls else None,
        }
    found["sets_of_buffers"] = sets
    _conclude(case, found, times, settings.ceilings)


def _check(
    problem: Problem, operands: Operands, found: dict, without_ours: str | None
) -> tuple[list[Way], dict[str, Errors]]:
    """Runs every contender once on the same operands; those that are right, and how right they are.

    Baselines first: what they are off by is what ours is judged by.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        truth = problem.truth(operands)
    accuracy: dict[str, Errors] = {}
    right: list[Way] = []
    for way in problem.ways[1:]:
        try:
            got = _run(way, operands)
            accuracy[way.name] = errors(got, truth)
        except torch.OutOfMemoryError:
            found["skipped"][way.name] = "the device has not enough memory for it"
            continue
        except Exception as error:  # a compiler can raise anything
            found["skipped"][way.name] = _sentence(error)
            continue
        fault = fault_of_baseline(accuracy[way.name], problem.rule)
        if fault:
            found["skipped"][way.name] = fault
            del accuracy[way.name]
        else:
            right.append(way)
        del got
    ours = problem.ways[0]
    if without_ours:
        found["skipped"][OURS] = without_ours
        return right, accuracy
    try:
        accuracy[OURS] = errors(_run(ours, operands), truth)
        baselines = {name: seen for name, seen in accuracy.items() if name != OURS}
        found["wrong"] = fault_of_ours(accuracy[OURS], baselines, problem.rule)
        if found["wrong"] is None and problem.further_fault is not None:
            found["wrong"] = problem.further_fault(operands)
    except torch.OutOfMemoryError:
        raise
    except WrongShape as error:
        found["wrong"] = str(error)
    except Exception as error:
        found["wrong"] = f"it failed: {_sentence(error)}"
    return ([] if found["wrong"] else [ours]) + right, accuracy


def _run(way: Way, operands: Operands) -> Operands:
    got = (way.check or way.bind)(laid_out(operands, way.layout))()
    return (got,) if isinstance(got, torch.Tensor) else tuple(got)


def _sets(problem: Problem, ways: list[Way], first: Operands, settings: Settings) -> int:
    """How many sets of operands: enough to leave the cache, as many as fit, at least one.

    Raises:
        NotHere: one set of each layout, with results, does not fit.
    """
    wanted = min(rotations(problem.bytes_per_call, settings.timer.l2_bytes), problem.most_sets)
    free = _free_memory(settings.timer.device)
    if free is None:
        return min(wanted, 2)
    layouts = len({way.layout for way in ways})
    # Operands stay, in each layout; results live until their set comes round, in a pool shared by all graphs.
    each = layouts * sizeof(first) + problem.result_bytes
    fits = int((_MEMORY_SHARE * free - 2 * problem.result_bytes) // max(1, each))
    if fits < 1:
        raise NotHere(
            f"one set of buffers takes {each / 2**30:.1f} GiB, of which the device has not enough "
            f"({free / 2**30:.1f} GiB free)"
        )
    return min(wanted, fits)


def _free_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _contenders(problem: Problem, ways: list[Way], first: Operands, sets: int) -> list[Contender]:
    """Contenders of one layout share their operands."""
    layouts = {way.layout for way in ways}
    laid: dict[str, list[Operands]] = {layout: [] for layout in layouts}
    for index in range(sets):
        operands = first if index == 0 else problem.operands(index)
        for layout in layouts:
            laid[layout].append(laid_out(operands, layout))
    return [Contender(way.name, [way.bind(operands) for operands in laid[way.layout]]) for way in ways]


def _device_times(
    contenders: list[Contender], settings: Settings, skipped: dict[str, str]
) -> dict[str, Samples]:
    return _without_failures(
        contenders,
        skipped,
        lambda left: device_times(
            left,
            rounds=settings.rounds,
            target_ms=settings.target_ms,
            pause_ms=settings.pause_ms,
            timer=settings.timer,
        ),
    )


def _host_times(
    contenders: list[Contender],
    settings: Settings,
    skipped: dict[str, str],
    most_calls: int = 50,
    rounds: int | None = None,
) -> dict[str, Samples]:
    return _without_failures(
        contenders,
        skipped,
        lambda left: call_times(
            left,
            rounds=rounds or settings.rounds,
            target_ms=settings.target_ms,
            most_calls=most_calls,
            timer=settings.timer,
        ),
    )


def _without_failures(
    contenders: list[Contender],
    skipped: dict[str, str],
    take: Callable[[list[Contender]], dict[str, Samples]],
) -> dict[str, Samples]:
    """Times of those that can be timed; a contender that fails is left out, with the reason, and the rest
    start anew."""
    left = list(contenders)
    while left:
        try:
            return take(left)
        except ContenderError as error:
            skipped[error.contender] = _sentence(error.__cause__ or error)
            left = [contender for contender in left if contender.name != error.contender]
            # The traceback holds the call's tensors.
            error.__traceback__ = None
    return {}


def _conclude(case: Case, found: dict, times: dict[str, Samples], ceilings: Ceilings | None) -> None:
    baselines = {name: samples for name, samples in times.items() if name != OURS}
    if baselines:
        found["baseline"] = min(baselines, key=lambda name: baselines[name].median)
    if OURS not in times:
        return
    ours = times[OURS]
    if baselines:
        ratio = compare(baselines[found["baseline"]], ours)
        found["ratio"] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    if found["bytes"] is None or ours.method == "host":
        return
    seconds = 1e-6 * ours.median
    found["gbps"] = 1e-9 * found["bytes"] / seconds
    convolution = case.op.startswith("conv2d")
    if convolution:
        found["tflops"] = 1e-12 * found["flops"] / seconds
    if ceilings is not None:
        floor = found["bytes"] / ceilings.copy_bytes_per_second
        if convolution:
            peak = ceilings.flops_per_second["tf32" if case.tf32 else case.dtype]
            floor = max(floor, found["flops"] / peak)
        found["percent_of_roofline"] = 100 * floor / seconds


def _spread(samples: Samples) -> dict:
    return {
        "samples_us": list(samples.values),
        "median_us": samples.median,
        "p10_us": samples.p10,
        "p90_us": samples.p90,
    }


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def _tidy(settings: Settings) -> None:
    """Nothing of the last case is left: compiled code, tensors, cached memory."""
    if "torch._dynamo" in sys.modules:  # importing it takes seconds, and nothing was compiled without it
        torch._dynamo.reset()
    gc.collect()
    if settings.timer.device.type == "cuda":
        with suppress(RuntimeError):  # after an illegal access nothing works, and the case's reason says so
            torch.cuda.empty_cache()
