"""Each self-test kernel runs when it is right, and is refused for its reason when it breaks its rule."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

UNINITIALISED = "reads uninitialised shared memory: .*byte [0-9]+ of the block's shared memory at .*:[0-9]+"
RACE = "race on shared memory: .* thread .* with no barrier in between"
PENDING = "a cp.async of thread .* has not landed"

# The order of threads decides which of two unordered accesses comes second and is seen to break the rule.
REASONS = {
    "dropped_barrier": f"{RACE}|{UNINITIALISED}",
    "dropped_second_barrier": RACE,
    "two_writers": "race on shared memory: writes element .* wrote with no barrier",
    "byte_race": f"{RACE}|{UNINITIALISED}",
    "late_reader": RACE,
    "warp_ordered": f"{RACE}|{UNINITIALISED}",
    "shuffle_orders_nothing": f"{RACE}|{UNINITIALISED}",
    "index_too_large": "shared memory out of bounds: accesses element 64 of an array of 64 at",
    "index_negative": "shared memory out of bounds: accesses element -1 of an array of 64 at",
    "vector_beyond_end": "shared memory out of bounds: accesses elements 8 to 11 of an array of 10",
    "vector_misaligned": "misaligned shared memory access: a vector of 4 elements at element 2",
    "uninitialised": UNINITIALISED,
    "partly_uninitialised": UNINITIALISED,
    "not_shared": "a SharedArray that does not lie in shared memory",
    "last_blocks_tile": r"block \(1, 0, 0\).*reads uninitialised shared memory",
    "launched_with_too_little": "layout takes 512 bytes, but it was launched with 508",
    "more_than_the_chip_has": "232452 bytes of shared memory, of which the emulated chip has 232448",
    "read_beyond_end": "global memory out of bounds: reads 4 bytes at byte 256 of read-only buffer 0 of 256",
    "read_before_begin": "global memory out of bounds: reads 4 bytes at byte -4 of read-only buffer 0",
    "write_beyond_end": "global memory out of bounds: writes 4 bytes at byte 256 of written buffer 1 of 256",
    "global_vector_beyond_end": "global memory out of bounds: reads 16 bytes at byte 256 of read-only",
    "misaligned_read": "misaligned global memory access: reads 16 bytes at byte 8",
    "misaligned_write": "misaligned global memory access: writes 8 bytes at byte 12",
    "write_to_read_only": "global memory is read-only: writes 4 bytes",
    "written_twice": "global memory is written twice in one launch",
    "read_what_it_wrote": "reads global memory that the same launch wrote",
    "undeclared": "global memory out of bounds: .* no buffer was declared",
    "unwritten_workspace": "reads uninitialised global memory: byte 0 of written buffer 0",
    "divergent_barrier": "divergent barrier: this thread came to __syncthreads at .* while thread .* waits",
    "divergent_branches": "divergent barrier",
    "deadlock": "deadlock: .* 32 in __syncthreads at .*; 32 in __ballot_sync at",
    "early_exit": UNINITIALISED,
    "throwing": r"thread \(7, 0, 0\): thrown by a kernel",
    "too_many_threads": r"1025 threads a block",
    "grid_too_high": r"grid \(1, 65536, 1\)",
    "absent_lane": "deadlock|divergent barrier",
    "different_operations": "divergent warp: .*__shfl_(down|xor)_sync at .* waits in __shfl_(down|xor)_sync",
    "different_masks": "divergent warp: .* or with another mask",
    "mask_without_self": "__ballot_sync at .*: its mask lacks the lane that runs it",
    "shuffle_from_outside": "lane 15 reads from lane 16, which takes no part",
    "shuffle_width": "width must be a power of two up to 32, but is 12",
    "partial_syncwarp": "__syncwarp of a whole warp only",
    "mma_of_few_lanes": "mma.sync needs all 32 lanes",
    "ldmatrix_misaligned": "ldmatrix of a row at shared byte .* rows must be aligned to 16 bytes",
    "ldmatrix_race": f"{RACE}|{UNINITIALISED}",
    "missing_wait": PENDING,
    "missing_commit": PENDING,
    "wait_for_too_few": PENDING,
    "missing_barrier": f"{RACE}|{PENDING}|{UNINITIALISED}",
    "write_while_pending": PENDING,
    "copy_over_readers": f"{RACE}|{PENDING}",
    "copy_beyond_source": "global memory out of bounds: reads 16 bytes at byte 256 of read-only buffer 0",
    "copy_misaligned": "cp.async of 16 bytes to shared byte 4 .* not aligned to the copy",
    "copy_nothing_misaligned": "misaligned global memory access: copies none of 16 bytes",
}
WITHOUT_THREAD = {"deadlock"}  # concerns the whole block
BEFORE_THE_LAUNCH = {"more_than_the_chip_has", "too_many_threads", "grid_too_high"}


def test_every_self_test_has_its_reason(device: ModuleType) -> None:
    assert sorted(device.self_tests()) == sorted(REASONS)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", REASONS)
def test_a_right_kernel_runs(device: ModuleType, name: str, seed: int) -> None:
    device.set_seed(seed)
    device.run_self_test(name, False)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", REASONS)
def test_a_broken_rule_is_refused(device: ModuleType, name: str, seed: int) -> None:
    device.set_seed(seed)
    with pytest.raises(RuntimeError) as refusal:
        device.run_self_test(name, True)
    text = str(refusal.value)
    assert re.search(REASONS[name], text), text
    if name not in BEFORE_THE_LAUNCH:
        thread = "" if name in WITHOUT_THREAD else r", thread \([0-9]+, 0, 0\)"
        coordinates = rf"kernel self_test, block \([0-9]+, 0, 0\){thread}: .* \[seed {seed}, launch [0-9]+"
        assert re.search(coordinates, text), text


def test_the_device_works_after_a_refusal(device: ModuleType) -> None:
    for name in REASONS:
        with pytest.raises(RuntimeError):
            device.run_self_test(name, True)
        device.run_self_test("missing_wait", False)
        device.run_self_test("dropped_barrier", False)
