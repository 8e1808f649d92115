"""What is measured of the kernel families that are loaded, for `fastcnn info`.

measured.json is written by `python -m benchmarks.report` from the records; it travels with the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Families that checks cover and that have no times of their own.
CHECKED_ONLY = ("bindings", "ptx")


def read() -> list[dict]:
    """For each GPU and kernel family with figures: "family", "gpu", "date", and the hash of its "sources"."""
    return json.loads(Path(__file__).with_name("measured.json").read_text())


def states(families: Mapping[str, str], entries: Sequence[Mapping]) -> list[dict]:
    """Each family of a library and what is measured of it.

    Args:
        families: names and hashes, as the library tells them.
        entries: what `read` returns.

    Returns:
        For each family its "family" and "state" ("current", "changed since" or "not measured yet") and, where
        there are figures, the "gpu" and "date" of the latest, of the same sources if there are such.
    """
    found = []
    for family, digest in families.items():
        if family in CHECKED_ONLY:
            continue
        of_family = [entry for entry in entries if entry["family"] == family]
        same = [entry for entry in of_family if entry["sources"] == digest]
        last = max(same or of_family, key=lambda entry: entry["date"], default=None)
        state = {"family": family, "state": "not measured yet", "gpu": None, "date": None}
        if last is not None:
            state |= {
                "state": "current" if same else "changed since",
                "gpu": last["gpu"],
                "date": last["date"],
            }
        found.append(state)
    return found


def describe(found: Sequence[Mapping]) -> list[str]:
    """What `states` returned, in lines: families of the same state, GPU and date together."""
    groups: dict[tuple, list[str]] = {}
    for state in found:
        groups.setdefault((state["state"], state["gpu"], state["date"]), []).append(state["family"])
    lines = []
    for (state, gpu, date), families in groups.items():
        names = ", ".join(families)
        if state == "not measured yet":
            lines.append(f"not yet: {names}")
        elif state == "current":
            lines.append(f"on {gpu}, {date}: {names}")
        else:
            lines.append(f"not since the sources changed (on {gpu}, {date}): {names}")
    return lines
