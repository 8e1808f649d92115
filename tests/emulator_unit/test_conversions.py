"""float16, bfloat16 and tf32: every 16-bit value, and every rounding boundary between two of them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

ALL_BITS = np.arange(1 << 16, dtype=np.uint32)


def rounded(device: ModuleType, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float16, bfloat16 and tf32 bits of floats, whose number is a multiple of 32."""
    out = device.run_instruction("round_float", x.astype(np.float32).view(np.uint32).reshape(-1, 32, 1))
    half, bfloat, tf32 = np.moveaxis(out.reshape(-1, 3), 1, 0)
    return half.astype(np.uint16), bfloat.astype(np.uint16), tf32.astype(np.uint32)


def near(x: np.ndarray) -> np.ndarray:
    """Each float with its neighbours."""
    with np.errstate(over="ignore"):
        return np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])


def padded(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.zeros(-x.size % 32, np.float32)])


def boundaries(grid: np.ndarray) -> np.ndarray:
    """The values of a 16-bit format and the midpoints between neighbours, each with its neighbours."""
    grid = np.unique(grid[np.isfinite(grid)].astype(np.float64))
    with np.errstate(over="ignore"):
        midpoints = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    return padded(near(np.concatenate([grid.astype(np.float32), midpoints])))


def random_floats() -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    x = bits.view(np.float32)
    return np.where(np.isnan(x), np.float32(0), x)


def special_floats() -> np.ndarray:
    values = [0.0, -0.0, np.inf, -np.inf, 65504, 65519.99, 65520, -65520, 65536, 1e38, 3.4028235e38, 1e-45]
    values += [2.0**-24, 2.0**-25, np.nextafter(np.float32(2.0**-25), np.float32(1)), -(2.0**-25), 2.0**-14]
    return padded(near(np.array(values, np.float32)))


def test_widening_every_16_bit_value(device: ModuleType) -> None:
    out = device.run_instruction("widen_bits", ALL_BITS.reshape(-1, 32, 1)).reshape(-1, 2)
    half, bfloat = np.ascontiguousarray(out[:, 0]), np.ascontiguousarray(out[:, 1])
    np.testing.assert_array_equal(bfloat, ALL_BITS << 16)
    values = half.view(np.float32)
    expected = ALL_BITS.astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(values, expected)  # NaN equals NaN here
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(half[finite], expected.view(np.uint32)[finite])  # signs of zeros too


def test_every_16_bit_value_survives_a_round_trip(device: ModuleType) -> None:
    out = device.run_instruction("widen_bits", ALL_BITS.reshape(-1, 32, 1)).reshape(-1, 2)
    for column, index in ((0, 0), (1, 1)):
        floats = np.ascontiguousarray(out[:, column]).view(np.float32)
        back = rounded(device, floats)[index]
        number = ~np.isnan(floats)
        np.testing.assert_array_equal(back[number], ALL_BITS.astype(np.uint16)[number])
        assert (back[~number] == 0x7FFF).all()  # the hardware's NaN


def test_float16_rounds_to_nearest_even(device: ModuleType) -> None:
    grid = ALL_BITS.astype(np.uint16).view(np.float16)
    for x in (boundaries(grid), random_floats(), special_floats()):
        with np.errstate(over="ignore"):
            expected = x.astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(rounded(device, x)[0], expected)


def test_bfloat16_rounds_to_nearest_even(device: ModuleType) -> None:
    grid = (ALL_BITS << 16).view(np.float32)
    for x in (boundaries(grid), random_floats(), special_floats()):
        expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(rounded(device, x)[1], expected)


def test_tf32_rounds_ties_away_from_zero(device: ModuleType) -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 1 << 16, dtype=np.uint32) & np.uint32(0xFFFFE000)
    ties = (bits | 0x1000).view(np.float32)
    x = np.concatenate([near(ties[np.isfinite(ties)]), random_floats(), special_floats()])
    x = padded(x[np.abs(x) < 3.4e38])
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0**11
    nearest = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
    # Below the normal range the unit in the last place stays that of the smallest normal numbers.
    small = np.abs(x) < 2.0**-126
    unit = 2.0 ** (-126 - 10)
    steps = np.sign(x) * np.floor(np.abs(x.astype(np.float64)) / unit + 0.5)
    expected = np.where(small, steps * unit, np.ldexp(nearest, exponent - 11)).astype(np.float32)
    np.testing.assert_array_equal(rounded(device, x)[2].view(np.float32), expected)
