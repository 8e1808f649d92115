"""Which of the suite's backends a test runs on."""

from __future__ import annotations

import pytest

#: Our own kernels, not ATen's.
ours = pytest.mark.parametrize(
    "backend",
    [pytest.param("emulated", marks=pytest.mark.emulated), pytest.param("cuda", marks=pytest.mark.cuda)],
    indirect=True,
)
