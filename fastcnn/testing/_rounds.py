"""Contenders taking turns: rounds of bursts on the device, and rounds of calls on the host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastcnn.testing._device_timers import Burst, CaptureError, DeviceTimer, default_timer
from fastcnn.testing._statistics import Samples

L2_MULTIPLE = 3  # a cache that holds a third of what went by since holds nothing of use
MAX_ROTATIONS = 64
MAX_CAPTURED = 1024  # calls in a graph
MAX_ISSUED = 64  # calls between two events: a stream queues only so many launches ahead
LONGEST_PAUSE = 0.1  # seconds


@dataclass(frozen=True)
class Contender:
    """`calls` do the same work on different buffers and are made in turn.

    With `capture` False no graph is tried: for calls that bring a graph of their own, such as a function
    compiled with mode="max-autotune" (mode="max-autotune-no-cudagraphs" can be captured), or that wait for
    the device. A call with a backward pass has its forward pass inside it, or that ran on the same stream.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    capture: bool = True


class ContenderError(RuntimeError):
    """A contender raised an error, which is the `__cause__`; `contender` is its name."""

    def __init__(self, contender: str, doing: str, error: BaseException) -> None:
        super().__init__(f"{contender} failed while {doing}: {type(error).__name__}: {error}")
        self.contender = contender


def rotations(bytes_per_call: int, l2_bytes: int | None = None) -> int:
    """How many sets of buffers make the calls between two uses of one set go well past the L2 cache.

    Args:
        bytes_per_call: what one call reads and writes.
        l2_bytes: the cache's size; by default the current GPU's, 50 MiB where there is none.

    Returns:
        At least 1, at most 64: a call of less than 1/64 of what is needed stays in the cache, and its time is
        the launch's rather than the memory's.

    Raises:
        ValueError: `bytes_per_call` is negative.
    """
    if bytes_per_call < 0:
        raise ValueError(f"rotations(): bytes_per_call must not be negative, but is {bytes_per_call}")
    if l2_bytes is None:
        on_gpu = torch.cuda.is_available()
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size if on_gpu else 50 << 20
    needed = -(-L2_MULTIPLE * l2_bytes // max(1, bytes_per_call))
    return min(max(1, needed), MAX_ROTATIONS)


def device_times(
    contenders: Sequence[Contender],
    *,
    rounds: int = 9,
    target_ms: float = 2.0,
    warmup: int = 3,
    pause_ms: float = 4.0,
    timer: DeviceTimer | None = None,
) -> dict[str, Samples]:
    """Device time of each contender, in microseconds per call, one sample a round.

    Args:
        contenders: with different names, at least one call each.
        rounds: samples of each; they come A B A B.
        target_ms: how long a burst of calls is to take; it has at least one call for each set of buffers.
        warmup: the least number of calls before anything is timed; each set of buffers is used at least once.
        pause_ms: the shortest rest before a burst.
        timer: the default is the current GPU's. `WallTimer()` for CPU tensors.

    Raises:
        ValueError: contenders or numbers that make no sense.
        ContenderError: a contender raised an error, and which.
        RuntimeError: there is no GPU and no timer was given.
    """
    _check(contenders, rounds)
    timer = timer or default_timer()
    entries: list[_Entry] = []
    with _no_garbage_collection():
        try:
            for contender in contenders:
                with _named(contender, "warming up"):
                    timer.warm_up(contender.calls, max(warmup, len(contender.calls)))
            for contender in contenders:
                with _named(contender, "being prepared"):
                    entries.append(_prepare(contender, timer, target_ms))
            for _ in range(rounds):
                for entry in entries:
                    timer.pause(min(LONGEST_PAUSE, max(1e-3 * pause_ms, 1e-6 * entry.last)))
                    with _named(entry.contender, "being timed"):
                        entry.sample()
        finally:
            for entry in entries:
                entry.burst.close()
            timer.release()
    return {entry.contender.name: entry.samples() for entry in entries}


def call_times(
    contenders: Sequence[Contender],
    *,
    rounds: int = 9,
    target_ms: float = 2.0,
    warmup: int = 3,
    most_calls: int = 50,
    timer: DeviceTimer | None = None,
) -> dict[str, Samples]:
    """Host time of each contender, in microseconds per call: until a call returns, not until its work ends.

    The device is idle when a round begins, and a round has at most `most_calls` calls, so that the queue of
    launches never fills up. Buffers are as warm as they happen to be. The other arguments are those of
    `device_times`, and so are the errors.
    """
    _check(contenders, rounds)
    timer = timer or default_timer()
    counts, values = {}, {contender.name: [] for contender in contenders}
    with _no_garbage_collection():
        try:
            for contender in contenders:
                with _named(contender, "warming up"):
                    timer.warm_up(contender.calls, max(warmup, len(contender.calls)))
                    once = timer.host_time(contender.calls, 1)
                counts[contender.name] = min(most_calls, max(1, round(1e3 * target_ms / max(once, 1e-3))))
            for _ in range(rounds):
                for contender in contenders:
                    count = counts[contender.name]
                    with _named(contender, "being timed"):
                        values[contender.name].append(timer.host_time(contender.calls, count) / count)
        finally:
            timer.release()
    return {name: Samples(tuple(times), "host", counts[name]) for name, times in values.items()}


class _Entry:
    """A contender in the rounds."""

    def __init__(self, contender: Contender, burst: Burst, calls: int, note: str | None) -> None:
        self.contender = contender
        self.burst = burst
        self.last = 0.0
        self._calls = calls
        self._note = note
        self._values: list[float] = []

    def sample(self) -> None:
        self.last = self.burst.run()
        self._values.append(self.last / self._calls)

    def samples(self) -> Samples:
        note = "; ".join(filter(None, (self._note, self.burst.note))) or None
        return Samples(tuple(self._values), self.burst.method, self._calls, note)


def _prepare(contender: Contender, timer: DeviceTimer, target_ms: float) -> _Entry:
    """A burst of about the wanted length, run once."""
    turns = len(contender.calls)
    estimate = timer.issue(contender.calls, turns).run() / turns
    wanted = 1e3 * target_ms / max(estimate, 1e-3)

    def count(most: int) -> int:
        """Whole rotations, at least one."""
        return turns * max(1, min(round(wanted / turns), most // turns))

    note = "a graph was not asked for" if not contender.capture else None
    burst = None
    if contender.capture:
        try:
            calls = count(MAX_CAPTURED)
            burst = timer.capture(contender.calls, calls)
        except CaptureError as reason:
            note = f"no graph: {reason}"
    if burst is None:
        calls = count(MAX_ISSUED)
        burst = timer.issue(contender.calls, calls)
    entry = _Entry(contender, burst, calls, None if burst.method == "wall" else note)
    try:
        entry.last = burst.run()
    except BaseException:
        burst.close()
        raise
    return entry


def _check(contenders: Sequence[Contender], rounds: int) -> None:
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"there must be contenders, each with a name of its own, but they are {names}")
    empty = [contender.name for contender in contenders if not contender.calls]
    if empty:
        raise ValueError(f"a contender must have at least one call, but {', '.join(empty)} has none")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, but is {rounds}")


@contextmanager
def _named(contender: Contender, doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ContenderError(contender.name, doing, error) from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection takes time, and one that destroys another graph spoils a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
