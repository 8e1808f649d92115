"""Compiles sources to objects in parallel and links them. What is up to date is decided by content, not by
time: a library of other sources must never pass for one of these."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .toolchain import compiler, compiler_version

JOB_BYTES = 1.5e9  # what one compiler may need


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


class CompileError(RuntimeError):
    """The compiler refused a source; the message is its output."""


def jobs() -> int:
    """Parallel compilers: one per core, as far as memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / JOB_BYTES)))


def make(products: list[Product]) -> None:
    """Compiles what changed since its object was made, then links the products in their order."""
    sources = {source.object: source for product in products for source in product.sources}
    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(_compile, sources.values()))
    for product in products:
        product.path.parent.mkdir(parents=True, exist_ok=True)
        objects = [str(source.object) for source in product.sources]
        unfinished = product.path.with_name(product.path.name + ".unfinished")
        _run([compiler(), "-o", str(unfinished), *objects, *product.flags])
        unfinished.replace(product.path)


def _compile(source: Source) -> None:
    note = source.object.with_suffix(".json")
    if source.object.exists() and note.exists():
        recorded = json.loads(note.read_text())
        if recorded["key"] == _key(source, [Path(path) for path in recorded["dependencies"]]):
            return
    source.object.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    listing = source.object.with_suffix(".d")
    started = time.time()
    _run(
        [
            compiler(),
            *source.flags,
            "-MMD",
            "-MF",
            str(listing),
            "-c",
            str(source.path),
            "-o",
            str(source.object),
        ]
    )
    dependencies = _listed(listing)
    if all(path.stat().st_mtime < started for path in dependencies):  # none was edited meanwhile
        key = _key(source, dependencies)
        note.write_text(json.dumps({"key": key, "dependencies": [str(path) for path in dependencies]}))


def _key(source: Source, dependencies: list[Path]) -> str | None:
    digest = hashlib.sha256("\0".join([compiler_version(), *source.flags]).encode())
    for path in dependencies:
        if not path.exists():
            return None
        digest.update(f"\0{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _listed(listing: Path) -> list[Path]:
    """The prerequisites in a compiler's dependency file, which has make's syntax."""
    text = listing.read_text().replace("\\\n", " ").partition(": ")[2].replace("\\ ", "\0")
    return [Path(name.replace("\0", " ")) for name in text.split()]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{result.stderr[-8000:]}")
