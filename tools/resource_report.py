"""Reads what ptxas said of every kernel in a build log, and fails where a kernel spills or keeps a stack.

    pip install -v . > build.log 2>&1
    python tools/resource_report.py build.log --budget tools/resource_budget.toml

Prints one line per kernel and architecture: registers, shared memory, stack, spilled bytes. The log has
these where the build ran with `-Xptxas -v`, as setup.py's does. Exit status 1: a spill, a stack, a
compiler's warning, no kernel in the log at all, or, with --budget, a kernel that uses more registers or
shared memory than the file allows, or that the file does not have.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import resource_budget
from kernel_names import readable

_COMPILING = re.compile(r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?")
_WARNING = re.compile(r"\bwarning\b(?: #\d+-D)?\s*:", re.IGNORECASE)
_OF_A_COMPILER = re.compile(r"\.(?:cu|cuh|cpp|h|hpp)\b|ptxas|nvcc|nvlink", re.IGNORECASE)


@dataclass
class Kernel:
    """One kernel for one architecture; sizes in bytes."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0

    def complaint(self) -> str | None:
        """What is wrong with it, or None."""
        if self.spilled:
            return f"spills {self.spilled} bytes"
        if self.stack:
            return f"keeps {self.stack} bytes of stack"
        return None


def parse(log: str) -> list[Kernel]:
    """The kernels that ptxas reported on, in the order of the log."""
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if match := _COMPILING.search(line):
            kernels.append(Kernel(match["name"], match["architecture"]))
        elif not kernels:
            continue
        elif match := _STACK.search(line):
            # Also said of each function that was not inlined into the kernel: those count with it.
            kernels[-1].stack = max(kernels[-1].stack, int(match["stack"]))
            kernels[-1].spilled += int(match["stores"]) + int(match["loads"])
        elif match := _USED.search(line):
            kernels[-1].registers = int(match["registers"])
            kernels[-1].shared = int(match["shared"] or 0)
    return kernels


def warnings(log: str) -> list[str]:
    """The lines in which a compiler warns (not those of setuptools)."""
    return [
        line.strip() for line in log.splitlines() if _WARNING.search(line) and _OF_A_COMPILER.search(line)
    ]


def table(kernels: Sequence[Kernel]) -> str:
    """One line per kernel and architecture."""
    heads = ("registers", "shared", "stack", "spilled")
    lines = ["  ".join(f"{head:>9}" for head in heads) + "  arch    kernel"]
    for kernel in kernels:
        figures = (kernel.registers, kernel.shared, kernel.stack, kernel.spilled)
        lines.append(
            "  ".join(f"{figure:>9}" for figure in figures) + f"  {kernel.architecture:<6}  {kernel.name}"
        )
    return "\n".join(lines)


def check_budget(kernels: Sequence[Kernel], path: Path, update: bool, prune: bool) -> list[str]:
    """What exceeds the file's budget; nothing after an update."""
    if shutil.which("c++filt") is None:
        return ["budgets go by readable names: c++filt (binutils) is needed"]
    present = resource_budget.needed(kernels)
    if update:
        kept = resource_budget.read(path) if path.exists() and not prune else {}
        resource_budget.write(path, {**kept, **present})
        return []
    try:
        budget = resource_budget.read(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    idle = len(budget.keys() - present.keys())
    if idle:
        print(
            f"resource report: {idle} budgets are of kernels that this log has not (--update-budget --prune)"
        )
    return resource_budget.complaints(kernels, budget)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and the complaints; returns the exit status."""
    parser = argparse.ArgumentParser(prog="resource_report", description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="what the build printed, with -Xptxas -v")
    parser.add_argument("--budget", type=Path, metavar="FILE", help="what each kernel may use")
    parser.add_argument(
        "--update-budget", action="store_true", help="write what the kernels of this log use into the file"
    )
    parser.add_argument("--prune", action="store_true", help="with it, drop kernels that this log has not")
    arguments = parser.parse_args(argv)
    if (arguments.update_budget or arguments.prune) and arguments.budget is None:
        parser.error("--update-budget and --prune need --budget FILE")
    log = arguments.log.read_text(errors="replace")
    kernels = parse(log)
    if not kernels:
        print(
            f"resource report: {arguments.log} has no kernel: was it built with -Xptxas -v?", file=sys.stderr
        )
        return 1
    for kernel, name in zip(kernels, readable([kernel.name for kernel in kernels]), strict=True):
        kernel.name = name
    print(table(kernels))
    complaints = [
        f"{kernel.name} for {kernel.architecture} {complaint}"
        for kernel in kernels
        if (complaint := kernel.complaint())
    ]
    complaints += warnings(log)
    if arguments.budget is not None:
        complaints += check_budget(kernels, arguments.budget, arguments.update_budget, arguments.prune)
    for complaint in complaints:
        print(f"resource report: {complaint}", file=sys.stderr)
    names = len({kernel.name for kernel in kernels})
    most = max(kernel.registers for kernel in kernels)
    print(f"resource report: {names} kernels, at most {most} registers, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
