"""The record of a run on a GPU: sources, machine, statistics, and its file. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from build_support.build_info import ROOT, source_files, source_hash

RESULTS = ROOT / "benchmarks" / "results"
SHARED = ("common", "ptx")  # what the kernels of every family are made with
NOT_FAMILIES = ("bindings", "common")


def families(csrc: Path = ROOT / "csrc") -> dict[str, str]:
    """The kernel families ("conv2d", "pool2d", "ptx", ...) and the hash of what each is made from."""
    found = {}
    for folder in sorted(path for path in csrc.iterdir() if path.is_dir() and path.name not in NOT_FAMILIES):
        if source_files(folder):
            shared = [csrc / name for name in SHARED if name != folder.name and (csrc / name).is_dir()]
            found[folder.name] = source_hash(folder, *shared)
    return found


def pending(results: Path = RESULTS, csrc: Path = ROOT / "csrc") -> list[str]:
    """The families whose present sources no passing record in `results` covers."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    covered = {
        (family, digest) for record in records if record["ok"] for family, digest in record["sources"].items()
    }
    return [family for family, digest in families(csrc).items() if (family, digest) not in covered]


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, interpolated between neighbours."""
    if not samples:
        raise ValueError("quantile(): there are no samples")
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90."""
    return {"median": quantile(samples, 0.5), "p10": quantile(samples, 0.1), "p90": quantile(samples, 0.9)}


def write_json(path: Path, content: dict) -> None:
    """Writes a file that is either the old one or the new one, whenever it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict:
    """The checkout's commit and whether files differ from it; None where there is no git."""
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    return {"id": _said("git", "rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


NVIDIA_SMI_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
)


def nvidia_smi() -> dict[str, str] | None:
    """The first GPU's clocks and driver as nvidia-smi tells them; None where it is not there."""
    said = _said("nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI_FIELDS)}", "--format=csv,noheader")
    if not said:
        return None
    values = [value.strip() for value in said.splitlines()[0].split(",")]
    return (
        dict(zip(NVIDIA_SMI_FIELDS, values, strict=True)) if len(values) == len(NVIDIA_SMI_FIELDS) else None
    )
