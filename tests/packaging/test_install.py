"""Installing where the CUDA library is not built: one sentence, a pure wheel, no torch asked for."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_support import backend, cuda
from build_support.build_info import source_files
from fastcnn._version import __version__

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("benchmarks", "build_support", "csrc", "fastcnn"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    return source


def run_setup(tmp_path: Path, *command: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=copy_sources(tmp_path),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def build_wheel(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess:
    return run_setup(tmp_path, "bdist_wheel", "-d", str(tmp_path / "dist"), **environ)


def test_a_skipped_build_makes_a_pure_wheel_and_says_so_once(tmp_path):
    done = build_wheel(tmp_path, FASTCNN_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("FASTCNN_BUILD_CUDA=0") == 1
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name == f"fastcnn-{__version__}-py3-none-any.whl"
    content = zipfile.ZipFile(wheel)
    names = content.namelist()
    assert "fastcnn/ops.py" in names
    for path in (ROOT / "benchmarks" / "shapes").iterdir():
        assert content.read(f"fastcnn/bench/shapes/{path.name}") == path.read_bytes()
    assert "fastcnn/_library.py" in names
    assert "fastcnn/bench/measured.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("fastcnn")]


def test_a_wrong_wish_stops_the_install(tmp_path):
    done = build_wheel(tmp_path, FASTCNN_BUILD_CUDA="maybe")
    assert done.returncode != 0
    assert "FASTCNN_BUILD_CUDA is 'maybe': expected 0" in done.stderr


@pytest.mark.parametrize("command", [("egg_info",), ("dist_info",), ("sdist",)], ids=" ".join)
def test_metadata_needs_no_torch_where_nvcc_is(tmp_path, command):
    """pip asks for the build's requirements, torch among them, by running setup.py without them."""
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('torch is not there yet')")
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "cuda" / "bin" / "nvcc").touch()
    environ = {"PYTHONPATH": str(tmp_path / "without"), "CUDA_HOME": str(tmp_path / "cuda")}
    done = run_setup(tmp_path, *command, **environ)
    assert done.returncode == 0, done.stderr
    building = tmp_path / "building"
    building.mkdir()
    done = run_setup(building, "bdist_wheel", "-d", str(building / "dist"), **environ)
    assert "torch is not there yet" in done.stderr


def test_the_library_is_out_of_date_when_any_source_or_header_is_edited(tmp_path):
    source = copy_sources(tmp_path)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.1'\n")
    nvcc.chmod(0o755)
    (tmp_path / "cuda" / "lib64").mkdir()
    (tmp_path / "cuda" / "lib64" / "libcudart_static.a").touch()
    code = (
        "import json, setuptools; from distutils.core import run_setup; "
        "extension, = run_setup('setup.py', ['build_ext'], stop_after='init').ext_modules; "
        "print(json.dumps(extension.sources + extension.depends))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "CUDA_HOME": str(tmp_path / "cuda")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    watched = json.loads(done.stdout.splitlines()[-1])
    files = {f"csrc/{path.relative_to(source / 'csrc')}" for path in source_files(source / "csrc")}
    assert len(files) > 50
    assert sorted(watched) == sorted({*files, "build/generated/fastcnn_build_info.h"})


@pytest.mark.parametrize(
    ("home", "asked"), [(None, []), (Path("/cuda"), ["torch>=2.11", "ninja"])], ids=["no nvcc", "nvcc"]
)
@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_torch_is_asked_for_only_to_build_the_library(monkeypatch, hook, home, asked):
    monkeypatch.setattr(backend, "toolkit_to_build_with", lambda: (home, ""))
    monkeypatch.setattr(backend.build_meta, hook, lambda settings=None: [])
    assert getattr(backend, hook)() == asked


def test_the_backend_has_setuptools_other_hooks():
    for hook in ("build_wheel", "build_editable", "build_sdist", "prepare_metadata_for_build_wheel"):
        assert callable(getattr(backend, hook))


def test_the_default_architectures_are_the_documented_ones():
    assert f"`{cuda.DEFAULT_ARCHITECTURES}`" in (ROOT / "README.md").read_text()
