"""fastcnn.testing.timing, over a simulated device on which every duration is known."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path

import pytest
import torch

from fastcnn.testing.timing import (
    CaptureError,
    Contender,
    ContenderError,
    CudaTimer,
    Samples,
    WallTimer,
    call_times,
    compare,
    default_timer,
    device_times,
    measure_ceilings,
    read_clocks,
    rotations,
)
from tests.benchmarks.simulated_cuda import L2_BYTES, SimulatedCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    return SimulatedCuda(monkeypatch)


def assert_clean(cuda: SimulatedCuda) -> None:
    """Nothing is left of any capture, and the caller's stream is current again."""
    assert cuda.capturing is None
    assert cuda.current is cuda.default_stream
    assert not cuda.allocating_to
    assert not any(cuda.pool_uses.values())
    cuda.draw()


def test_device_times_are_the_kernels_own(cuda):
    pair = [Contender("slow", [cuda.kernel(15.0)]), Contender("fast", [cuda.kernel(10.0)])]
    times = device_times(pair, rounds=5, timer=CudaTimer())
    assert times["slow"].values == pytest.approx([15.0] * 5)
    assert times["fast"].values == pytest.approx([10.0] * 5)
    assert times["slow"].method == times["fast"].method == "graph"
    assert times["slow"].note is None
    ratio = compare(times["slow"], times["fast"])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert_clean(cuda)


def test_graphs_and_events_agree_though_the_host_is_slower_than_the_device(cuda):
    slow_to_issue = cuda.kernel(5.0, cost=50.0)
    pair = [Contender("graph", [slow_to_issue]), Contender("events", [slow_to_issue], capture=False)]
    times = device_times(pair, timer=CudaTimer())
    assert times["events"].method == "events"
    assert times["events"].note == "a graph was not asked for"
    assert times["events"].median == pytest.approx(5.0)
    assert times["graph"].median == pytest.approx(5.0)
    assert times["events"].calls <= 64 < times["graph"].calls


def test_a_call_that_waits_for_the_device_is_timed_with_a_note(cuda):
    def waits():
        cuda.launch(5.0)
        cuda.synchronize()

    times = device_times([Contender("waits", [waits])], timer=CudaTimer())["waits"]
    assert times.method == "events"
    assert "not permitted when stream is capturing" in times.note
    assert "more words" not in times.note
    assert "waited for the host" in times.note
    assert times.median >= 5.0
    assert_clean(cuda)


def test_rounds_alternate_and_each_burst_rests_as_long_as_the_last_one_took(cuda):
    timer = CudaTimer()
    trio = [Contender(name, [cuda.kernel(us)]) for name, us in (("a", 1.0), ("b", 7.0), ("c", 40_000.0))]
    device_times(trio, rounds=4, target_ms=2.0, pause_ms=4.0, timer=timer)
    kernels = [graph.kernels[0] for graph in cuda.replays]
    assert kernels == [1.0, 7.0, 40_000.0] * 5  # once untimed
    assert cuda.pauses == pytest.approx([0.004, 0.004, 0.04] * 4)


def test_bursts_are_about_as_long_as_asked_in_whole_rotations(cuda):
    calls = [cuda.kernel(10.0)] * 7
    for target_ms, count in ((2.0, 203), (0.01, 7), (1000.0, 1022)):
        times = device_times([Contender("a", calls)], target_ms=target_ms, timer=CudaTimer())
        assert times["a"].calls == count
        assert times["a"].median == pytest.approx(10.0)


def test_buffers_and_results_rotate(cuda):
    used = []
    alive: list[weakref.ref] = []

    class Result:
        pass

    def call(turn: int):
        def make() -> Result:
            cuda.launch(100.0)
            used.append(turn)
            result = Result()
            alive.append(weakref.ref(result))
            # The last result of this turn is still there when its successor is made, as those of the others.
            assert sum(reference() is not None for reference in alive[-5:]) >= min(5, turn + 1)
            return result

        return make

    device_times([Contender("a", [call(turn) for turn in range(4)])], rounds=2, timer=CudaTimer())
    assert len(used) % 4 == 0
    assert used == [0, 1, 2, 3] * (len(used) // 4)
    assert all(reference() is None for reference in alive)


def test_rotations_go_past_the_cache():
    for size in (1 << 20, 10 << 20, 49 << 20, 150 << 20, 1 << 30):
        sets = rotations(size, 50 << 20)
        assert sets == 64 or sets * size >= 3 * (50 << 20)
        assert sets == 1 or (sets - 1) * size < 3 * (50 << 20)
    assert rotations(0, 50 << 20) == rotations(1000, 50 << 20) == 64
    assert rotations(1 << 30, 50 << 20) == 1
    with pytest.raises(ValueError, match="must not be negative, but is -1"):
        rotations(-1)


def test_rotations_know_the_gpus_cache(cuda):
    assert rotations(10 << 20) == rotations(10 << 20, L2_BYTES) == 15


def test_what_cannot_be_captured_is_timed_by_events_and_leaves_nothing_behind(cuda):
    def spoils():  # as a synchronising call does, or an allocation outside torch's allocator
        cuda.launch(8.0)
        if cuda.capturing is not None:
            cuda.capturing.spoiled = True

    def raises():
        cuda.launch(9.0)
        if cuda.capturing is not None:
            raise NotImplementedError("this one looks whether it is captured")

    trio = [
        Contender("spoils", [spoils]),
        Contender("raises", [raises]),
        Contender("good", [cuda.kernel(4.0)]),
    ]
    times = device_times(trio, rounds=3, timer=CudaTimer())
    assert {name: samples.method for name, samples in times.items()} == {
        "spoils": "events",
        "raises": "events",
        "good": "graph",
    }
    assert "previous error during capture" in times["spoils"].note
    assert times["raises"].note == "no graph: NotImplementedError: this one looks whether it is captured"
    assert [times[name].median for name in times] == pytest.approx([8.0, 9.0, 4.0])
    assert_clean(cuda)


def test_an_interrupt_during_capture_ends_the_capture(cuda):
    def interrupted():
        cuda.launch(8.0)
        if cuda.capturing is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device_times([Contender("a", [interrupted])], timer=CudaTimer())
    assert cuda.capturing is None
    assert cuda.current is cuda.default_stream
    assert gc.isenabled()


def test_graphs_share_a_pool_that_is_left_unused(cuda):
    timer = CudaTimer()
    pair = [Contender(name, [cuda.kernel(10.0)]) for name in "ab"]
    device_times(pair, timer=timer)
    assert len(cuda.pool_uses) == 1
    device_times(pair, timer=timer)
    assert len(cuda.pool_uses) == 2
    assert_clean(cuda)


@pytest.mark.parametrize("fatal_call", [1, 4, 7])
def test_a_contender_that_raises_is_named(cuda, fatal_call):
    count = 0

    def breaks():
        nonlocal count
        count += 1
        cuda.launch(1.0)
        if count >= fatal_call:
            raise ZeroDivisionError("of what was broken")

    pair = [Contender("fine", [cuda.kernel(1.0)]), Contender("broken", [breaks], capture=False)]
    with pytest.raises(
        ContenderError, match=r"broken failed while .*: ZeroDivisionError: of what was broken"
    ) as e:
        device_times(pair, rounds=3, target_ms=1e-3, timer=CudaTimer())
    assert e.value.contender == "broken"
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert gc.isenabled()
    assert_clean(cuda)


def test_contenders_that_make_no_sense_are_refused(cuda):
    one = Contender("a", [cuda.kernel(1.0)])
    for wrong, words in (([], "a name of its own"), ([one, one], "a name of its own")):
        with pytest.raises(ValueError, match=words):
            device_times(wrong, timer=CudaTimer())
    with pytest.raises(ValueError, match="at least one call, but b has none"):
        call_times([one, Contender("b", [])], timer=CudaTimer())
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        device_times([one], rounds=0, timer=CudaTimer())


def test_call_times_are_the_hosts(cuda):
    calls = [Contender("a", [cuda.kernel(500.0, cost=30.0)]), Contender("b", [cuda.kernel(2.0, cost=60.0)])]
    times = call_times(calls, rounds=4, timer=CudaTimer())
    assert times["a"].values == pytest.approx([30.0] * 4)
    assert times["b"].values == pytest.approx([60.0] * 4)
    assert times["a"].method == "host"
    assert times["a"].calls == 50
    assert times["b"].calls == 33


def test_noise_and_drift_stay_inside_the_interval_of_a_known_ratio(cuda):
    covered = 0
    for seed in range(20):
        generator = random.Random(seed)

        def noisy(duration: float, generator: random.Random = generator):
            return lambda: duration * generator.gauss(1, 0.02)

        # In events bursts, since a replayed graph repeats the durations it has captured.
        pair = [Contender(name, [cuda.kernel(noisy(us))], False) for name, us in (("a", 24.0), ("b", 20.0))]
        times = device_times(pair, rounds=15, target_ms=0.02, timer=CudaTimer())
        ratio = compare(times["a"], times["b"], seed=seed)
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.value == pytest.approx(1.2, rel=0.05)
        covered += ratio.low <= 1.2 <= ratio.high
    assert covered >= 17


def test_rounds_are_paired_so_that_what_slows_both_widens_nothing():
    drift = [1.0 + 0.1 * number for number in range(15)]
    ours = Samples(tuple(10 * factor for factor in drift))
    paired = compare(Samples(tuple(20 * factor for factor in drift)), ours)
    assert (paired.low, paired.high) == pytest.approx((2.0, 2.0))
    shuffled = [20 * factor for factor in drift]
    random.Random(1).shuffle(shuffled)
    apart = compare(Samples(tuple(shuffled)), ours)
    assert apart.high - apart.low > 0.3


def test_intervals_are_reproducible_by_their_seed():
    generator = random.Random(3)
    a, b = (Samples(tuple(generator.uniform(9, 11) for _ in range(40))) for _ in range(2))
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    assert compare(a, b, seed=1) != compare(a, b, seed=2)
    assert compare(a, b, seed=1).value == compare(a, b, seed=2).value


def test_outliers_show_in_the_percentiles_and_not_in_the_median():
    samples = Samples((10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0, 95.0, 90.0, 10.0, 1.0))
    assert samples.median == 10.0
    assert samples.p10 == pytest.approx(9.8)
    assert samples.p90 == pytest.approx(90.0)


def test_samples_that_are_no_times_are_refused():
    for values in ((), (1.0, float("nan")), (-1.0,), (float("inf"),)):
        with pytest.raises(ValueError, match="Samples"):
            Samples(values)
    with pytest.raises(ValueError, match="have 1 and 2 samples"):
        compare(Samples((1.0,)), Samples((1.0, 2.0)))
    with pytest.raises(ValueError, match="median time is zero"):
        compare(Samples((1.0,)), Samples((0.0,)))


class FixedTimer(WallTimer):
    """Every call is made and takes as long as `durations` says of the name by which it is known."""

    def __init__(self, microseconds: float) -> None:
        super().__init__()
        self.microseconds = microseconds
        self.precisions: list[str] = []

    def issue(self, calls, count):
        burst = super().issue(calls, 1)
        made = burst.run

        def run() -> float:
            made()
            self.precisions.append(torch.backends.cuda.matmul.fp32_precision)
            return count * self.microseconds

        burst.run = run
        return burst

    def pause(self, seconds: float) -> None:
        pass


def test_ceilings_are_bytes_and_flops_over_time():
    timer = FixedTimer(250.0)
    before = torch.backends.cuda.matmul.fp32_precision
    ceilings = measure_ceilings(timer, copy_bytes=4 << 10, matrix_size=16)
    assert ceilings.copy_bytes_per_second == pytest.approx(2 * 4096 / 250e-6)
    assert list(ceilings.flops_per_second) == ["bfloat16", "float16", "tf32", "float32"]
    assert list(ceilings.flops_per_second.values()) == pytest.approx([2 * 16**3 / 250e-6] * 4)
    assert "tf32" in timer.precisions
    assert timer.precisions[-1] == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_precision_is_restored_where_a_measurement_fails():
    timer = FixedTimer(float("nan"))
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(ContenderError):
        measure_ceilings(timer, copy_bytes=4 << 10, matrix_size=16)
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_cpu_tensors_can_be_timed_by_the_wall():
    x = torch.randn(8)
    pair = [Contender("once", [lambda: x + 1]), Contender("many", [lambda: [x + 1 for _ in range(50)]])]
    times = device_times(pair, rounds=3, target_ms=0.2, pause_ms=0, timer=WallTimer())
    assert times["once"].method == "wall"
    assert times["once"].note is None
    assert compare(times["many"], times["once"]).value > 3
    with pytest.raises(CaptureError):
        WallTimer().capture([lambda: None], 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"no GPU here; WallTimer\(\) times CPU tensors"):
        default_timer()


def _nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_clocks_are_read_as_numbers_and_names(tmp_path, monkeypatch):
    line = "NVIDIA H200, 580.95, 1980, 2619, 1980, [N/A], 512.34, 700.00, 61, 0x0000000000000044"
    _nvidia_smi(tmp_path, monkeypatch, f'echo "$*" > {tmp_path}/asked; echo "{line}"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert read_clocks() == {
        "name": "NVIDIA H200",
        "driver": "580.95",
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "sm_max_mhz": 1980.0,
        "memory_max_mhz": None,
        "power_watts": 512.34,
        "power_limit_watts": 700.0,
        "temperature_celsius": 61.0,
        "throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown"],
    }
    assert torch.cuda.is_initialized() or "--id=3" in (tmp_path / "asked").read_text().split()


def test_an_older_driver_names_throttle_reasons_otherwise(tmp_path, monkeypatch):
    script = (
        'case "$*" in *event_reasons*) echo "Field is not a valid field to query."; exit 2;; esac; '
        "echo 'Tesla V100, 450.1, 1, 2, 3, 4, 5, 6, 7, 0x0000000000001001'"
    )
    _nvidia_smi(tmp_path, monkeypatch, script)
    assert read_clocks()["throttle_reasons"] == ["gpu_idle", "0x1000"]


def test_without_nvidia_smi_there_are_no_clocks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_clocks() is None
