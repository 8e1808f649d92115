"""The host compiler and the flags that kernels are compiled with for the emulator."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from enum import Enum
from pathlib import Path

from build_support.build_info import ROOT, TORCH_TARGET_DEFINE

EMULATOR = Path(__file__).resolve().parent

# The extensions of the x86-64-v3 level, by their names in /proc/cpuinfo.
X86_64_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"}


class EmulatorUnavailable(RuntimeError):
    """The emulator cannot be built on this machine; the message says what is missing."""


class Variant(Enum):
    """`RELEASE` for speed; `ASAN` with AddressSanitizer and UndefinedBehaviorSanitizer."""

    RELEASE = "release"
    ASAN = "asan"


def compiler() -> str:
    """The C++ compiler: $CXX, or g++. Raises EmulatorUnavailable where there is none."""
    wanted = os.environ.get("CXX", "g++")
    found = shutil.which(wanted.split()[0])
    if found is None:
        raise EmulatorUnavailable(
            f"the emulator needs a C++17 compiler and found no '{wanted}': install g++ or set CXX"
        )
    return found


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _machine_flags() -> list[str]:
    if platform.machine() != "x86_64":
        return []
    flags = ["-fcf-protection=none"]  # fibers switch stacks by hand
    cpuinfo = Path("/proc/cpuinfo")
    features = (
        cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split() if cpuinfo.exists() else []
    )
    return [*flags, "-march=x86-64-v3"] if set(features) >= X86_64_V3 else flags


def compile_flags(variant: Variant) -> list[str]:
    """What every source is compiled with. The emulator's headers come before csrc."""
    optimisation = {
        Variant.RELEASE: ["-O3", "-g1"],
        Variant.ASAN: [
            "-O0",  # half the time of -O1 to compile, and the tests are small
            "-g1",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
        ],
    }[variant]
    return [
        "-x",
        "c++",
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
        "-ffp-contract=fast",  # a*b + c is one rounding, as on the GPU
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-DFASTCNN_DISPATCH_KEY=CPU",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_DEFINE}",
        "-DTORCH_STABLE_ONLY",
        *optimisation,
        *_machine_flags(),
        "-I",
        str(EMULATOR / "include"),
        "-I",
        str(ROOT / "csrc"),
        "-I",
        str(EMULATOR),
    ]


def torch_flags() -> tuple[list[str], list[str]]:
    """Include and link flags for torch's stable ABI."""
    import torch

    folder = Path(torch.__file__).parent
    return ["-isystem", str(folder / "include")], [f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"]


def link_flags(variant: Variant) -> list[str]:
    return ["-pthread", "-fsanitize=address,undefined"] if variant is Variant.ASAN else ["-pthread"]
