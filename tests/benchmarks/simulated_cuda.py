"""As much of torch.cuda as timing uses, over a clock of its own: a host that issues, a device that follows.

Kernels have known durations. A launch costs the host time; the device begins a kernel when it is issued and
the one before has ended. Captures follow torch 2.11: what spoils one is found when it ends, and then the
allocator and the random generator are left as torch leaves them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastcnn.testing import _device_timers

CYCLES_PER_SECOND = 2e9
LAUNCH_COST = 4.0  # microseconds of the host
L2_BYTES = 50 << 20

REAL_CAPTURE_BEGIN = inspect.signature(torch.cuda.CUDAGraph.capture_begin)


class SimulatedCuda:
    """All times in microseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = 0.0
        self.device_free = 0.0
        self.capturing: Graph | None = None
        self.generator_in_capture = False
        self.allocating_to: list[tuple[int, int]] = []
        self.pool_uses: dict[tuple[int, int], int] = {}
        self.default_stream = SimulatedStream(self)
        self.current = self.default_stream
        self.replays: list[Graph] = []
        self.pauses: list[float] = []
        cuda = {
            "is_available": lambda: True,
            "init": lambda: None,
            "current_device": lambda: 0,
            "get_device_properties": lambda device=None: SimpleNamespace(L2_cache_size=L2_BYTES),
            "device": lambda device: self._unchanged(),
            "Stream": lambda device=None: SimulatedStream(self),
            "stream": self._on,
            "current_stream": lambda: self.current,
            "synchronize": lambda device=None: self.synchronize(),
            "empty_cache": lambda: None,
            "Event": lambda enable_timing: Event(self),
            "CUDAGraph": lambda: Graph(self),
            "graph_pool_handle": self._new_pool,
            "_sleep": lambda cycles: self.launch(1e6 * cycles / CYCLES_PER_SECOND),
        }
        for name, value in cuda.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end_allocate)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release_pool)
        clock = SimpleNamespace(perf_counter=lambda: 1e-6 * self.host, sleep=self._sleep_host)
        assert all(hasattr(time, name) for name in vars(clock))
        monkeypatch.setattr(_device_timers, "time", clock)

    def launch(self, duration: float, cost: float = LAUNCH_COST) -> None:
        self.host += cost
        if self.capturing is not None:
            assert self.current is self.capturing.stream
            self.capturing.kernels.append(duration)
            return
        self.device_free = max(self.device_free, self.host) + duration

    def synchronize(self) -> None:
        if self.capturing is not None:
            self.capturing.spoiled = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore words")
        self.host = max(self.host, self.device_free)

    def draw(self) -> None:
        """What a random number on the device asks of the generator."""
        if (self.capturing is not None) != self.generator_in_capture:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def kernel(
        self, duration: float | Callable[[], float], cost: float = LAUNCH_COST
    ) -> Callable[[], object]:
        """A call that launches one kernel."""
        return lambda: self.launch(duration() if callable(duration) else duration, cost)

    @contextmanager
    def _on(self, stream: SimulatedStream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _unchanged(self):
        yield

    def _sleep_host(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.host += 1e6 * seconds

    def _new_pool(self) -> tuple[int, int]:
        pool = (0, 1 + len(self.pool_uses))
        self.pool_uses[pool] = 0
        return pool

    def _end_allocate(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.allocating_to:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating_to.remove(pool)

    def _release_pool(self, device: int, pool: tuple[int, int]) -> None:
        assert self.pool_uses[pool] > 0
        self.pool_uses[pool] -= 1


class SimulatedStream:
    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda

    def wait_stream(self, other: SimulatedStream) -> None:
        assert self._cuda.capturing is None


class Event:
    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self._at = 0.0

    def record(self) -> None:
        self._at = max(self._cuda.device_free, self._cuda.host)

    def synchronize(self) -> None:
        self._cuda.synchronize()

    def elapsed_time(self, end: Event) -> float:
        return 1e-3 * (end._at - self._at)


class Graph:
    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self.kernels: list[float] = []
        self.spoiled = False
        self.ended = False
        self.pool: tuple[int, int] | None = None
        self.stream: SimulatedStream | None = None

    def capture_begin(self, *arguments: object, **keywords: object) -> None:
        cuda = self._cuda
        given = REAL_CAPTURE_BEGIN.bind(self, *arguments, **keywords).arguments
        assert cuda.current is not cuda.default_stream
        assert cuda.capturing is None
        self.pool = given.get("pool") or cuda._new_pool()
        self.stream = cuda.current
        cuda.pool_uses[self.pool] += 1
        cuda.allocating_to.append(self.pool)
        cuda.generator_in_capture = True
        cuda.capturing = self

    def capture_end(self) -> None:
        cuda = self._cuda
        assert cuda.capturing is self
        assert cuda.current is self.stream
        cuda.capturing = None
        if self.spoiled:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        cuda._end_allocate(0, self.pool)
        cuda.generator_in_capture = False
        self.ended = True

    def replay(self) -> None:
        assert self.ended
        self._cuda.replays.append(self)
        self._cuda.launch(sum(self.kernels), cost=20 + 0.05 * len(self.kernels))

    def reset(self) -> None:
        if self.ended:
            self._cuda._release_pool(0, self.pool)
        self.ended = False
