"""What the operators' tests share beside the backends of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.emulator import controls


@pytest.fixture
def chip(emulated_on_cpu: None) -> Iterator[Callable[[int], None]]:
    """Our kernels over the emulator. Sets the SM count that the planner sees."""
    device = controls()
    yield lambda sm_count: device.set_chip(sm_count=sm_count)
    device.set_chip()
