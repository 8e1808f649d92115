"""Runs Python with the sanitizers' runtimes loaded first, which the ASAN variant needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from build_support.build_info import ROOT

from .library import Variant, build, build_controls
from .toolchain import EmulatorUnavailable, compiler


def _runtime(name: str) -> str:
    command = [compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise EmulatorUnavailable(f"the compiler has no {name}: install the sanitizers' libraries")
    return str(Path(path).resolve())


def environment() -> dict[str, str]:
    """This process's environment, changed so that a Python can load build(Variant.ASAN), and will."""
    build_controls(Variant.ASAN)  # here: compilers would be slow under the sanitizers
    # libstdc++ goes along: the sanitizer looks for what throws exceptions before any library is loaded.
    preload = [_runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:halt_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "FASTCNN_LIBRARY": str(build(Variant.ASAN)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def run_python(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` under the sanitizers, our operators on CPU tensors being the sanitized kernels."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
