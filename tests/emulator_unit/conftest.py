"""The emulated device's controls."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests import emulator


@pytest.fixture
def device() -> Iterator[ModuleType]:
    """The controls of the emulated device, its counters and seed as if new."""
    try:
        controls = emulator.controls()
    except emulator.EmulatorUnavailable as reason:
        pytest.skip(f"the emulator cannot be built: {reason}")
    controls.reset()
    controls.set_seed(0)
    yield controls
    controls.reset()
    controls.set_seed(0)
    controls.set_chip()
