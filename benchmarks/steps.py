"""Steps of a run, each a process with its own time limit; late and failed ones are recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_support.build_info import ROOT

OK, FAILED, LATE, SKIPPED = "ok", "failed", "late", "skipped"
LEAST_SECONDS = 5.0  # with less than this left, a step is not begun
CLOSING_SECONDS = 8.0  # what a command that is told its time gets beyond it, for starting and ending
SECONDS = "{seconds}"  # in a command: replaced by the whole seconds that it may take


@dataclass(frozen=True)
class Step:
    """A command to run for at most `limit` seconds, and never into the last `reserve` seconds of the run.

    `missing` says why it cannot or need not be run; `judge` may find fault with its output. Without an
    `essential` step that went well the run has shown nothing; another may be cut short for lack of time.
    """

    name: str
    command: Sequence[str | Path]
    limit: float
    missing: str | None = None
    judge: Callable[[str], str | None] = lambda output: None
    environ: Mapping[str, str] = field(default_factory=dict)
    reserve: float = 0.0
    essential: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a step went: `status` is "ok", "failed", "late" or "skipped"; `note` says why, in one line."""

    name: str
    status: str
    seconds: float
    note: str
    essential: bool = True

    @property
    def wrong(self) -> bool:
        return self.status == FAILED or (self.status == LATE and self.essential)


class Budget:
    """Seconds that a whole run may take."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())


def last_line(output: str) -> str:
    """The last line that says something, cut to a table's width."""
    lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
    return lines[-1][:100] if lines else ""


def run(step: Step, budget: Budget, log: Path) -> Outcome:
    """Runs a step within its own limit and what the budget has left; its output is appended to `log`."""

    def outcome(status: str, seconds: float, note: str) -> Outcome:
        return Outcome(step.name, status, seconds, note, step.essential)

    if step.missing:
        return outcome(SKIPPED, 0.0, step.missing)
    limit = min(step.limit, budget.left() - step.reserve)
    if limit < LEAST_SECONDS:
        return outcome(LATE, 0.0, "not begun: no time was left for it")
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {step.name}\n".encode())
        file.flush()
        begin = file.tell()
        status = _run(_command(step, limit), step.environ, file, limit)
    seconds = time.monotonic() - start
    with log.open("rb") as file:
        file.seek(begin)
        output = file.read().decode(errors="replace")
    if status is None:
        return outcome(LATE, seconds, f"ended after {limit:.0f} s: {last_line(output)}")
    if status != 0:
        return outcome(FAILED, seconds, f"exit status {status}: {last_line(output)}")
    fault = step.judge(output)
    return outcome(FAILED, seconds, fault) if fault else outcome(OK, seconds, last_line(output))


def _command(step: Step, limit: float) -> list[str]:
    seconds = str(max(1, int(limit - CLOSING_SECONDS)))
    return [seconds if part == SECONDS else str(part) for part in step.command]


def _run(command: Sequence[str], environ: Mapping[str, str], log, limit: float) -> int | None:
    """The exit status, or None where the time was over; the processes that it started end with it."""
    # A group of its own, and no session of its own: it is to end with whatever ends our session.
    group = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ},
        **group,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per step."""
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    return "\n".join(
        f"{outcome.name:<{width}}  {outcome.status:<7}  {outcome.seconds:6.1f} s  {outcome.note}"
        for outcome in outcomes
    )
