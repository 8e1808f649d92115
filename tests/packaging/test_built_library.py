"""The CUDA library as built: what it asks of torch, and what it exports. Skipped where none is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fastcnn import _library

# All that the stable ABI promises to keep: C functions. And what every C++ program on Linux has.
STABLE = ("aoti_torch_", "torch_")
CPLUSPLUS_OF_TORCH = ("_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at", "_ZN5torch")
SYSTEM = {
    "libtorch_cpu.so",
    "libc10.so",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libc.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


@pytest.fixture(scope="module")
def library() -> Path:
    info = _library.build_info("cuda")
    if info is None:
        pytest.skip("no CUDA library is installed (no nvcc), or FASTCNN_LIBRARY names another")
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("binutils (nm, readelf) are not installed")
    return Path(info.path)


def lines_of(*command: str | Path) -> list[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def symbols(library: Path, which: str) -> list[str]:
    return [line.split()[-1].partition("@")[0] for line in lines_of("nm", "-D", which, library)]


def test_it_imports_only_the_stable_c_functions_of_torch(library):
    imported = symbols(library, "--undefined-only")
    of_torch = [name for name in imported if "torch" in name]
    assert of_torch, "it imports nothing of torch: did the bindings go missing?"
    assert not [name for name in of_torch if not name.startswith(STABLE)]
    assert not [name for name in imported if name.startswith(CPLUSPLUS_OF_TORCH)]
    assert not [name for name in imported if name.startswith(("cu", "Py")) or "cuda_stream" in name]


def test_it_needs_neither_python_nor_a_cuda_torch(library):
    entries = [line for line in lines_of("readelf", "-d", library) if "(NEEDED)" in line]
    needed = {line.split("[")[1].rstrip("]") for line in entries}
    assert needed <= SYSTEM
    assert "libtorch_cpu.so" in needed


def test_it_exports_only_its_build_information(library):
    exported = symbols(library, "--defined-only")
    assert [name for name in exported if "fastcnn" in name] == ["fastcnn_build_info"]
    assert not [name for name in exported if name.startswith(("PyInit", "cuda"))]
