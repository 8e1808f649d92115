"""Runs a measuring process and outlives it: a kernel that crashes or hangs costs one case, not the run.

An illegal access ruins CUDA for the process that made it, and a kernel that waits for ever never gives the
GPU back. So a worker process measures, and prints what it does, one JSON object a line:

    {"event": "start", "ceilings": {...}, "protocol": {...}}      once, before anything else
    {"event": "begin", "index": 7, "seconds": 90, "case": {...}}  a case without times, how long it may take
    {"event": "case", "index": 7, "case": {...}}                  the same case, measured
    {"event": "end"}                                              nothing is left to measure

What else it prints goes to our output. Where it dies or stays silent, the case that it had begun is recorded
as wrong, and a new worker goes on there: first with that case's baselines alone, then with the next case.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fastcnn.bench.record import Record

MOST_FAILURES = 10  # after so many, something is wrong with more than a kernel
MOST_FAILURES_OF_FAMILY = 2  # then the family's own kernels are left out
ALL_MEASURED, TIME_OVER = "all measured", "the time was over"
MOST_SUSPECTS = 3  # a failure of a case of more families, such as a network's, is laid to none of them
START_SECONDS = 150.0  # until a worker begins its first case: imports, the planner's answers, ceilings
LOOK_EVERY = 0.1  # seconds between looks at whether a silent worker is still there


@dataclass
class Start:
    """How a worker is to begin: at which case, and whose own kernels it is to leave out.

    `ceilings` are those that the first one measured.
    """

    index: int = 0
    ceilings: dict | None = None
    without_cases: list[str] = field(default_factory=list)
    without_families: list[str] = field(default_factory=list)


class WorkerFailed(Exception):
    """A worker ended or was ended before its work was done; the message says how."""


def supervise(
    record: Record,
    command: Callable[[Start], Sequence[str]],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Adds to a record what workers measure.

    Args:
        record: is to have a path, so that it is saved as it grows.
        command: the command line of a worker.
        seconds: for all workers together.

    Returns:
        Why it ended, in a few words: "all measured", "the time was over", or what was wrong.
    """
    end = clock() + seconds
    start, wrong, failures = Start(), {}, Counter()
    while failures["all"] < MOST_FAILURES:
        begun = None
        try:
            for event in events(command(start), end, clock):
                if event["event"] == "start":
                    start.ceilings = event["ceilings"]
                    record.update(ceilings=event["ceilings"], protocol=event["protocol"])
                elif event["event"] == "begin":
                    begun = event
                elif event["event"] == "case":
                    case = event["case"]
                    record.add({**case, "wrong": wrong.get(case["id"], case["wrong"])})
                    begun = None
                else:
                    return ALL_MEASURED
            return TIME_OVER
        except WorkerFailed as failure:
            if begun is None:
                return f"{failure}, with no case begun"
            case = begun["case"]
            print(f"{case['id']}: {failure}", flush=True)
            start.index = begun["index"]
            _note_failure(record, case, str(failure), start, wrong)
            suspects = case["families"] if len(case["families"]) <= MOST_SUSPECTS else []
            failures.update(["all", *suspects])
            start.without_families = [
                family
                for family, count in failures.items()
                if family != "all" and count >= MOST_FAILURES_OF_FAMILY
            ]
    return f"given up after {MOST_FAILURES} failures"


def _note_failure(record: Record, case: dict, why: str, start: Start, wrong: dict[str, str]) -> None:
    """Records the case that a worker had begun, and how the next worker is to go on."""
    if case["id"] in start.without_cases:  # ours was left out: a baseline did it
        record.add({**case, "wrong": wrong[case["id"]], "skipped": {"baselines": why}})
        start.index += 1
    else:
        wrong[case["id"]] = why
        record.add({**case, "wrong": why})
        start.without_cases.append(case["id"])


def events(command: Sequence[str], end: float, clock: Callable[[], float] = time.monotonic) -> Iterator[dict]:
    """What a worker says, until it says "end" or the time is over; other lines of its output are printed.

    Raises:
        WorkerFailed: it ended before, or a case took longer than it was given.
    """
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, errors="replace"
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    until, patience, gone = clock() + START_SECONDS, START_SECONDS, False
    try:
        while clock() < end:
            try:
                line = lines.get(timeout=LOOK_EVERY)
            except queue.Empty:
                # A process that it started may hold its output open, so the worker itself is looked at; once
                # it is gone, its last words may still be on their way.
                if gone:
                    raise WorkerFailed(
                        f"the measuring process ended with exit status {process.returncode}"
                    ) from None
                gone = process.poll() is not None
                if clock() > until:
                    raise WorkerFailed(f"it did not end within {patience:.0f} s") from None
                continue
            event = _event(line)
            if event is None:
                print(line, end="", flush=True)
                continue
            patience = event.get("seconds", START_SECONDS)
            until = clock() + patience
            yield event
            if event["event"] == "end":
                return
    finally:
        process.kill()
        process.wait()


def _event(line: str) -> dict | None:
    """The event that a line tells; None for any other line, such as one that was cut off."""
    if not line.startswith('{"event":'):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None
