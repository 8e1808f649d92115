"""The GPU's clocks, power and temperature, and what holds them back, as nvidia-smi tells them."""

from __future__ import annotations

import os
import subprocess

import torch

__all__ = ["read_clocks"]

# nvidia-smi's names and ours, which carry the unit.
_NUMBERS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.max.mem": "memory_max_mhz",
    "power.draw": "power_watts",
    "power.limit": "power_limit_watts",
    "temperature.gpu": "temperature_celsius",
}
# The same bits under the driver's newer and its older name.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


def read_clocks() -> dict | None:
    """The current GPU's state at this moment; None where nvidia-smi is not there or does not answer.

    Returns:
        "name" and "driver"; "sm_mhz", "memory_mhz", "sm_max_mhz", "memory_max_mhz", "power_watts",
        "power_limit_watts", "temperature_celsius", each None where the GPU does not tell; and
        "throttle_reasons", a list of names ("sw_power_cap", "gpu_idle", ...), None where unknown.
    """
    gpu = _current_gpu()
    for reasons in _REASONS:
        fields = ["name", "driver_version", *_NUMBERS, reasons]
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        for which in ([f"--id={gpu}"] if gpu else [], []):
            line = _said([*query, *which])
            if line is not None:
                values = [value.strip() for value in line.split(",")]
                if len(values) == len(fields):
                    return _facts(values)
    return None


def _facts(values: list[str]) -> dict:
    name, driver, *numbers, reasons = values
    facts: dict = {"name": name, "driver": driver}
    facts |= {ours: _number(value) for ours, value in zip(_NUMBERS.values(), numbers, strict=True)}
    facts["throttle_reasons"] = _reason_names(reasons)
    return facts


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return None


def _reason_names(mask: str) -> list[str] | None:
    try:
        bits = int(mask, 16)
    except ValueError:
        return None
    known = [name for bit, name in _BITS.items() if bits & bit]
    unknown = bits & ~sum(_BITS)
    return [*known, hex(unknown)] if unknown else known


def _current_gpu() -> str:
    """The current GPU as nvidia-smi names it (CUDA_VISIBLE_DEVICES or not). Initialises nothing."""
    if torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()


def _said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None
