"""FASTCNN_REQUIRE_EMULATOR=1: a test that needs the emulator fails where it cannot be built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("required", "outcome"), [("0", "2 skipped"), ("1", "2 errors")])
def test_a_machine_without_a_compiler(required, outcome):
    environment = {**os.environ, "CXX": "/no/such/compiler", "FASTCNN_REQUIRE_EMULATOR": required}
    environment.pop("FASTCNN_LIBRARY", None)
    tests = ("test_unknown_chip", "test_depthwise_and_a_long_reduction_are_seen")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            *(f"tests/python/test_plan.py::{test}" for test in tests),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert "the emulator cannot be built" in done.stdout
