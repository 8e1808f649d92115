"""Builds the emulated operator library, its control module and trial programs, each once per state of the
sources, under build/emulator/<variant>/."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_support.build_info import ROOT, source_files, source_hash, write_header

from .compile import Product, Source, make
from .toolchain import (
    EMULATOR,
    EmulatorUnavailable,
    Variant,
    compile_flags,
    compiler,
    compiler_version,
    link_flags,
    torch_flags,
)

CONTROLS = EMULATOR / "src" / "controls.cpp"
KEPT_BUILDS = 4


def library_sources() -> list[Path]:
    """The translation units of the operator library: all of csrc and the emulated device."""
    files = [*source_files(ROOT / "csrc"), *source_files(EMULATOR / "src")]
    return [path for path in files if path.suffix in (".cpp", ".cu") and path != CONTROLS]


def build(variant: Variant | str = Variant.RELEASE, rebuild: bool = False) -> Path:
    """The path of the emulated operator library, built if its sources changed.

    Raises EmulatorUnavailable without a compiler, CompileError where a source does not compile.
    """
    variant = Variant(variant)
    compiler()
    folder = ROOT / "build" / "emulator" / variant.value
    with _locked(folder):
        target = folder / _key(variant)
        library = target / "libfastcnn_emulated.so"
        controls = target / f"fastcnn_emulator_controls{sysconfig.get_config_var('EXT_SUFFIX')}"
        if rebuild:
            shutil.rmtree(folder / "objects", ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
        if not (target / "complete").exists():
            products = [_library(variant, folder, library)]
            if CONTROLS.exists():
                products.append(_controls(variant, folder, controls, library))
            make(products, folder, source_hash(ROOT / "csrc", EMULATOR / "include"))
            (target / "complete").touch()
            _prune(folder, target)
        return library


def build_program(sources: list[Path], variant: Variant | str = Variant.RELEASE) -> Path:
    """Links the given sources, one of which has main(), with the emulated device into a program.

    For trying a kernel before it has an operator: `sources` are a trial file and the .cu files under trial.
    """
    variant = Variant(variant)
    folder = ROOT / "build" / "emulator" / variant.value
    flags = compile_flags(variant)
    engine = [path for path in source_files(EMULATOR / "src") if path.suffix == ".cpp" and path != CONTROLS]
    units = tuple(_source(path.resolve(), folder, flags) for path in [*sources, *engine])
    name = hashlib.sha256(str(sources[0].resolve()).encode()).hexdigest()[:8]
    program = folder / "programs" / f"{sources[0].stem}-{name}"
    with _locked(folder):
        make(
            [Product(program, units, tuple(link_flags(variant)))],
            folder / "programs",
            source_hash(ROOT / "csrc", EMULATOR / "include"),
        )
    return program


def _key(variant: Variant) -> str:
    import torch

    parts = [
        source_hash(ROOT / "csrc", EMULATOR / "include", EMULATOR / "src"),
        *compile_flags(variant),
        compiler_version(),
        torch.__version__,
        sys.version,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _source(path: Path, folder: Path, flags: list[str]) -> Source:
    relative = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("outside", *path.parts[1:])
    return Source(path, folder / "objects" / relative.with_name(relative.name + ".o"), tuple(flags))


def _library(variant: Variant, folder: Path, library: Path) -> Product:
    import torch

    generated = folder / "generated"
    write_header(generated, "emulated", torch_built=torch.__version__)
    include, link = torch_flags()
    flags = [*compile_flags(variant), "-I", str(generated), *include]
    sources = tuple(_source(path, folder, flags) for path in library_sources())
    return Product(library, sources, ("-shared", *link_flags(variant), *link))


def _controls(variant: Variant, folder: Path, controls: Path, library: Path) -> Product:
    import pybind11

    include = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    source = _source(CONTROLS, folder, [*compile_flags(variant), *include])
    link = ("-shared", *link_flags(variant), str(library), "-Wl,-rpath,$ORIGIN")
    return Product(controls, (source,), link, after=(library,))


def _prune(folder: Path, current: Path) -> None:
    builds = [path.parent for path in folder.glob("*/complete") if path.parent != current]
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[KEPT_BUILDS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


__all__ = ["EmulatorUnavailable", "Variant", "build", "build_program", "compiler", "library_sources"]
