"""What the device can do at best, measured in the same run: copy bandwidth and matrix rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastcnn.testing._device_timers import DeviceTimer, default_timer
from fastcnn.testing._rounds import Contender, device_times

__all__ = ["Ceilings", "measure_ceilings"]

#: Name of a rate -> the operands' dtype and whether TF32 is allowed.
_RATES = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}


@dataclass(frozen=True)
class Ceilings:
    """`copy_bytes_per_second` counts bytes read and bytes written; `flops_per_second` has two for each
    multiply-add, under "bfloat16", "float16", "tf32" and "float32"."""

    copy_bytes_per_second: float
    flops_per_second: dict[str, float]


def measure_ceilings(
    timer: DeviceTimer | None = None, *, copy_bytes: int | None = None, matrix_size: int | None = None
) -> Ceilings:
    """Measures a large copy and large square matrix products of random normal numbers.

    The copy is the faster of a memory copy and of an elementwise kernel. Measured like everything else, in
    short bursts with pauses: where power limits the clocks, a long run would be slower, and so would kernels.

    Args:
        timer: the default is the current GPU's.
        copy_bytes: the size of the tensor that is copied; by default 1 GiB, 16 MiB on a CPU.
        matrix_size: rows and columns of the matrices; by default 8192, 256 on a CPU.

    Raises:
        RuntimeError: there is no GPU and no timer was given.
    """
    timer = timer or default_timer()
    on_cpu = timer.device.type == "cpu"
    bandwidth = _bandwidth(timer, copy_bytes or (16 << 20 if on_cpu else 1 << 30))
    size = matrix_size or (256 if on_cpu else 8192)
    rates = {name: _rate(timer, name, dtype, tf32, size) for name, (dtype, tf32) in _RATES.items()}
    return Ceilings(bandwidth, rates)


def _seconds(timer: DeviceTimer, **calls: Callable[[], object]) -> float:
    """Seconds per call of the fastest."""
    times = device_times([Contender(name, [call]) for name, call in calls.items()], rounds=5, timer=timer)
    return 1e-6 * min(samples.median for samples in times.values())


def _bandwidth(timer: DeviceTimer, size: int) -> float:
    source = torch.randn(size // 4, device=timer.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _seconds(
        timer, copy=lambda: target.copy_(source), negate=lambda: torch.neg(source, out=target)
    )


def _rate(timer: DeviceTimer, name: str, dtype: torch.dtype, tf32: bool, size: int) -> float:
    left, right = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    with _matmul_precision("tf32" if tf32 else "ieee"):
        return 2 * size**3 / _seconds(timer, **{name: lambda: torch.mm(left, right, out=product)})


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """The precision of float32 products, "tf32" or "ieee"; afterwards what it was.

    Set by the newer of torch's two switches alone: this one never looks at the other, while reading the older
    one raises an error where a program has set the newer.
    """
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
