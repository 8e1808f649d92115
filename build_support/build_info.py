"""What the compiled library tells about itself: a generated header for csrc/bindings/library_info.cpp."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from build_support.families import family_hashes, source_files

ROOT = Path(__file__).resolve().parent.parent
TORCH_TARGET = "2.11"  # the oldest torch that the library runs on
TORCH_TARGET_DEFINE = "0x020b000000000000"


def package_version() -> str:
    """The version in fastcnn/_version.py, read without importing the package (and torch with it)."""
    scope: dict[str, str] = {}
    exec((ROOT / "fastcnn" / "_version.py").read_text(), scope)
    return scope["__version__"]


def source_hash(*folders: Path) -> str:
    """A short hash over names and contents of the sources under the folders (csrc by default)."""
    digest = hashlib.sha256()
    for folder in folders or (ROOT / "csrc",):
        for path in source_files(folder):
            digest.update(path.relative_to(folder.parent).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build_info(
    kind: str, architectures: Sequence[str] = (), cuda: str | None = None, torch_built: str | None = None
) -> dict:
    """What fastcnn_build_info() shall return. `kind` is "cuda" or "emulated"."""
    return {
        "kind": kind,
        "version": package_version(),
        "architectures": list(architectures),
        "cuda": cuda,
        "torch_target": TORCH_TARGET,
        "torch_built": torch_built,
        "source_hash": source_hash(),
        "families": family_hashes(ROOT / "csrc"),
    }


def write_header(
    folder: Path,
    kind: str,
    architectures: Sequence[str] = (),
    cuda: str | None = None,
    torch_built: str | None = None,
) -> Path:
    """Writes fastcnn_build_info.h into `folder` (an include path) if it changed; returns its path."""
    text = json.dumps(json.dumps(build_info(kind, architectures, cuda, torch_built)))
    header = folder / "fastcnn_build_info.h"
    content = f"#pragma once\n\n#define FASTCNN_BUILD_INFO {text}\n"
    if not header.exists() or header.read_text() != content:
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(content)
    return header
