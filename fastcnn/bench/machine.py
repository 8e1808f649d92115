"""What a figure was measured on: the GPU, its software, the commit, the library. Needs no GPU."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from fastcnn import _library
from fastcnn._version import __version__
from fastcnn.testing.clocks import read_clocks

COMMIT_VARIABLE = "FASTCNN_COMMIT"
_ROOT = Path(__file__).resolve().parents[2]


def machine() -> dict:
    """torch's first GPU, its driver, torch, CUDA, cuDNN and the host; `gpu` is None without one."""
    facts = {
        "gpu": None,
        "compute_capability": None,
        "multiprocessors": None,
        "memory_bytes": None,
        "l2_bytes": None,
        "driver": None,
        "fastcnn": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "host_processor": _processor(),
        "host_cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "driver": (read_clocks() or {}).get("driver"),
        }
    return facts


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def commit() -> dict:
    """The checkout's commit and whether tracked files differ from it, each None where that cannot be told.

    Where git cannot tell, as in a copy of a checkout without its .git, FASTCNN_COMMIT names the commit.
    """
    told = _said("git", "rev-parse", "HEAD") if (_ROOT / ".git").exists() else None
    if told is None:
        return {"id": os.environ.get(COMMIT_VARIABLE) or None, "changed": None}
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    return {"id": told, "changed": None if changed is None else bool(changed)}


def library() -> dict | None:
    """What the loaded library tells about itself; None where there is none, and ATen does the work."""
    info = _library.build_info("cuda") or _library.build_info()
    if info is None:
        return None
    facts = asdict(info)
    return {key: facts[key] for key in facts if key not in ("path", "families")}


def sources() -> dict[str, str]:
    """The loaded library's kernel families and the hash of the sources each was built from."""
    info = _library.build_info("cuda") or _library.build_info()
    return dict(info.families) if info else {}


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=_ROOT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
