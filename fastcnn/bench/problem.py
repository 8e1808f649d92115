"""What is known of a case once it meets a device: who competes, on which operands, against what truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

Operands = tuple[Tensor, ...]
Result = Tensor | tuple[Tensor, ...]
Call = Callable[[], Result]

OURS = "fastcnn"


@dataclass(frozen=True)
class Way:
    """One contender: `bind` makes a call of it on one set of operands.

    What `bind` prepares (indices, leaves that want gradients) is not timed. `check`, where given, makes the
    call whose results are compared in place of the timed one's.
    """

    name: str
    bind: Callable[[Operands], Call]
    layout: str = "channels_last"
    check: Callable[[Operands], Call] | None = None


@dataclass(frozen=True)
class Rule:
    """How far from the truth results may be, as root mean square error over the truth's.

    Ours: `factor` times the least error of the baselines, plus `unit`, or `bound` where that is what the
    arithmetic itself allows (`at_least_bound`) or where there is no baseline. The largest error, over the
    largest value, may be twice as far. A baseline: `bound`. `exact` asks all for equal values.
    """

    bound: float
    unit: float = 0.0
    factor: float = 2.0
    at_least_bound: bool = False
    exact: bool = False


@dataclass
class Problem:
    """A case on a device.

    Attributes:
        ways: ours first.
        operands: makes the i-th set of operands, in NCHW; layouts are brought about by `laid_out`.
        truth: the results of all ways on a set of operands, in float64.
        rule: what counts as equal to the truth.
        bytes_per_call: what a call moves, for the choice of how many sets to rotate.
        result_bytes: of one call's results.
        most_sets: more sets of operands are of no use.
        missing: contender -> why it does not compete here.
        work: bytes and flops, for the roofline; None where they say nothing.
        kernel: the planner's choice, or None.
        oracle: the dtype in which `truth` really computes.
        further_fault: what else may be wrong with ours, on a set of operands; None if nothing is.
        host_time_only: the case is about the host's time and has no device time.
    """

    ways: list[Way]
    operands: Callable[[int], Operands]
    truth: Callable[[Operands], Operands]
    rule: Rule
    bytes_per_call: int
    result_bytes: int = 0
    most_sets: int = 64
    missing: dict[str, str] = field(default_factory=dict)
    work: tuple[int, int] | None = None
    kernel: dict | None = None
    oracle: str = "float64"
    further_fault: Callable[[Operands], str | None] | None = None
    host_time_only: bool = False


class NotHere(RuntimeError):
    """A case cannot be measured here; the message says why."""


def results(result: Result) -> Operands:
    """A call's results as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def laid_out(operands: Sequence[Tensor], layout: str) -> Operands:
    """4-D tensors in a layout, the others as they are."""
    bring = channels_last if layout == "channels_last" else Tensor.contiguous
    return tuple(bring(t) if t.dim() == 4 else t for t in operands)


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor in NHWC, by its strides too: those of one channel, or of one pixel, could mean both layouts,
    and where they are left as they were torch and we take them for NCHW."""
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    _, c, h, w = tensor.shape
    return tensor.as_strided(tensor.shape, (h * w * c, 1, w * c, c))


def sizeof(tensors: Sequence[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Normal:
    """Random normal numbers, the same for the same seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, shape: Sequence[int], scale: float = 1.0) -> Tensor:
        values = torch.randn(tuple(shape), device=self._device, dtype=self._dtype, generator=self._generator)
        return values.mul_(scale) if scale != 1 else values


def without_cudnn(call: Call) -> Call:
    """The call with cuDNN off, so that ATen's own kernels compute."""

    def native() -> Result:
        with torch.backends.cudnn.flags(
            enabled=False, benchmark=True, deterministic=False, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            return call()

    return native


def compiled(function: Callable, mode: str | None = None) -> Callable:
    """torch.compile for one shape. Graph breaks are errors, and so is a compilation given up on: a compiled
    baseline that silently is the eager one would be no baseline. Graphs of its own it must not make: the
    timing captures it."""
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def rounding(dtype: str, tf32: bool, length: int) -> Rule:
    """The rule for sums of `length` products.

    The bound is generous: eight roundings of the result, sums carried in float32 with errors that add up at
    random (eight times those, as Winograd's do), and TF32's rounding of the factors.
    """
    unit = torch.finfo(getattr(torch, dtype)).eps / 2
    bound = 8 * unit + 8 * length**0.5 * 2.0**-24 + (4 * 2.0**-11 if tf32 else 0.0)
    return Rule(bound, unit, at_least_bound=tf32)


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """cuDNN with autotuning, and TF32 on or off, in convolutions and matrix products alike."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32):
            yield
    finally:
        matmul.allow_tf32 = before
