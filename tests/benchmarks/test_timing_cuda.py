"""fastcnn.testing.timing on a real GPU: a known ratio, graphs beside events, and failed captures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcnn.testing.timing import (
    CaptureError,
    Contender,
    call_times,
    compare,
    default_timer,
    device_times,
    measure_ceilings,
    rotations,
)

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")


def copies(mebibytes: int) -> list:
    """Calls that copy so much, in rotating buffers."""

    def copy(source: torch.Tensor, target: torch.Tensor):
        return lambda: target.copy_(source)

    size = mebibytes << 20
    return [copy(*torch.empty(2, size // 4, device="cuda").normal_()) for _ in range(rotations(2 * size))]


def test_twice_the_bytes_take_twice_the_time():
    pair = [Contender("twice", copies(512)), Contender("once", copies(256))]
    times = device_times(pair)
    assert times["once"].method == times["twice"].method == "graph"
    ratio = compare(times["twice"], times["once"])
    assert 1.85 < ratio.low <= ratio.value <= ratio.high < 2.15
    assert 2 * (256 << 20) / (1e-6 * times["once"].median) < 12e12  # bytes per second of no GPU of today


def test_graphs_and_events_agree():
    calls = copies(128)
    both = [Contender("graph", calls), Contender("events", calls, capture=False)]
    times = device_times(both)
    assert (times["graph"].method, times["events"].method) == ("graph", "events")
    assert compare(times["graph"], times["events"]).value == pytest.approx(1.0, abs=0.05)


def test_events_do_not_see_the_host():
    """A kernel of a few microseconds takes the host longer to launch."""
    x = torch.randn(1 << 20, device="cuda")
    out = torch.empty_like(x)
    both = [
        Contender(name, [lambda: torch.add(x, 1.0, out=out)], name == "graph") for name in ("graph", "events")
    ]
    times = device_times(both)
    assert times["events"].note == "a graph was not asked for"
    assert times["events"].median < 2 * times["graph"].median + 3.0


def test_what_waits_for_the_device_falls_back_and_leaves_captures_and_random_numbers_working():
    x = torch.randn(1 << 16, device="cuda")
    pair = [Contender("waits", [lambda: x.sum().item()]), Contender("sum", [lambda: x.sum()])]
    times = device_times(pair, rounds=3)
    assert times["waits"].method == "events"
    assert times["waits"].note.startswith("no graph: ")
    assert times["sum"].method == "graph"
    assert torch.isfinite(torch.randn(10, device="cuda")).all()
    timer = default_timer()
    with pytest.raises(CaptureError):
        timer.capture([torch.cuda.synchronize], 1)
    burst = timer.capture([lambda: torch.randn(10, device="cuda")], 5)
    assert burst.run() > 0
    burst.close()
    assert torch.isfinite(torch.randn(10, device="cuda")).all()


def test_calls_that_allocate_tune_and_run_backward_are_captured():
    image = torch.randn(8, 16, 32, 32, device="cuda", requires_grad=True)
    weight = torch.randn(32, 16, 3, 3, device="cuda", requires_grad=True)

    def step():
        output = F.conv2d(image, weight, padding=1).relu()
        return torch.autograd.grad(output.sum(), (image, weight))

    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        times = device_times([Contender("step", [step] * 3)], rounds=3)
    assert times["step"].method == "graph", times["step"].note
    assert times["step"].median > 0


def test_call_times_are_less_than_the_work_of_a_long_kernel():
    a = torch.randn(4096, 4096, device="cuda")
    out = torch.empty_like(a)
    contender = Contender("product", [lambda: torch.mm(a, a, out=out)])
    device, host = device_times([contender]), call_times([contender])
    assert 0 < host["product"].median < device["product"].median


def test_ceilings_are_in_their_order():
    ceilings = measure_ceilings(copy_bytes=1 << 28, matrix_size=4096)
    rates = ceilings.flops_per_second
    assert 1e10 < ceilings.copy_bytes_per_second < 12e12
    assert rates["bfloat16"] > rates["float32"] > 1e11
    assert rates["tf32"] >= 0.9 * rates["float32"]
