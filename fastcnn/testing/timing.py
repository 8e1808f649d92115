"""How long calls take, honestly and side by side: `device_times`, `call_times`, `compare`, ceilings, clocks.

Two clocks, never mixed. *Device time* is what the GPU takes when it is kept busy: the calls are captured in a
CUDA graph that is replayed between two events; where they cannot be captured, the events stand around the
calls themselves. Either way a short delay on the device comes first, so that nothing is issued too late.
*Call time* is what the host takes to make a call.

- All contenders are warmed up before any is measured, each of its calls at least once: autotuning (cuDNN's
  with `benchmark = True`), lazy loading and compilation are then over.
- Each brings several sets of buffers (`rotations` says how many), used in turn, results as well: every call
  finds memory that has left the L2 cache.
- One sample of each contender a round, A B A B, all in one process: what drifts, drifts for all.
- Bursts are short (`target_ms`) and the device rests before each, as long as the last one took: where power
  limits the clocks, long runs are slower than short ones, and this gives every burst the same past. Times are
  those of short bursts, therefore, and not of hours of training.
- Locking the clocks would be better still; `read_clocks` says where they stood.

Results are to be checked before they are timed; nothing here looks at them.

    a = Contender("eager", [lambda x=x: F.max_pool2d(x, 2) for x in inputs])
    b = Contender("fastcnn", [lambda x=x: fastcnn.functional.max_pool2d(x, 2) for x in inputs])
    times = device_times([a, b])
    print(compare(times["eager"], times["fastcnn"]))
"""

from __future__ import annotations

from fastcnn.testing._device_timers import (
    Burst,
    CaptureError,
    CudaTimer,
    DeviceTimer,
    WallTimer,
    default_timer,
)
from fastcnn.testing._rounds import Contender, ContenderError, call_times, device_times, rotations
from fastcnn.testing._statistics import Ratio, Samples, compare, quantile
from fastcnn.testing.ceilings import Ceilings, measure_ceilings
from fastcnn.testing.clocks import read_clocks

__all__ = [
    "Burst",
    "CaptureError",
    "Ceilings",
    "Contender",
    "ContenderError",
    "CudaTimer",
    "DeviceTimer",
    "Ratio",
    "Samples",
    "WallTimer",
    "call_times",
    "compare",
    "default_timer",
    "device_times",
    "measure_ceilings",
    "quantile",
    "read_clocks",
    "rotations",
]
