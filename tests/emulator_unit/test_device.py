"""The order of threads and the counters of launches."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest


def test_all_threads_run_once_and_blocks_one_after_another(device: ModuleType) -> None:
    order = device.thread_order(7, 48)
    assert sorted(order) == list(range(7 * 48))
    blocks = np.array(order).reshape(7, 48) // 48
    assert (blocks == blocks[:, :1]).all()


def test_the_seed_decides_the_order(device: ModuleType) -> None:
    def order(seed: int) -> list[int]:
        device.set_seed(seed)
        return device.thread_order(5, 64)

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) == 10
    block_orders = {tuple(np.array(order(seed)).reshape(5, 64)[:, 0] // 64) for seed in range(10)}
    assert len(block_orders) > 3


def test_launches_differ_under_one_seed_and_repeat_after_it_is_set_again(device: ModuleType) -> None:
    device.set_seed(4)
    first, second = device.thread_order(1, 256), device.thread_order(1, 256)
    device.set_seed(4)
    assert first != second
    assert [device.thread_order(1, 256), device.thread_order(1, 256)] == [first, second]


def test_every_thread_can_come_first(device: ModuleType) -> None:
    first = {device.thread_order(1, 8)[0] for _ in range(200)}
    assert first == set(range(8))


def test_counters_of_a_barrier_kernel(device: ModuleType) -> None:
    device.run_self_test("dropped_barrier", False)
    (launch,) = device.launches()
    widths = {1: 0, 2: 0, 4: 64, 8: 0, 16: 0}
    assert launch == {
        "name": "self_test",
        "grid": (1, 1, 1),
        "threads": 64,
        "shared_bytes": 512,
        "global_bytes_read": 256,
        "global_bytes_written": 256,
        "global_loads": widths,
        "global_stores": widths,
        "shared_loads": 64,
        "shared_stores": 64,
        "shared_bytes_loaded": 256,
        "shared_bytes_stored": 256,
        "async_copies": 0,
        "matrix_loads": 0,
        "mmas": 0,
        "shuffles": 0,
        "votes": 0,
        "warp_barriers": 0,
        "barriers": 1,
    }


@pytest.mark.parametrize(
    ("name", "warps", "expected"),
    [
        ("mma_m16n8k16_float16", 3, {"mmas": 3, "barriers": 0}),
        ("ldmatrix_x4", 2, {"matrix_loads": 2, "shared_bytes_loaded": 2 * 512, "barriers": 2}),
        ("cp_async_16", 2, {"async_copies": 64, "shared_bytes_stored": 2 * 32 * (16 + 16)}),
        ("shfl_xor", 2, {"shuffles": 4}),
        ("votes", 1, {"votes": 3, "barriers": 3}),
    ],
)
def test_counters_of_instructions(
    device: ModuleType, name: str, warps: int, expected: dict[str, int]
) -> None:
    words, _ = device.instructions()[name]
    device.run_instruction(name, np.ones((warps, 32, words), np.uint32))
    (launch,) = device.launches()
    assert {key: launch[key] for key in expected} == expected


def test_a_copy_counts_the_global_bytes_that_it_reads(device: ModuleType) -> None:
    words = np.zeros((1, 32, 8), np.uint32)
    words[0, :10, 4] = 1
    device.run_instruction("cp_async_16", words)
    (launch,) = device.launches()
    assert launch["global_loads"][16] == 10


def test_reset_forgets_the_launches(device: ModuleType) -> None:
    device.thread_order(1, 1)
    assert [launch["name"] for launch in device.launches()] == ["note_order"]
    device.reset()
    assert device.launches() == []


def test_a_failed_launch_leaves_no_record(device: ModuleType) -> None:
    with pytest.raises(RuntimeError):
        device.run_self_test("uninitialised", True)
    assert device.launches() == []
