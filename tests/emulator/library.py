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

CONTROLS = EMULATOR / "controls" / "controls.cpp"
INTERFACE = EMULATOR / "instructions" / "interface.cpp"  # of the GPU's library of instructions
HEADER_FOLDERS = (ROOT / "csrc", EMULATOR)
KEPT_BUILDS = 4


def library_sources() -> list[Path]:
    """The translation units of the operator library: all of csrc and the emulated device."""
    folders = [ROOT / "csrc", *(EMULATOR / name for name in ("src", "instructions", "self_tests"))]
    files = [path for folder in folders for path in source_files(folder)]
    return [path for path in files if path.suffix in (".cpp", ".cu") and path not in (CONTROLS, INTERFACE)]


def build(variant: Variant | str = Variant.RELEASE, rebuild: bool = False) -> Path:
    """The path of the emulated operator library, built if its sources changed.

    Raises EmulatorUnavailable without a compiler, CompileError where a source does not compile.
    """
    variant = Variant(variant)
    if rebuild or variant not in _built:
        _built[variant] = _build(variant, rebuild)
    return _built[variant]


# A process stays with what it loaded, whatever happens to the sources.
_built: dict[Variant, Path] = {}


def _build(variant: Variant, rebuild: bool) -> Path:
    compiler()
    folder = ROOT / "build" / "emulator" / variant.value
    with _locked(folder):
        target = folder / _key(variant)
        library = target / f"libfastcnn_emulated_{target.name}.so"
        if rebuild:
            shutil.rmtree(folder / "objects", ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
        if not (target / "complete").exists():
            products = [_library(variant, folder, library), _controls(variant, folder, library)]
            make(products, folder, source_hash(*HEADER_FOLDERS))
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
    engine = [path for path in source_files(EMULATOR / "src") if path.suffix == ".cpp"]
    units = tuple(_source(path.resolve(), folder, flags) for path in [*sources, *engine])
    name = hashlib.sha256(str(sources[0].resolve()).encode()).hexdigest()[:8]
    program = folder / "programs" / f"{sources[0].stem}-{name}"
    with _locked(folder):
        make(
            [Product(program, units, tuple(link_flags(variant)))],
            folder / "programs",
            source_hash(*HEADER_FOLDERS),
        )
    return program


def _key(variant: Variant) -> str:
    import torch

    parts = [
        source_hash(*HEADER_FOLDERS),
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
    return Product(library, sources, ("-shared", f"-Wl,-soname,{library.name}", *link_flags(variant), *link))


def controls_path(library: Path) -> Path:
    """Where the module of controls of this library lies."""
    return library.parent / f"fastcnn_emulator_controls{sysconfig.get_config_var('EXT_SUFFIX')}"


def _controls(variant: Variant, folder: Path, library: Path) -> Product:
    import pybind11

    include = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    source = _source(CONTROLS, folder, [*compile_flags(variant), *include])
    link = (
        "-shared",
        *link_flags(variant),
        f"-L{library.parent}",
        f"-l:{library.name}",
        "-Wl,-rpath,$ORIGIN",
    )
    return Product(controls_path(library), (source,), link, after=(library,))


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
