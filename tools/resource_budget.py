"""How many registers and how much static shared memory each kernel may use, as resource_budget.toml has it.

A group is a kernel's template, with its tile where it has one, and holds all of its instantiations for an
architecture. Registers are rounded up to the eight a thread is given at a time. Dynamic shared memory is not
in a build log: the planner decides on it, and tests/benchmarks/plans.txt keeps that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

COMMAND = "python tools/resource_report.py build.log --budget FILE --update-budget"
HEAD = f"""\
# The most registers and bytes of static shared memory that a kernel's instantiations may use.
# Written by `{COMMAND}`:
# groups that the log has get its figures, the others keep theirs; --prune drops those.
"""
_TILE = re.compile(r"\b\w*Tile\w*<[^<>]*>")
_REGISTER_UNIT = 8
# Simple TOML, read without a parser: Python 3.10 has none.
_TABLE = re.compile(r"\[(?P<architecture>\w+)\]")
_ENTRY = re.compile(r'"(?P<name>[^"]+)" = \{ registers = (?P<registers>\d+), shared = (?P<shared>\d+) \}')


class Used(Protocol):
    """What a kernel uses on an architecture."""

    name: str
    architecture: str
    registers: int
    shared: int


@dataclass(frozen=True)
class Limit:
    """Registers per thread, bytes per block."""

    registers: int
    shared: int


Budget = dict[tuple[str, str], Limit]  # by (architecture, group)


def group(name: str) -> str:
    """A demangled kernel's group: "generic::image_kernel Tile<128, 32, 16, 4, 4, 8, 1>"."""
    template, _, arguments = name.partition("<")
    return " ".join([template.strip(), *dict.fromkeys(_TILE.findall(arguments))])


def read(path: Path) -> Budget:
    """The file's limits. Raises ValueError where it is not a file as `write` writes them."""
    budget: Budget = {}
    architecture = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if table := _TABLE.fullmatch(line):
            architecture = table["architecture"]
        elif architecture and (entry := _ENTRY.fullmatch(line)):
            budget[architecture, entry["name"]] = Limit(int(entry["registers"]), int(entry["shared"]))
        else:
            raise ValueError(f"{path}, line {number} is no budget: {line!r}; write it anew with `{COMMAND}`")
    return budget


def write(path: Path, budget: Budget) -> None:
    """Sorted, one line for each group."""
    lines = [HEAD]
    for architecture in sorted({architecture for architecture, _ in budget}):
        lines.append(f"[{architecture}]")
        lines += [
            f'"{name}" = {{ registers = {limit.registers}, shared = {limit.shared} }}'
            for (of, name), limit in sorted(budget.items())
            if of == architecture
        ]
        lines.append("")
    path.write_text("\n".join(lines).rstrip() + "\n")


def needed(kernels: Iterable[Used]) -> Budget:
    """The budget that just fits these kernels."""
    budget: Budget = {}
    for kernel in kernels:
        key = (kernel.architecture, group(kernel.name))
        registers = -(-kernel.registers // _REGISTER_UNIT) * _REGISTER_UNIT
        last = budget.get(key, Limit(0, 0))
        budget[key] = Limit(max(last.registers, registers), max(last.shared, kernel.shared))
    return budget


def complaints(kernels: Iterable[Used], budget: Budget) -> list[str]:
    """One sentence for each kernel over its budget and each group without one."""
    found: dict[str, None] = {}
    for kernel in kernels:
        name = group(kernel.name)
        limit = budget.get((kernel.architecture, name))
        if limit is None:
            found[f"{name} for {kernel.architecture} has no budget: give it one by `{COMMAND}`"] = None
            continue
        uses = (
            (kernel.registers, limit.registers, "registers"),
            (kernel.shared, limit.shared, "bytes of shared memory"),
        )
        for used, most, what in uses:
            if used > most:
                found[
                    f"{kernel.name} for {kernel.architecture} uses {used} {what}, its budget is {most}: "
                    f"make it fit, or, if that is meant, raise the budget by `{COMMAND}`"
                ] = None
    return list(found)
