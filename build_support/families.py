"""Kernel families: which sources each figure depends on, found by following #include. Needs no compiler.

A family is named by its folder and the stem of its .cu files up to the pass or dtype: "conv2d/generic",
"pool2d/max"; the planner's names of its kernels begin so, too. It is made from

- its own files: those of its folder whose names begin with its name;
- every file that these include, and what those include;
- for an included header x.h, also x.cu, x.cuh, x.cpp and x_plan.cpp, which define what it declares;
- the folder's planner: its .cpp files that belong to no family.

From a file that belongs to no family, includes of a family's files are not followed: the planner knows every
family's header, and a new family is no reason to measure the others again. Folders without .cu files count
through what includes them; `ptx` and `bindings` are families beside that, as each has checks of its own.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SOURCE_SUFFIXES = (".cpp", ".cu", ".cuh", ".h")
HEADER_FAMILIES = ("bindings", "ptx")

# What stands in file names after the family's name.
_VARIANT = re.compile(
    r"_(?:fprop|dgrad|wgrad|bprop|gather|bfloat16|float16|float32|float64|bf16|f16|f32|f64|tf32)(?:_.*)?$"
)
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.[^\'\n]*|[^\'\\\n])\'|//[^\n]*|/\*.*?\*/', re.DOTALL)


def source_files(folder: Path) -> list[Path]:
    """The C++ and CUDA sources and headers under a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES)


def code_only(text: str) -> str:
    """A source without comments and without its arrangement in lines: what a compiler makes of it."""
    return " ".join(_TOKENS.sub(lambda found: " " if found[0][0] == "/" else found[0], text).split())


def family_files(csrc: Path) -> dict[str, list[Path]]:
    """The files that each family is made from, in a fixed order."""
    names = _names(csrc)
    files = source_files(csrc)
    owners = {path: _owner(path, csrc, names) for path in files}
    found = {}
    for name in names:
        folder = csrc / name.partition("/")[0]
        own = [path for path in files if owners[path] == name]
        planner = [p for p in files if p.parent == folder and p.suffix == ".cpp" and owners[p] is None]
        found[name] = sorted(_closure([*own, *planner], csrc, owners))
    for folder in HEADER_FAMILIES:
        own = [path for path in files if path.is_relative_to(csrc / folder)]
        if own:
            found[folder] = own
    return found


def family_parts(csrc: Path) -> dict[str, list[str]]:
    """For each family, the families that are wholly among its files (itself left out)."""
    files = {name: set(paths) for name, paths in family_files(csrc).items()}
    return {
        whole: [part for part in files if part != whole and files[part] <= files[whole]] for whole in files
    }


def family_hashes(csrc: Path) -> dict[str, str]:
    """A short hash of what each family is made from: names and code of its files, comments left out."""
    found = {}
    for name, files in family_files(csrc).items():
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.relative_to(csrc).as_posix().encode() + b"\0")
            digest.update(code_only(path.read_text()).encode() + b"\0")
        found[name] = digest.hexdigest()[:16]
    return found


def _names(csrc: Path) -> list[str]:
    """The families' names: where one begins with another's ("grouped_image", "grouped"), they are one."""
    names = {f"{path.parent.name}/{_VARIANT.sub('', path.stem)}" for path in csrc.glob("*/*.cu")}
    return sorted(name for name in names if not any(name.startswith(f"{other}_") for other in names))


def _owner(path: Path, csrc: Path, names: list[str]) -> str | None:
    spelled = f"{path.relative_to(csrc).parent.as_posix()}/{path.stem}"
    return next((name for name in names if spelled == name or spelled.startswith(f"{name}_")), None)


def _definitions(header: Path) -> list[Path]:
    return [header.with_name(header.stem + ending) for ending in (".cu", ".cuh", ".cpp", "_plan.cpp")]


def _closure(starts: list[Path], csrc: Path, owners: dict[Path, str | None]) -> set[Path]:
    reached: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for included in _INCLUDE.findall(path.read_text()):
            header = csrc / included
            if header not in owners or (owners[path] is None and owners[header] is not None):
                continue  # a generated file, or another family seen from a file that belongs to none
            waiting.append(header)
            if header.suffix == ".h":
                waiting += [path for path in _definitions(header) if path in owners]
    return reached
