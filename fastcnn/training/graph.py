"""A training step's gradients as one CUDA graph: one launch instead of one per kernel."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

WARM_UP = 3  # steps in which libraries choose their kernels and lazy state is made, before one is captured


class Replayable(Protocol):
    """Work that was captured."""

    def replay(self) -> None:
        """Do it again, on the same memory."""


class CudaCapture:
    """Captures work on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """For work before a capture: on a side stream, since autograd ties the accumulation of gradients to
        the stream on which it first ran, and the default stream cannot be captured."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], None]) -> Replayable:
        """Record what `work` launches, without running it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            work()
        return graph


class Capture(Protocol):
    """What `GraphedGradients` needs of `CudaCapture`."""

    def warming_up(self) -> AbstractContextManager: ...

    def __call__(self, work: Callable[[], None]) -> Replayable: ...


class GraphedGradients:
    """`compute`, captured once and then replayed.

    compute: takes a batch (x, y), leaves its gradients in the parameters, whatever was there before, and
        returns a tensor. It must not wait for the device.
    parameters: all that may get a gradient.
    capture: a `CudaCapture`.

    A call does what `compute` does. The first `WARM_UP` calls are plain ones; then the first batch whose
    shapes are those of the very first is captured, and batches of these shapes are replayed from there on.
    Others, such as the shorter last one of an epoch, run plainly. The result of a replay, like the gradients,
    is overwritten by the next.

    Raises RuntimeError where the work cannot be captured.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        parameters: Iterable[nn.Parameter],
        capture: Capture,
    ) -> None:
        self._compute = compute
        self._parameters = list(parameters)
        self._capture = capture
        self._calls = 0
        self._kind: tuple | None = None
        self._graph: Replayable | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        kind = (x.shape, x.dtype, x.stride(), y.shape, y.dtype)
        self._kind = self._kind or kind
        self._calls += 1
        if self._calls <= WARM_UP:
            with self._capture.warming_up():
                return self._compute(x, y)
        if kind != self._kind:
            return self._compute(x, y)
        if self._graph is None:
            self._record(x, y)
        else:
            self._x.copy_(x)
            self._y.copy_(y)
        self._graph.replay()
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        return self._result

    def _record(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x.clone(), y.clone()
        for parameter in self._parameters:
            # Gradients then come to lie in the graph's own memory, and a replay writes them anew.
            parameter.grad = None

        def work() -> None:
            self._result = self._compute(self._x, self._y)

        try:
            self._graph = self._capture(work)
        except Exception as error:
            raise RuntimeError(
                f"the training step can't be captured in a CUDA graph ({type(error).__name__}: {error}); a "
                "model or loss that waits for the device (.item(), .cpu(), branching on a tensor's value) "
                "can't be: change that, or train with graph=False"
            ) from error
        self._grads = [parameter.grad for parameter in self._parameters]
