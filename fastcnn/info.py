"""`fastcnn info`: what is installed, which kernels run for which tensors, why, and what to do about it."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fastcnn import _library
from fastcnn._version import __version__
from fastcnn.bench import measured

REINSTALL = (
    "install a CUDA toolkit (nvcc) or set CUDA_HOME to one, then reinstall fastcnn with FASTCNN_BUILD_CUDA=1"
)


def collect() -> dict:
    """Everything `fastcnn info` tells, as JSON's types; initialises CUDA where there is a GPU."""
    gpus = _gpus()
    info = _library.build_info()
    routes = {"cuda": _cuda_route(gpus), "cpu": _cpu_route()}
    return {
        "versions": {
            "fastcnn": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
        "library": asdict(info) if info else None,
        "library_missing_because": _library.load_error,
        "sources_changed_since_build": _sources_changed(),
        "measured": measured.states(info.families, measured.read()) if info else [],
        "gpus": gpus,
        "runs": routes,
        "remedies": list(dict.fromkeys(r["remedy"] for r in routes.values() if r["remedy"])),
    }


def _gpus() -> list[dict]:
    if not torch.cuda.is_available():
        return []
    info = _library.build_info("cuda")
    gpus = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(index),
                "compute_capability": f"{capability[0]}.{capability[1]}",
                "covered": info is not None and _library.covers(info.architectures, capability),
            }
        )
    return gpus


def _route(kernels: str, why: str, remedy: str | None = None) -> dict:
    return {"kernels": kernels, "why": why, "remedy": remedy}


def _cuda_route(gpus: list[dict]) -> dict:
    info = _library.build_info("cuda")
    if not gpus:
        if torch.version.cuda is None:
            return _route(
                "none", "this torch is built without CUDA", "install a CUDA build of torch to use a GPU"
            )
        return _route("none", "torch finds no usable GPU and driver here")
    if info is None:
        why = _library.load_error or f"the loaded library is the {_library.build_info().kind} one"
        return _route("aten", why, REINSTALL)
    if _library.uncovered_gpus:
        why, _, remedy = _library.gpu_sentence().partition(": CUDA tensors go through ATen; ")
        return _route("aten", why, remedy.rstrip("."))
    return _route("fastcnn", "the library covers every visible GPU")


def _cpu_route() -> dict:
    if _library.kernels_for("cpu"):
        return _route("fastcnn", "the emulated library is loaded: the same kernels, slow, for tests")
    return _route("aten", "on the CPU, ATen is the fast way")


def _sources_changed() -> bool | None:
    """In a checkout, whether csrc differs from what the library was built from; elsewhere None."""
    root = Path(__file__).resolve().parent.parent
    info = _library.build_info()
    if info is None or not (root / "csrc").is_dir() or not (root / "build_support").is_dir():
        return None
    from build_support.build_info import source_hash

    return source_hash() != info.source_hash


def describe(facts: dict) -> str:
    """The text of `fastcnn info` for what `collect` returned."""
    versions, library = facts["versions"], facts["library"]
    cuda = f"CUDA {versions['cuda']}" if versions["cuda"] else "no CUDA"
    cudnn = f", cuDNN {versions['cudnn']}" if versions["cudnn"] else ""
    torch_text = f"torch {versions['torch']} ({cuda}{cudnn})"
    lines = [f"fastcnn {versions['fastcnn']}, Python {versions['python']}, {torch_text}"]
    if library is None:
        lines.append(f"library        none: {facts['library_missing_because']}")
    else:
        lines.append(f"library        {library['path']}")
        with_cuda = f" with CUDA {library['cuda']}" if library["cuda"] else ""
        against = f" against torch {library['torch_built']}" if library["torch_built"] else ""
        lines.append(
            f"               {library['kind']}, built{with_cuda}{against}, for torch >= "
            f"{library['torch_target']}"
        )
        lines.append(f"architectures  {', '.join(library['architectures']) or 'none (runs on the CPU)'}")
        lines.append(f"sources        {library['source_hash']}")
        if facts["sources_changed_since_build"]:
            lines.append("               csrc has changed since: install again to run what it says now")
    for number, line in enumerate(measured.describe(facts["measured"])):
        lines.append(f"{'' if number else 'measured':<15}{line}")
    for gpu in facts["gpus"]:
        covered = "covered by the build" if gpu["covered"] else "not covered by the build"
        lines.append(
            f"GPU            {gpu['name']}, compute capability {gpu['compute_capability']}, {covered}"
        )
    if not facts["gpus"]:
        lines.append("GPU            none")
    runner = {"fastcnn": "fastcnn's kernels", "aten": "ATen", "none": "cannot be used"}
    for device, route in facts["runs"].items():
        lines.append(f"{device.upper() + ' tensors':<15}{runner[route['kernels']]}: {route['why']}")
    lines.append(
        "always ATen    integer, complex, sparse and empty tensors, and calls under torch.func transforms"
    )
    lines += [f"to do          {remedy}" for remedy in facts["remedies"]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is installed and what runs; `--json` prints the same facts as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="fastcnn info",
        description="Versions, the compiled library, the GPU, and which kernels run and why.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    facts = collect()
    print(json.dumps(facts, indent=2) if arguments.json else describe(facts))
    return 0
