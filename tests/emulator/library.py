"""Builds the emulated operator library, its module of controls and trial programs under
build/emulator/<variant>/, each once per state of the sources."""

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
SOURCE_FOLDERS = (ROOT / "csrc", EMULATOR)
BUILDS = ROOT / "build" / "emulator"
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
    folder = _folder(variant)
    with _locked():
        if rebuild:
            shutil.rmtree(folder / "objects", ignore_errors=True)
            shutil.rmtree(folder / _key(variant), ignore_errors=True)
        while not (folder / (key := _key(variant)) / "complete").exists():
            library = folder / key / f"libfastcnn_emulated_{key}.so"
            make([_library(variant, folder, library)])
            if key == _key(variant):  # else a source was edited meanwhile
                (folder / key / "complete").touch()
                _prune(folder, folder / key)
        return folder / key / f"libfastcnn_emulated_{key}.so"


def _folder(variant: Variant) -> Path:
    return BUILDS / variant.value


def build_program(sources: list[Path], variant: Variant | str = Variant.RELEASE) -> Path:
    """Links the given sources, one of which has main(), with the emulated device into a program.

    For trying a kernel before it has an operator: `sources` are a trial file and the .cu files under trial.
    What the library is made of too is compiled as for it, so that one object serves both.
    """
    variant = Variant(variant)
    folder = _folder(variant)
    flags = _flags(variant)
    engine = [path for path in source_files(EMULATOR / "src") if path.suffix == ".cpp"]
    units = tuple(_source(path.resolve(), folder, flags) for path in [*sources, *engine])
    name = hashlib.sha256(str(sources[0].resolve()).encode()).hexdigest()[:8]
    program = folder / "programs" / f"{sources[0].stem}-{name}"
    with _locked():
        make([Product(program, units, tuple(link_flags(variant)))])
    return program


def _key(variant: Variant) -> str:
    import torch

    parts = [
        source_hash(*SOURCE_FOLDERS),
        *compile_flags(variant),
        compiler_version(),
        torch.__version__,
        sys.version,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _source(path: Path, folder: Path, flags: list[str]) -> Source:
    relative = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("outside", *path.parts[1:])
    return Source(path, folder / "objects" / relative.with_name(relative.name + ".o"), tuple(flags))


def _flags(variant: Variant) -> list[str]:
    """What the library's sources are compiled with."""
    import torch

    version = f'-DFASTCNN_TORCH_VERSION="{torch.__version__}"'  # its headers are not looked at for changes
    include, _ = torch_flags()
    return [*compile_flags(variant), version, "-I", str(_folder(variant) / "generated"), *include]


def _library(variant: Variant, folder: Path, library: Path) -> Product:
    import torch

    write_header(folder / "generated", "emulated", torch_built=torch.__version__)
    _, link = torch_flags()
    flags = _flags(variant)
    sources = tuple(_source(path, folder, flags) for path in library_sources())
    return Product(library, sources, ("-shared", f"-Wl,-soname,{library.name}", *link_flags(variant), *link))


def build_controls(variant: Variant | str = Variant.RELEASE) -> Path:
    """The path of the Python module that controls the emulated device of build(variant).

    Raises EmulatorUnavailable without pybind11 or Python's headers.
    """
    variant = Variant(variant)
    library = build(variant)
    module = library.parent / f"fastcnn_emulator_controls{sysconfig.get_config_var('EXT_SUFFIX')}"
    # One object serves both variants: it is the library that the sanitizers watch.
    folder = _folder(Variant.RELEASE)
    with _locked():
        if not module.exists():
            flags = [*compile_flags(Variant.RELEASE), *_python_flags(), "-O1", "-g0"]
            link = (f"-L{library.parent}", f"-l:{library.name}", "-Wl,-rpath,$ORIGIN")
            source = _source(CONTROLS, folder, flags)
            make([Product(module, (source,), ("-shared", *link_flags(variant), *link))])
    return module


def _python_flags() -> list[str]:
    try:
        import pybind11
    except ImportError as error:
        raise EmulatorUnavailable("the emulator's controls need pybind11: pip install '.[test]'") from error
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").exists():
        raise EmulatorUnavailable(
            f"the emulator's controls need Python.h, which {headers} lacks: install python3-dev"
        )
    return ["-isystem", headers, "-isystem", pybind11.get_include()]


def _prune(folder: Path, current: Path) -> None:
    builds = [path.parent for path in folder.glob("*/complete") if path.parent != current]
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[KEPT_BUILDS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked() -> Iterator[None]:
    """One build at a time, of whatever variant: it has a compiler on every core."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


__all__ = ["EmulatorUnavailable", "Variant", "build", "build_program", "compiler", "library_sources"]
