"""Steps of a run, each a process with its own time limit and log. Late and failed ones are recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_support.build_info import ROOT

OK, FAILED, LATE, SKIPPED = "ok", "failed", "late", "skipped"
LEAST_SECONDS = 5.0  # with less than this left, a step is not begun


@dataclass(frozen=True)
class Step:
    """A command to run. `missing` says why it cannot be run here; `judge` may find fault with its log."""

    name: str
    command: Sequence[str | Path]
    limit: float
    missing: str | None = None
    judge: Callable[[str], str | None] = lambda log: None
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step went: `status` is "ok", "failed", "late" or "skipped"; `note` says why, in one line."""

    name: str
    status: str
    seconds: float
    note: str
    log: str | None = None

    @property
    def wrong(self) -> bool:
        return self.status in (FAILED, LATE)


class Budget:
    """Seconds that a whole run may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())


def last_line(log: str) -> str:
    """The last line that says something, cut to a table's width."""
    lines = [line.strip(" =") for line in log.splitlines() if line.strip(" =")]
    return lines[-1][:100] if lines else ""


def run(step: Step, budget: Budget, folder: Path) -> Outcome:
    """Runs a step within its own limit and what the budget has left; its output goes to folder/NAME.log."""
    if step.missing:
        return Outcome(step.name, SKIPPED, 0.0, step.missing)
    limit = min(step.limit, budget.left())
    if limit < LEAST_SECONDS:
        return Outcome(step.name, LATE, 0.0, "not begun: the whole run's time was used up")
    path = folder / f"{step.name}.log"
    start = time.monotonic()
    with path.open("w") as log:
        # A session of its own, so that the processes it starts end with it.
        process = subprocess.Popen(
            [str(part) for part in step.command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **step.environ},
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - start
    text = path.read_text(errors="replace")
    if status is None:
        return Outcome(step.name, LATE, seconds, f"ended after {limit:.0f} s: {last_line(text)}", path.name)
    if status != 0:
        return Outcome(step.name, FAILED, seconds, f"exit status {status}: {last_line(text)}", path.name)
    fault = step.judge(text)
    if fault:
        return Outcome(step.name, FAILED, seconds, fault, path.name)
    return Outcome(step.name, OK, seconds, last_line(text), path.name)


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per step."""
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    return "\n".join(
        f"{outcome.name:<{width}}  {outcome.status:<7}  {outcome.seconds:6.1f} s  {outcome.note}"
        for outcome in outcomes
    )
