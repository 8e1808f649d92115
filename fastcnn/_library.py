"""Finds and loads the compiled library, and knows which kinds of device run its kernels.

Looked for, in this order: the file that FASTCNN_LIBRARY names; fastcnn/_C*.so beside this file; the one that
the installed distribution has, for a checkout on the path before it. Importing this module loads what is
found, so the operators' schemas (`fastcnn.ops`) are to be registered before it.

Whether the build covers the GPUs at hand is looked at when CUDA is first used, not at import: asking the
driver would initialise CUDA, and a process that did so cannot use CUDA in the workers it forks (a
DataLoader's, for one). Nothing of ours can be launched before that moment.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastcnn._version import __version__

__all__ = [
    "KERNEL_DEVICES",
    "BuildInfo",
    "build_info",
    "covers",
    "find",
    "kernels_for",
    "load",
    "load_error",
    "uncovered_gpus",
    "use_aten_on_cpu",
    "use_emulated_on_cpu",
]

ENVIRONMENT_VARIABLE = "FASTCNN_LIBRARY"

#: The device types ("cuda", "cpu") whose tensors go to our kernels. Changed in place: it may be imported.
KERNEL_DEVICES: set[str] = set()
#: Why no library is loaded, in one sentence; None where one is.
load_error: str | None = None
#: GPUs that the build does not cover, as "NAME (compute capability X.Y)"; known once CUDA is in use.
uncovered_gpus: list[str] = []

_DEVICE_OF_KIND = {"cuda": "cuda", "emulated": "cpu"}
_loaded: dict[str, BuildInfo] = {}
_aten_overrides: dict[str, torch.library.Library] = {}


@dataclass(frozen=True)
class BuildInfo:
    """What a library tells about itself.

    `kind` is "cuda", or "emulated" for the tests' build that runs the same kernels on CPU tensors;
    `architectures` are spelled as in TORCH_CUDA_ARCH_LIST; `source_hash` is over the files of csrc,
    `families` has a hash of the sources of each kernel family.
    """

    kind: str
    path: str
    version: str
    architectures: tuple[str, ...]
    cuda: str | None
    torch_target: str
    torch_built: str | None
    source_hash: str
    families: Mapping[str, str] = field(default_factory=dict)


def build_info(kind: str | None = None) -> BuildInfo | None:
    """The library loaded last, or the loaded one of this kind; None if there is none."""
    if kind is not None:
        return _loaded.get(kind)
    return next(reversed(_loaded.values()), None)


def kernels_for(device_type: str) -> bool:
    """Whether tensors on this type of device ("cuda", "cpu") go to kernels of ours."""
    return device_type in KERNEL_DEVICES


def covers(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether code built for these architectures runs on a chip of this compute capability.

    Machine code runs on its own major version from its minor version up ("9.0a" on 9.0 only); PTX on
    everything from its version up.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
        if match is None:
            continue
        version = (int(match[1]), int(match[2]))
        if match[3] == "a":
            if capability == version:
                return True
        elif (version[0] == capability[0] and version <= capability) or (match[4] and version <= capability):
            return True
    return False


def find() -> Path | None:
    """The library's file, looked for in the order above; where the variable names it, it may not exist."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).expanduser()
    for path in sorted(Path(__file__).parent.glob("_C*.so")):
        return path
    for distribution in importlib.metadata.distributions(name="fastcnn"):
        for file in distribution.files or ():
            if file.match("fastcnn/_C*.so") and (path := Path(distribution.locate_file(file))).exists():
                return path
    return None


def load(path: str | os.PathLike[str]) -> BuildInfo:
    """Loads a library, which registers its kernels for CUDA tensors (or, the emulated one, for CPU tensors).

    Args:
        path: the shared library's file.

    Returns:
        What the library tells about itself; also the answer of `build_info()` from now on.

    Raises:
        ImportError: there is no such file, it cannot be loaded, or it is not a library of this fastcnn.
    """
    global load_error
    path = Path(path).resolve()
    if not path.is_file():
        raise ImportError(f"there is no file {path}", path=str(path))
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded: {error.__cause__ or error}", path=str(path)) from error
    try:
        told = ctypes.CDLL(str(path)).fastcnn_build_info
    except AttributeError as error:
        raise ImportError(f"{path} is not a library of fastcnn: it has no fastcnn_build_info()") from error
    told.restype = ctypes.c_char_p
    fields = json.loads(told())
    if fields["version"] != __version__:
        raise ImportError(
            f"{path} is of fastcnn {fields['version']}, this is {__version__}: their operators may differ",
            path=str(path),
        )
    info = BuildInfo(path=str(path), **{**fields, "architectures": tuple(fields["architectures"])})
    _loaded.pop(info.kind, None)
    _loaded[info.kind] = info
    load_error = None
    if info.kind == "cuda":
        _when_cuda_starts(_check_gpus)
    if info.kind in _DEVICE_OF_KIND:
        KERNEL_DEVICES.add(_DEVICE_OF_KIND[info.kind])
    return info


def use_aten_on_cpu() -> None:
    """Sends CPU tensors to ATen although the emulated library is loaded, until `use_emulated_on_cpu`."""
    if "emulated" in _loaded:
        _send_to_aten("cpu")


def use_emulated_on_cpu() -> None:
    """Sends CPU tensors to the emulated library's kernels (as its loading did).

    Raises:
        RuntimeError: the emulated library is not loaded.
    """
    if "emulated" not in _loaded:
        raise RuntimeError(
            "the emulated library is not loaded: load() the file that `python -m tests.emulator` prints"
        )
    override = _aten_overrides.pop("cpu", None)
    if override is not None:
        override._destroy()
    KERNEL_DEVICES.add("cpu")


def _send_to_aten(device_type: str) -> None:
    """Puts ATen's implementations before the library's, on one device type's dispatch key."""
    from fastcnn import _aten

    KERNEL_DEVICES.discard(device_type)
    if device_type in _aten_overrides:
        return
    override = torch.library.Library("fastcnn", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid.*", category=UserWarning)
        for name, function in _aten.IMPLEMENTATIONS.items():
            override.impl(name, function, device_type.upper(), allow_override=True)
    _aten_overrides[device_type] = override


def _when_cuda_starts(check) -> None:
    """Calls `check` when this process starts using CUDA, or now if it already does."""
    lazily = getattr(torch.cuda, "_lazy_call", None)
    if lazily is not None:
        lazily(check)
    elif torch.cuda.is_available():
        check()


def _check_gpus() -> None:
    """Sends CUDA tensors to ATen, saying so, if the build lacks a visible GPU's architecture."""
    architectures = _loaded["cuda"].architectures
    uncovered_gpus.clear()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not covers(architectures, capability):
            name = torch.cuda.get_device_name(index)
            uncovered_gpus.append(f"{name} (compute capability {capability[0]}.{capability[1]})")
    if uncovered_gpus:
        _send_to_aten("cuda")
        warnings.warn(gpu_sentence(), RuntimeWarning, stacklevel=2)


def gpu_sentence() -> str:
    """What is wrong with `uncovered_gpus`, and the remedy."""
    versions = ";".join(sorted({re.search(r"(\d+\.\d+)\)$", gpu)[1] for gpu in uncovered_gpus}))
    return (
        f"fastcnn's library was built for {', '.join(_loaded['cuda'].architectures)}, which does not cover "
        f"{', '.join(uncovered_gpus)}: CUDA tensors go through ATen; reinstall fastcnn with "
        f'TORCH_CUDA_ARCH_LIST="{versions}" to run its kernels, or hide that GPU with CUDA_VISIBLE_DEVICES.'
    )


def _load_at_import() -> None:
    global load_error
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    path = find()
    if path is None:
        load_error = "fastcnn was installed without its compiled library"
        return
    try:
        load(path)
    except ImportError as error:
        if named:
            raise ImportError(
                f"{ENVIRONMENT_VARIABLE} is {named!r}, but {error}; name a library of fastcnn, or unset it",
                path=str(path),
            ) from error
        load_error = str(error)
        warnings.warn(
            f"fastcnn works through ATen, as its compiled library cannot be used: {error}; reinstall fastcnn",
            RuntimeWarning,
            stacklevel=2,
        )


_load_at_import()
