"""Holds the kernels' machine code (SASS) to what their sources claim: 16-byte accesses, tensor cores.

    python tools/sass_report.py fastcnn.whl              # or a library, or an object file
    python tools/sass_report.py fastcnn.whl --table      # also what each kernel has

A claim names kernels, by a regular expression over their readable names, and what each of them must have.
Local memory (LDL, STL), to which arrays go that registers cannot hold, is refused in every kernel. The
disassembler is cuobjdump: on PATH, in the CUDA toolkit, or in the triton package, which torch brings. Exit
status 1: a claim does not hold, or is about no kernel; 2: there is nothing to read it with.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_names import readable
from sass_claims import CLAIMS, FORBIDDEN, Claim

ARCHITECTURE = "sm_90a"
_FUNCTION = re.compile(r"Function : (?P<name>\S+)")
# "        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;      /* 0x... */"
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+ )?(?P<opcode>[A-Z][A-Z0-9_.]*)")
_SHOWN = re.compile(r"(LDG|STG|LDGSTS|LDS|STS)\..*128|HMMA|LDSM|LDL|STL")


@dataclass(frozen=True)
class Code:
    """A kernel and how many of each instruction its code has."""

    name: str
    opcodes: Counter[str]

    def count(self, pattern: str) -> int:
        """How many instructions match a regular expression from their first letter on."""
        return sum(number for opcode, number in self.opcodes.items() if re.match(pattern, opcode))


def find_cuobjdump() -> Path | None:
    """The disassembler, or None."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders.append(Path("/usr/local/cuda/bin"))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return next((folder / "cuobjdump" for folder in folders if (folder / "cuobjdump").is_file()), None)


def disassemble(binary: Path, cuobjdump: Path) -> Iterable[str]:
    """cuobjdump's lines. nvdisasm must lie beside it, or on PATH."""
    environment = os.environ | {"PATH": f"{cuobjdump.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(cuobjdump), "-sass", "-arch", ARCHITECTURE, str(binary)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        yield from process.stdout
    if process.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` ended with status {process.returncode}")


def parse(lines: Iterable[str]) -> list[Code]:
    """The kernels of a disassembly, with readable names."""
    found: dict[str, Counter[str]] = {}
    opcodes: Counter[str] = Counter()
    for line in lines:
        if function := _FUNCTION.search(line):
            opcodes = found.setdefault(function["name"], Counter())
        elif instruction := _INSTRUCTION.match(line):
            opcodes[instruction["opcode"]] += 1
    return [Code(name, opcodes) for name, opcodes in zip(readable(list(found)), found.values(), strict=True)]


def complaints(kernels: Sequence[Code], claims: Sequence[Claim] = CLAIMS) -> list[str]:
    """What the kernels lack of the claims, or have and must not."""
    found = [
        f"{kernel.name} has {kernel.count(pattern)} x {pattern}: {why}"
        for kernel in kernels
        for pattern, why in FORBIDDEN.items()
        if kernel.count(pattern)
    ]
    for claim in claims:
        concerned = [kernel for kernel in kernels if re.search(claim.kernels, kernel.name)]
        if not concerned:
            found.append(f"no kernel is called {claim.kernels}: the claim is about none")
        found += [
            f"{kernel.name} has no {pattern}: {why}"
            for kernel in concerned
            for pattern, why in claim.has.items()
            if not kernel.count(pattern)
        ]
    return found


def table(kernels: Sequence[Code]) -> str:
    """A line for each kernel: its wide accesses and its matrix instructions."""
    lines = []
    for kernel in kernels:
        shown = [f"{number} {opcode}" for opcode, number in kernel.opcodes.items() if _SHOWN.match(opcode)]
        lines.append(f"{kernel.name}: {', '.join(sorted(shown)) or 'none of them'}")
    return "\n".join(lines)


def unpacked(binary: Path, folder: Path) -> Path:
    """The library of a wheel, unpacked into the folder; anything else as it is."""
    if binary.suffix != ".whl":
        return binary
    with zipfile.ZipFile(binary) as wheel:
        libraries = [name for name in wheel.namelist() if name.endswith(".so")]
        if len(libraries) != 1:
            raise RuntimeError(f"{binary} has {len(libraries)} libraries, one was expected")
        return Path(wheel.extract(libraries[0], folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what does not hold; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sass_report", description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path, help="a wheel, a library or an object file with code for sm_90a")
    parser.add_argument("--table", action="store_true", help="print what each kernel has")
    arguments = parser.parse_args(argv)
    cuobjdump = find_cuobjdump()
    if cuobjdump is None or shutil.which("c++filt") is None:
        missing = (
            "cuobjdump (CUDA toolkit, or pip install triton)" if cuobjdump is None else "c++filt (binutils)"
        )
        print(f"sass report: {missing} is needed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        kernels = parse(disassemble(unpacked(arguments.binary, Path(folder)), cuobjdump))
    if not kernels:
        print(f"sass report: {arguments.binary} has no code for {ARCHITECTURE}", file=sys.stderr)
        return 2
    if arguments.table:
        print(table(kernels))
    found = complaints(kernels)
    for complaint in found:
        print(f"sass report: {complaint}", file=sys.stderr)
    print(f"sass report: {len(kernels)} kernels, {len(CLAIMS)} claims, {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
