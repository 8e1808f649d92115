"""What touches the device when something is timed: CUDA graphs and events, or just the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import ClassVar, Protocol

import torch

Call = Callable[[], object]


class CaptureError(RuntimeError):
    """The calls could not be captured in a CUDA graph; its text says why. Nothing is left over of it."""


class Burst(Protocol):
    """A fixed number of calls, ready to be run again and again.

    `method` is how they are timed; `note` is None, or a sentence on what its times suffer from.
    """

    method: str
    note: str | None

    def run(self) -> float:
        """Runs all calls once; returns the time they took together, in microseconds."""

    def close(self) -> None:
        """Frees what the burst holds; it cannot be run again."""


class DeviceTimer(Protocol):
    """All that timing asks of a device. `CudaTimer` is the real one; tests use one with a clock of their own.

    Calls are taken in turn: the i-th of a burst is `calls[i % len(calls)]`, and results stay alive until the
    same set of buffers is used again, so that results rotate through memory like operands.
    """

    device: torch.device
    l2_bytes: int

    def warm_up(self, calls: Sequence[Call], count: int) -> None:
        """Makes `count` calls and waits for them. What they raise is raised."""

    def capture(self, calls: Sequence[Call], count: int) -> Burst:
        """`count` calls as one graph. Raises `CaptureError` where that cannot be done."""

    def issue(self, calls: Sequence[Call], count: int) -> Burst:
        """`count` calls, made anew each time the burst is run."""

    def host_time(self, calls: Sequence[Call], count: int) -> float:
        """How long the host took to make `count` calls, in microseconds, the device idle at the start."""

    def pause(self, seconds: float) -> None:
        """Leaves the device idle."""

    def release(self) -> None:
        """Gives back the memory that closed bursts held."""


def make_calls(calls: Sequence[Call], count: int) -> None:
    """Calls in turn; a result is dropped when its set of buffers comes round again."""
    if len(calls) == 1:
        call = calls[0]
        for _ in range(count):
            call()
        return
    results: list[object] = [None] * len(calls)
    for index in range(count):
        turn = index % len(calls)
        results[turn] = calls[turn]()


class _Issued:
    """Calls issued behind a delay on the device, so that it never waits for the host between them."""

    _SHORTEST_DELAY = 200e-6
    _LONGEST_DELAY = 0.2
    _BEHIND = "the device may have waited for the host: the calls could not all be issued ahead of it"

    def __init__(self, timer: CudaTimer, issue: Callable[[], object], method: str) -> None:
        self.method = method
        self.note: str | None = None
        self._timer = timer
        self._issue = issue
        self._delay = self._SHORTEST_DELAY

    def run(self) -> float:
        attempts = 3 if self.note is None else 1
        for _ in range(attempts):
            microseconds, host, delay = self._timer.between_events(self._issue, self._delay)
            if host < delay:
                return microseconds
            self._delay = min(self._LONGEST_DELAY, 2 * max(self._delay, host))
        # It waits for the device, or launches more than a stream queues: no delay is long enough for that.
        self.note = self._BEHIND
        self._delay = self._SHORTEST_DELAY
        return microseconds

    def close(self) -> None:
        self._issue = _closed


class _Replayed(_Issued):
    """A captured graph, replayed."""

    def __init__(self, timer: CudaTimer, graph: torch.cuda.CUDAGraph) -> None:
        super().__init__(timer, graph.replay, "graph")
        self._graph: torch.cuda.CUDAGraph | None = graph

    def close(self) -> None:
        super().close()
        if self._graph is not None:
            self._timer.forget(self._graph)
            self._graph = None


def _closed() -> None:
    raise RuntimeError("this burst was closed")


class CudaTimer:
    """Times on a GPU. Everything runs on one stream of its own: warm-up, capture, replay.

    So what libraries keep for each stream (cuBLAS's workspace, cuDNN's handles) is there before a capture.
    All graphs share one memory pool: they are replayed one after another and nobody reads their results.

    Args:
        device: a CUDA device; the default is the current one.

    Raises:
        RuntimeError: there is no GPU.
    """

    # A capture that the driver has invalidated leaves the allocators a filter that refers to its graph.
    _broken: ClassVar[list[torch.cuda.CUDAGraph]] = []

    def __init__(self, device: torch.device | str | int | None = None) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(
                "CudaTimer: torch finds no GPU here; WallTimer() times CPU tensors, by the host's clock"
            )
        torch.cuda.init()
        self.device = torch.device("cuda", torch.cuda.current_device() if device is None else _index(device))
        properties = torch.cuda.get_device_properties(self.device)
        self.l2_bytes = properties.L2_cache_size
        self._stream = torch.cuda.Stream(self.device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool: tuple[int, int] | None = None
        with self._on_stream():
            self._cycles_per_second = 1e9
            for _ in range(3):  # the first wakes the device up
                _, _, seconds = self.between_events(lambda: None, 1e-3)
                self._cycles_per_second *= 1e-3 / seconds

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                yield
            torch.cuda.current_stream().wait_stream(self._stream)

    def warm_up(self, calls: Sequence[Call], count: int) -> None:
        with self._on_stream():
            make_calls(calls, count)
            torch.cuda.synchronize()

    def issue(self, calls: Sequence[Call], count: int) -> Burst:
        return _Issued(self, lambda: make_calls(calls, count), "events")

    def capture(self, calls: Sequence[Call], count: int) -> Burst:
        with self._on_stream():
            # A graph's memory cannot come from blocks cached outside its pool, nor are they freed meanwhile.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            if not self._graphs or self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            fault = self._record(graph, calls, count)
            if fault is not None:
                raise CaptureError(fault)
            self._graphs.append(graph)
        return _Replayed(self, graph)

    def _record(self, graph: torch.cuda.CUDAGraph, calls: Sequence[Call], count: int) -> str | None:
        """Captures the calls; returns why it failed, or None. The stream records no longer, either way."""
        # Only this thread's unsafe calls count: others, autograd's for one, may allocate.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        fault = None
        ended = False
        try:
            try:
                make_calls(calls, count)
            except Exception as error:
                fault = _sentence(error)
            ended = True
            graph.capture_end()
        except RuntimeError as error:
            self._recover(graph)
            return fault or _sentence(error)
        finally:
            if not ended:  # an interrupt: it goes on its way, but not with the stream recording
                try:
                    graph.capture_end()
                except RuntimeError:
                    self._recover(graph)
        if fault is not None:
            graph.reset()
        return fault

    def _recover(self, broken: torch.cuda.CUDAGraph) -> None:
        """Cleans up after a capture that could not be ended.

        The driver has ended it, but torch left off halfway: the allocator still counts a capture as under
        way, and the random generator still believes in it and would refuse to draw. A capture that succeeds
        sets the generator right.
        """
        self._broken.append(broken)
        for undo in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with suppress(
                RuntimeError, AttributeError
            ):  # how much torch has left to do varies by its version
                getattr(torch._C, undo)(self.device.index, self._pool)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        torch.cuda._sleep(1)
        graph.capture_end()
        graph.reset()

    def between_events(self, issue: Callable[[], object], delay: float) -> tuple[float, float, float]:
        """Runs `issue` between two events, behind a delay of about so many seconds on the device.

        Returns the microseconds between the events, the seconds the host took to issue, and those of the
        delay: where the host took less, the device had no need to wait for it.
        """
        with self._on_stream():
            before, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            torch.cuda.synchronize()
            before.record()
            torch.cuda._sleep(int(delay * self._cycles_per_second))
            begun = time.perf_counter()
            start.record()
            issue()
            end.record()
            host = time.perf_counter() - begun
            end.synchronize()
        return 1e3 * start.elapsed_time(end), host, 1e-3 * before.elapsed_time(start)

    def host_time(self, calls: Sequence[Call], count: int) -> float:
        with self._on_stream():
            torch.cuda.synchronize()
            begun = time.perf_counter()
            make_calls(calls, count)
            host = time.perf_counter() - begun
            torch.cuda.synchronize()
        return 1e6 * host

    def pause(self, seconds: float) -> None:
        torch.cuda.synchronize(self.device)
        time.sleep(seconds)

    def forget(self, graph: torch.cuda.CUDAGraph) -> None:
        """Destroys a captured graph."""
        torch.cuda.synchronize(self.device)
        self._graphs.remove(graph)
        graph.reset()

    def release(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


def _index(device: torch.device | str | int) -> int:
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"CudaTimer: device must be a CUDA device, but is {device}")
    return torch.cuda.current_device() if device.index is None else device.index


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


@cache
def _timer_of(index: int) -> CudaTimer:
    return CudaTimer(index)


def default_timer() -> CudaTimer:
    """The current GPU's timer, always the same one. Raises RuntimeError where there is no GPU."""
    return _timer_of(torch.cuda.current_device()) if torch.cuda.is_available() else CudaTimer()


class WallTimer:
    """Times CPU tensors by the host's clock: to try things out without a GPU, not to judge kernels."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.l2_bytes = 32 << 20

    def warm_up(self, calls: Sequence[Call], count: int) -> None:
        make_calls(calls, count)

    def capture(self, calls: Sequence[Call], count: int) -> Burst:
        raise CaptureError("CPU tensors have no graphs")

    def issue(self, calls: Sequence[Call], count: int) -> Burst:
        return _Walled(calls, count)

    def host_time(self, calls: Sequence[Call], count: int) -> float:
        return _Walled(calls, count).run()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def release(self) -> None:
        pass


class _Walled:
    method = "wall"
    note: str | None = None

    def __init__(self, calls: Sequence[Call], count: int) -> None:
        self._calls = calls
        self._count = count

    def run(self) -> float:
        begun = time.perf_counter()
        make_calls(self._calls, self._count)
        return 1e6 * (time.perf_counter() - begun)

    def close(self) -> None:
        self._calls = ()
        self._count = 0
