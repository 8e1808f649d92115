"""Each instruction's twin against a plain formula."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

LANES = np.arange(32)
GROUP, T = LANES // 4, LANES % 4


def words_of(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def bits16(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values that 16 bits can hold, as those bits."""
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return words_of(values) >> 16


def operands(
    generator: np.random.Generator, dtype: str, integers: bool, depth: int, warps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random a, b and c as float64, a and b exactly representable in the dtype."""
    shapes = [(warps, 16, depth), (warps, depth, 8), (warps, 16, 8)]
    if integers:
        a, b, c = (generator.integers(-8, 9, shape).astype(np.float64) for shape in shapes)
        return a, b, c
    a, b, c = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    if dtype == "float16":
        a, b = a.astype(np.float16), b.astype(np.float16)
    else:
        kept = 0xFFFF0000 if dtype == "bfloat16" else 0xFFFFE000
        a, b = ((words_of(x) & np.uint32(kept)).view(np.float32) for x in (a, b))
    return a.astype(np.float64), b.astype(np.float64), c.astype(np.float64)


def accumulator_words(c: np.ndarray) -> list[np.ndarray]:
    words = words_of(c)
    return [words[:, GROUP + 8 * (i // 2), 2 * T + i % 2] for i in range(4)]


def matrix_of(out: np.ndarray) -> np.ndarray:
    d = np.empty((out.shape[0], 16, 8), np.float32)
    for i in range(4):
        d[:, GROUP + 8 * (i // 2), 2 * T + i % 2] = np.ascontiguousarray(out[:, :, i]).view(np.float32)
    return d


def fragments16(a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: str) -> np.ndarray:
    """The words of m16n8k16, by the layout of the PTX ISA."""
    a_bits, b_bits = bits16(a, dtype), bits16(b, dtype)

    def a_word(row: np.ndarray, k: np.ndarray) -> np.ndarray:
        return a_bits[:, row, k] | a_bits[:, row, k + 1] << 16

    def b_word(k: np.ndarray) -> np.ndarray:
        return b_bits[:, k, GROUP] | b_bits[:, k + 1, GROUP] << 16

    words = [a_word(GROUP, 2 * T), a_word(GROUP + 8, 2 * T), a_word(GROUP, 2 * T + 8)]
    words += [a_word(GROUP + 8, 2 * T + 8), b_word(2 * T), b_word(2 * T + 8)]
    return np.stack(words + accumulator_words(c), axis=-1).astype(np.uint32)


def fragments_tf32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The words of m16n8k8, by the layout of the PTX ISA."""
    a_bits, b_bits = words_of(a), words_of(b)
    words = [a_bits[:, GROUP, T], a_bits[:, GROUP + 8, T], a_bits[:, GROUP, T + 4]]
    words += [a_bits[:, GROUP + 8, T + 4], b_bits[:, T, GROUP], b_bits[:, T + 4, GROUP]]
    return np.stack(words + accumulator_words(c), axis=-1)


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
def test_mma_multiplies_matrices(device: ModuleType, dtype: str, integers: bool) -> None:
    depth = 8 if dtype == "tf32" else 16
    a, b, c = operands(np.random.default_rng(1), dtype, integers, depth, warps=20)
    if dtype == "tf32":
        out = device.run_instruction("mma_m16n8k8_tf32", fragments_tf32(a, b, c))
    else:
        out = device.run_instruction(f"mma_m16n8k16_{dtype}", fragments16(a, b, c, dtype))
    expected = (a @ b + c).astype(np.float32)
    if integers:
        np.testing.assert_array_equal(matrix_of(out), expected)
    else:
        np.testing.assert_allclose(matrix_of(out), expected, rtol=2e-7, atol=1e-12)


def test_mma_passes_infinity_and_nan_on(device: ModuleType) -> None:
    a, b, c = (np.zeros(shape) for shape in ((1, 16, 16), (1, 16, 8), (1, 16, 8)))
    a[0, 3, 5], b[0, 5, 2], c[0, 4, 4], a[0, 9, 9] = np.inf, 2, -np.inf, np.inf
    d = matrix_of(device.run_instruction("mma_m16n8k16_float16", fragments16(a, b, c, "float16")))[0]
    assert d[3, 2] == np.inf
    assert d[4, 4] == -np.inf
    assert np.isnan(d[9]).all()
    assert np.isnan(d[3, :2]).all()
    assert (np.delete(d[[0, 1, 2]], [], axis=1) == 0).all()


def test_mma_tf32_ignores_the_low_bits_of_its_operands(device: ModuleType) -> None:
    a, b, c = operands(np.random.default_rng(2), "tf32", False, 8, warps=2)
    words = fragments_tf32(a, b, c)
    noisy = words.copy()
    noisy[..., :6] |= np.random.default_rng(3).integers(0, 1 << 13, noisy[..., :6].shape, dtype=np.uint32)
    exact = device.run_instruction("mma_m16n8k8_tf32", words)
    np.testing.assert_array_equal(device.run_instruction("mma_m16n8k8_tf32", noisy), exact)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(device: ModuleType, count: int, transposed: bool) -> None:
    generator = np.random.default_rng(count)
    warps = 4
    rows = generator.integers(0, 1 << 16, (warps, 32, 8), dtype=np.uint16)
    chosen = np.stack([generator.permutation(32) for _ in range(warps)]).astype(np.uint32)
    words = np.concatenate([rows.view(np.uint32), chosen[..., None]], axis=-1)
    out = device.run_instruction(f"ldmatrix_x{count}{'_trans' if transposed else ''}", words)
    matrices = np.take_along_axis(rows, chosen[..., None].astype(np.int64), axis=1).reshape(warps, 4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    low, high = (matrices[:, :count, GROUP, 2 * T + i].astype(np.uint32) for i in (0, 1))
    np.testing.assert_array_equal(out, (low | high << 16).swapaxes(1, 2))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_copies_or_fills_with_zeros(device: ModuleType, size: int) -> None:
    generator = np.random.default_rng(size)
    words = generator.integers(0, 1 << 32, (3, 32, 8), dtype=np.uint32)
    words[..., 4] = generator.integers(0, 2, (3, 32))
    out = device.run_instruction(f"cp_async_{size}", words)
    expected = np.full((3, 32, 4), 0xFFFFFFFF, np.uint32)
    copied = size // 4
    expected[..., :copied] = np.where(words[..., 4:5] != 0, words[..., :copied], 0)
    np.testing.assert_array_equal(out, np.roll(expected, -1, axis=1))


def test_cp_async_groups_land_in_order(device: ModuleType) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, (2, 32, 4), dtype=np.uint32)
    np.testing.assert_array_equal(device.run_instruction("cp_async_groups", words), words)


def shuffle_source(mode: str, lane: int, operand: int, width: int) -> int:
    """The lane read from, by the pseudocode of CUDA's documentation of the shuffles."""
    begin = lane // width * width
    if mode == "shfl":
        return begin + operand % width
    if mode == "shfl_up":
        return lane - operand if lane - operand >= begin else lane
    if mode == "shfl_down":
        return lane + operand if lane + operand < begin + width else lane
    return lane ^ operand if (lane ^ operand) < begin + width else lane


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("mode", ["shfl", "shfl_up", "shfl_down", "shfl_xor"])
def test_shuffles(device: ModuleType, mode: str, width: int) -> None:
    generator = np.random.default_rng(width)
    words = generator.integers(0, 1 << 32, (32, 32, 4), dtype=np.uint32)
    words[..., 2] = np.arange(32)[:, None]  # one operand per warp
    words[..., 3] = width
    out = device.run_instruction(mode, words)
    for operand in range(32):
        source = [shuffle_source(mode, lane, operand, width) for lane in range(32)]
        np.testing.assert_array_equal(out[operand, :, 0], words[operand, source, 0])
        np.testing.assert_array_equal(out[operand, :, 1:], words[operand, source, :2])


def test_shuffle_by_lanes_of_ones_own_choice(device: ModuleType) -> None:
    generator = np.random.default_rng(5)
    words = generator.integers(0, 1 << 32, (8, 32, 4), dtype=np.uint32)
    words[..., 2] = generator.integers(0, 32, (8, 32))
    words[..., 3] = 32
    out = device.run_instruction("shfl", words)
    expected = np.take_along_axis(words[..., 0], words[..., 2].astype(np.int64), axis=1)
    np.testing.assert_array_equal(out[..., 0], expected)


def test_votes(device: ModuleType) -> None:
    predicates = np.random.default_rng(0).integers(0, 2, (10, 32), dtype=np.uint32)
    predicates[0], predicates[1], predicates[2, 1:] = 0, 7, 0
    out = device.run_instruction("votes", predicates[..., None])
    holds = predicates != 0
    votes = [
        (holds * (1 << LANES)).sum(axis=1),
        holds.any(axis=1),
        holds.all(axis=1),
        holds.sum(axis=1),
        holds.any(axis=1),
        holds.all(axis=1),
    ]
    for i, vote in enumerate(votes):
        np.testing.assert_array_equal(out[..., i], np.broadcast_to(vote[:, None], (10, 32)))


def test_integer_instructions(device: ModuleType) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, (64, 32, 2), dtype=np.uint32)
    words[0] >>= np.arange(32, dtype=np.uint32)[:, None]
    words[1, 0, 0] = 0
    out = device.run_instruction("integers", words)
    first, second = words[..., 0].ravel().tolist(), words[..., 1].ravel().tolist()
    results = out.reshape(-1, 5)
    assert results[:, 0].tolist() == [(x * y) >> 32 for x, y in zip(first, second, strict=True)]
    assert results[:, 1].tolist() == [x.bit_count() for x in first]
    assert results[:, 2].tolist() == [32 - x.bit_length() for x in first]
    assert results[:, 3].tolist() == [(x & -x).bit_length() for x in first]
    assert results[:, 4].tolist() == [int(f"{x:032b}"[::-1], 2) for x in first]


def test_float_instructions(device: ModuleType) -> None:
    a, b, c = np.random.default_rng(0).standard_normal((3, 4, 32)).astype(np.float32)
    a[0, 0], b[0, 1] = np.nan, np.nan
    out = device.run_instruction("floats", np.stack([words_of(x) for x in (a, b, c)], axis=-1))
    results = np.ascontiguousarray(out).view(np.float32)
    np.testing.assert_array_equal(results[..., 0], np.fmin(a, b))
    np.testing.assert_array_equal(results[..., 1], np.fmax(a, b))
    fused = (a.astype(np.longdouble) * b + c).astype(np.float32)
    np.testing.assert_array_equal(results[..., 2], fused)


def test_words_of_the_wrong_shape_are_refused(device: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"votes takes words of shape \[warps, 32, 1\]"):
        device.run_instruction("votes", np.zeros((1, 32, 2), np.uint32))
    with pytest.raises(ValueError, match="no instruction is named x"):
        device.run_instruction("x", np.zeros((1, 32, 2), np.uint32))
