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

COMMIT_VARIABLE = "FASTCNN_COMMIT"
_ROOT = Path(__file__).resolve().parents[2]

# nvidia-smi's name -> the record's. Each is asked alone where all together are refused.
_SMI_FACTS = {
    "driver_version": "driver",
    "power.limit": "power_limit",
    "clocks.max.sm": "max_sm_clock",
    "clocks.max.mem": "max_memory_clock",
    "mig.mode.current": "mig_mode",
    "ecc.mode.current": "ecc_mode",
    "persistence_mode": "persistence_mode",
}


def machine() -> dict:
    """The first visible GPU, its driver, torch, CUDA, cuDNN and the host; `gpu` is None without one."""
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
            **nvidia_smi(_SMI_FACTS),
        }
    return facts


def nvidia_smi(fields: dict[str, str]) -> dict[str, str | None]:
    """What nvidia-smi says of torch's first GPU: {its name: ours} gives {ours: value, None where unknown}."""
    command = ("nvidia-smi", f"--id={_smi_index()}", "--format=csv,noheader")
    said = _said(*command, f"--query-gpu={','.join(fields)}")
    values = [value.strip() for value in said.splitlines()[0].split(",")] if said else []
    if len(values) != len(fields):  # an older driver refuses the whole list for one unknown name
        values = (
            [_said(*command, f"--query-gpu={name}") for name in fields] if _said("nvidia-smi", "-L") else []
        )
    values = values or [None] * len(fields)
    return {ours: value or None for ours, value in zip(fields.values(), values, strict=True)}


def _smi_index() -> str:
    """torch's first device as nvidia-smi names it (nvidia-smi does not heed CUDA_VISIBLE_DEVICES)."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return first or "0"


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def commit() -> dict:
    """The checkout's commit and whether tracked files differ from it, each None where that cannot be told.

    A copy of a checkout that has no .git takes the commit from the variable FASTCNN_COMMIT.
    """
    if not (_ROOT / ".git").exists():
        return {"id": os.environ.get(COMMIT_VARIABLE) or None, "changed": None}
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    return {"id": _said("git", "rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


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
