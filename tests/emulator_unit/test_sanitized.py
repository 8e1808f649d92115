"""The kernels and the emulated device under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess

import pytest

from tests import emulator
from tests.emulator.sanitizer import run_python

pytestmark = [pytest.mark.slow, pytest.mark.emulated]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return run_python(arguments, timeout=600)
    except emulator.EmulatorUnavailable as reason:
        pytest.skip(f"the emulator cannot be built: {reason}")


@pytest.mark.parametrize(("part", "checks"), [("convolutions", 44), ("pools", 45), ("device", 1)])
def test_sanitizers_find_nothing(part: str, checks: int) -> None:
    result = run("-m", "tests.emulator_unit.sanitized_workload", part)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert result.stdout.count("agrees: ") == checks
    assert "runtime error" not in result.stderr


def test_the_address_sanitizer_is_at_work() -> None:
    overflow = "import ctypes; ctypes.memmove(ctypes.create_string_buffer(1000), b'x' * 4096, 4096)"
    result = run("-c", overflow)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


def test_the_kernels_are_instrumented() -> None:
    library = emulator.build(emulator.Variant.ASAN).read_bytes()
    assert b"__asan_report_load" in library
    assert b"__ubsan_handle_add_overflow" in library
