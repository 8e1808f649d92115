"""What the tests of fastcnn.bench share: a clock that only they move, and a problem of known durations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcnn.bench.cases import Case
from fastcnn.bench.measure import Settings
from fastcnn.bench.problem import OURS, Problem, Way, rounding
from fastcnn.bench.suites import ConvRow
from fastcnn.testing.timing import CaptureError, Ceilings, WallTimer

CEILINGS = Ceilings(1e12, {"bfloat16": 1e14, "float16": 1e14, "tf32": 5e13, "float32": 1e13})
ROW = ConvRow("made_up", "layer", 2, 2, 8, 6, 6, 4, 3, 3, padding=(1, 1))
CASE = Case(ROW, "conv2d_fprop", "float32")


class Clock:
    """Microseconds that pass when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0


class FakeTimer:
    """A device whose calls take what they add to the clock."""

    def __init__(self, clock: Clock) -> None:
        self.device = torch.device("cpu")
        self.l2_bytes = 1 << 20
        self.clock = clock

    def warm_up(self, calls, count) -> None:
        for index in range(count):
            calls[index % len(calls)]()

    def capture(self, calls, count):
        raise CaptureError("there are no graphs here")

    def issue(self, calls, count):
        return _Burst(self, calls, count)

    def host_time(self, calls, count) -> float:
        return _Burst(self, calls, count).run()

    def pause(self, seconds) -> None:
        pass

    def release(self) -> None:
        pass


class _Burst:
    method, note = "events", None

    def __init__(self, timer, calls, count) -> None:
        self._timer, self._calls, self._count = timer, calls, count

    def run(self) -> float:
        begun = self._timer.clock.now
        for index in range(self._count):
            self._calls[index % len(self._calls)]()
        return self._timer.clock.now - begun

    def close(self) -> None:
        pass


def made_up(
    clock: Clock, contenders: dict[str, tuple[float, Callable[[torch.Tensor], torch.Tensor]]]
) -> Callable[[Case, Settings], Problem]:
    """Builds a problem: each contender's duration in microseconds and its function; the truth is x + 1."""

    def way(name, duration, function):
        def bind(operands):
            def call():
                clock.now += duration
                return function(operands[0])

            return call

        return Way(name, bind)

    def make(case, settings):
        return Problem(
            ways=[way(name, *contenders[name]) for name in (OURS, *(n for n in contenders if n != OURS))],
            operands=lambda index: (torch.full((4, 4), float(index)),),
            truth=lambda operands: (operands[0].double() + 1,),
            rule=rounding("float32", False, 1),
            bytes_per_call=128,
            most_sets=2,
            work=(10**6, 10**9),
        )

    return make


def fake_settings(clock: Clock, **changes) -> Settings:
    return Settings(FakeTimer(clock), CEILINGS, **{"rounds": 3, "pause_ms": 0.0, **changes})


def wall_settings(**changes) -> Settings:
    """CPU tensors, as little timing as may be."""
    chosen = {"rounds": 2, "target_ms": 0.01, "pause_ms": 0.0, "host_rounds": 0, **changes}
    return Settings(WallTimer(), CEILINGS, **chosen)
