"""Finds the CUDA toolkit, decides what to build for and with how many jobs. Needs no torch and no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0+PTX;9.0a"
USUAL_HOME = Path("/usr/local/cuda")
JOB_GIB = 3  # what one nvcc process with our templates may need at its peak
RESERVED_GIB = 4  # left to the rest of the machine

_GIB = 1 << 30
# torch's build takes chips' family names too; the build information is to hold versions.
_BY_NAME = {
    "Ampere": ("8.0", "8.6+PTX"),
    "Ada": ("8.9+PTX",),
    "Hopper": ("9.0",),
}


def find_cuda_home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The toolkit's folder (the one that has bin/nvcc and include/), or None.

    Looks at CUDA_HOME, CUDA_PATH, the nvcc on PATH, /usr/local/cuda, in this order. The nvcc on PATH may be a
    script or a link that starts the real compiler from elsewhere, so nvcc itself is asked where it lives.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = environ.get(variable)
        if folder and (Path(folder) / "bin" / "nvcc").exists():
            return Path(folder)
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    if nvcc:
        home = _home_behind(nvcc, environ)
        if home:
            return home
    return USUAL_HOME if (USUAL_HOME / "bin" / "nvcc").exists() else None


def _home_behind(nvcc: str, environ: Mapping[str, str]) -> Path | None:
    try:
        answer = subprocess.run(
            [nvcc, "--dryrun", "-c", "fastcnn_probe.cu", "-o", "fastcnn_probe.o"],
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(environ),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = re.search(r"^#\$ (?:_HERE_|TOP)=(.+)$", answer.stderr + answer.stdout, re.MULTILINE)
    if told:
        folder = Path(told.group(1).strip()).resolve()
        home = folder.parent if folder.name == "bin" else folder
        if (home / "bin" / "nvcc").exists():
            return home
    home = Path(nvcc).resolve().parent.parent
    return home if (home / "include" / "cuda_runtime.h").exists() else None


def nvcc_version(home: Path) -> str:
    """The toolkit's version as "13.0"."""
    answer = subprocess.run(
        [str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=True
    )
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if release is None:
        raise RuntimeError(
            f"could not read a version from `{home}/bin/nvcc --version`: {answer.stdout.strip()!r}"
        )
    return release.group(1)


def library_folder(home: Path) -> Path:
    """Where the toolkit keeps libcudart_static.a: the folder's name differs between kinds of installation."""
    candidates = [home / "lib64", home / "lib", *sorted(home.glob("targets/*/lib"))]
    for folder in candidates:
        if (folder / "libcudart_static.a").exists():
            return folder
    raise RuntimeError(
        f"libcudart_static.a is in none of {', '.join(map(str, candidates))}: install the CUDA runtime's "
        "development files of this toolkit, or point CUDA_HOME to a complete toolkit"
    )


def architectures(environ: Mapping[str, str] = os.environ) -> list[str]:
    """What to build for, from TORCH_CUDA_ARCH_LIST or the default, spelled as ["8.0+PTX", "9.0a"].

    9.0 becomes 9.0a, since the Hopper kernels use instructions that exist only there. PTX of 9.0a would run
    on no later chip, so the portable PTX that 9.0+PTX asks for is 8.0's, unless other PTX is asked for.
    """
    asked = environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    names = [name for name in asked.split(";") if name] or DEFAULT_ARCHITECTURES.split(";")
    names = [spelled for name in names for spelled in _BY_NAME.get(name, (name,))]
    result: list[str] = []
    for name in names:
        version, plus, _ = name.partition("+")
        if version == "9.0":
            result.append("9.0a")
            if plus and not any(other.endswith("+PTX") for other in names if other != name):
                result.append("8.0+PTX")
        else:
            result.append(name)
    return list(dict.fromkeys(result))


def job_limit(cpus: int, available_bytes: int) -> int:
    """How many compilers may run at once without the machine running out of memory."""
    return max(1, min(cpus, (available_bytes - RESERVED_GIB * _GIB) // (JOB_GIB * _GIB)))


def default_jobs() -> int:
    """job_limit for this machine, now."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return job_limit(cpus, _available_bytes())


def _available_bytes() -> int:
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE).group(1)) * 1024


def toolkit_to_build_with(environ: Mapping[str, str] = os.environ) -> tuple[Path | None, str]:
    """(toolkit, "") if the library shall be built, else (None, why not in one sentence).

    FASTCNN_BUILD_CUDA=0 skips the build, =1 makes a missing toolkit an error, unset builds where nvcc is.
    """
    wish = environ.get("FASTCNN_BUILD_CUDA", "")
    if wish not in ("", "0", "1"):
        raise ValueError(
            f"FASTCNN_BUILD_CUDA is {wish!r}: expected 0 (skip), 1 (require) or unset (if nvcc is there)"
        )
    if wish == "0":
        return (
            None,
            "fastcnn: FASTCNN_BUILD_CUDA=0, so it installs without its CUDA kernels and works through ATen.",
        )
    home = find_cuda_home(environ)
    if home is not None:
        return home, ""
    looked = "looked at CUDA_HOME, CUDA_PATH, nvcc on PATH and /usr/local/cuda"
    if wish == "1":
        raise RuntimeError(
            f"FASTCNN_BUILD_CUDA=1, but no CUDA toolkit was found ({looked}): install one with nvcc, set "
            "CUDA_HOME to its folder, or unset FASTCNN_BUILD_CUDA to install without the CUDA kernels"
        )
    return None, (
        f"fastcnn: no nvcc was found ({looked}), so it installs without its CUDA kernels and works through "
        "ATen; to build them, install a CUDA toolkit or set CUDA_HOME, and install again."
    )
