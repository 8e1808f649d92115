"""The GPU's clocks, power and temperature, and what holds them back, as nvidia-smi tells them."""

from __future__ import annotations

from fastcnn.bench.machine import nvidia_smi

__all__ = ["read_clocks"]

_NUMBERS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_watts",
    "power.limit": "power_limit_watts",
    "temperature.gpu": "temperature_celsius",
}
# The newer drivers' name first, then the older one for the same bits.
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
    """The first visible GPU's state at this moment; None where nvidia-smi is not there or does not answer.

    Returns:
        "sm_mhz", "memory_mhz", "power_watts", "power_limit_watts" and "temperature_celsius", each None where
        the GPU does not tell; "throttle_reasons" is a list of names ("sw_power_cap", "gpu_idle", ...), empty
        where nothing holds the clocks back, None where that is unknown.
    """
    said = nvidia_smi({**_NUMBERS, _REASONS[0]: "reasons"})
    if not any(said.values()):
        return None
    mask = said["reasons"] or ""
    if not mask.startswith("0x"):
        mask = nvidia_smi({_REASONS[1]: "reasons"})["reasons"] or ""
    facts: dict = {name: _number(said[name]) for name in _NUMBERS.values()}
    facts["throttle_reasons"] = _names(int(mask, 16)) if mask.startswith("0x") else None
    return facts


def _number(text: str | None) -> float | None:
    """A figure without its unit: 1980.0 for "1980 MHz", None for "[N/A]"."""
    try:
        return float((text or "").split(" ")[0])
    except ValueError:
        return None


def _names(bits: int) -> list[str]:
    unknown = bits & ~sum(_BITS)
    return [name for bit, name in _BITS.items() if bits & bit] + ([hex(unknown)] if unknown else [])
