"""Compiles sources to objects and links them: through ninja where it is installed, else by itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .toolchain import EmulatorUnavailable, compiler


@dataclass(frozen=True)
class Source:
    """One translation unit, its object and its own flags."""

    path: Path
    object: Path
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A library or program, linked from the objects of its sources."""

    path: Path
    sources: tuple[Source, ...]
    flags: tuple[str, ...]
    after: tuple[Path, ...] = ()


class CompileError(RuntimeError):
    """The compiler refused a source; the message is its output."""


def jobs() -> int:
    """Parallel compilers: one per core, and 1.5 GB of memory for each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(memory / 1.5e9)))


def make(products: list[Product], folder: Path, headers_hash: str, ninja: str | None = None) -> None:
    """Brings the products up to date, keeping what is needed to do so in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for product in products:
        product.path.parent.mkdir(parents=True, exist_ok=True)
        for source in product.sources:
            source.object.parent.mkdir(parents=True, exist_ok=True)
    ninja = ninja if ninja is not None else find_ninja()
    if ninja:
        _run_ninja(products, folder, ninja)
    else:
        _run_compilers(products, headers_hash)


def find_ninja() -> str | None:
    """The ninja on PATH or the one of the Python package."""
    found = shutil.which("ninja")
    if found is not None:
        return found
    try:
        import ninja
    except ImportError:
        return None
    candidate = Path(ninja.BIN_DIR) / "ninja"
    return str(candidate) if candidate.exists() else None


def _ninja_quote(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _shell(flags: tuple[str, ...]) -> str:
    return " ".join("'" + flag.replace("'", "'\\''") + "'" for flag in flags).replace("$", "$$")


def _run_ninja(products: list[Product], folder: Path, ninja: str) -> None:
    lines = [
        "rule compile",
        f"  command = {_shell((compiler(),))} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        f"  command = {_shell((compiler(),))} -o $out $in $flags",
        "  description = $out",
    ]
    for source in {source.object: source for product in products for source in product.sources}.values():
        lines.append(f"build {_ninja_quote(source.object)}: compile {_ninja_quote(source.path)}")
        lines.append(f"  flags = {_shell(source.flags)}")
    for product in products:
        objects = " ".join(_ninja_quote(source.object) for source in product.sources)
        after = " ".join(["", "|", *map(_ninja_quote, product.after)]) if product.after else ""
        lines.append(f"build {_ninja_quote(product.path)}: link {objects}{after}")
        lines.append(f"  flags = {_shell(product.flags)}")
    file = folder / "build.ninja"
    file.write_text("\n".join(lines) + "\n")
    result = subprocess.run(
        [ninja, "-C", str(folder), f"-j{jobs()}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        raise CompileError(f"the emulated build failed:\n{result.stdout[-8000:]}")


def _run_compilers(products: list[Product], headers_hash: str) -> None:
    sources = {source.object: source for product in products for source in product.sources}
    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(lambda source: _compile(source, headers_hash), sources.values()))
    for product in products:
        _checked(
            [compiler(), "-o", str(product.path), *[str(s.object) for s in product.sources], *product.flags]
        )


def _compile(source: Source, headers_hash: str) -> None:
    text = "\0".join([headers_hash, *source.flags]).encode() + source.path.read_bytes()
    key = hashlib.sha256(text).hexdigest()
    note = source.object.with_suffix(".key")
    if source.object.exists() and note.exists() and note.read_text() == key:
        return
    _checked([compiler(), *source.flags, "-c", str(source.path), "-o", str(source.object)])
    note.write_text(key)


def _checked(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{result.stderr[-8000:]}")


__all__ = ["CompileError", "EmulatorUnavailable", "Product", "Source", "find_ninja", "jobs", "make"]
