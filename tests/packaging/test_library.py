"""fastcnn._library: which file is loaded, what is said where none can be, and which GPUs a build covers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn
from build_support import build_info
from fastcnn import _library

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def compile_library(folder: Path, source: str) -> Path:
    library = folder / "lib.so"
    (folder / "lib.cpp").write_text(source)
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-I{folder}", "-o", str(library), str(folder / "lib.cpp")], check=True
    )
    return library


def library_without_kernels(folder: Path, kind: str = "emulated", **fields) -> Path:
    """csrc's own library_info.cpp compiled with a header that says `kind` and `fields`."""
    header = build_info.write_header(folder, kind, **fields)
    source = (ROOT / "csrc" / "bindings" / "library_info.cpp").read_text()
    assert header.name in source
    return compile_library(folder, source)


def test_a_missing_file_is_an_error_that_names_the_variable(tmp_path):
    done = run("import fastcnn", FASTCNN_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: FASTCNN_LIBRARY is ")
    assert "there is no file" in last
    assert "unset it" in last


def test_a_file_that_is_no_library_is_an_error_that_names_the_variable(tmp_path):
    (tmp_path / "text.so").write_text("not a library")
    done = run("import fastcnn", FASTCNN_LIBRARY=str(tmp_path / "text.so"))
    assert done.returncode != 0
    assert "ImportError: FASTCNN_LIBRARY is " in done.stderr
    assert "cannot be loaded" in done.stderr


def test_a_foreign_library_is_an_error_that_names_the_variable(tmp_path):
    library = compile_library(tmp_path, "int forty_two() { return 42; }")
    done = run("import fastcnn", FASTCNN_LIBRARY=str(library))
    assert done.returncode != 0
    assert "ImportError: FASTCNN_LIBRARY is " in done.stderr
    assert "is not a library of fastcnn" in done.stderr


def test_a_library_of_another_version_is_refused(tmp_path):
    library = library_without_kernels(tmp_path)
    header = tmp_path / "fastcnn_build_info.h"
    header.write_text(header.read_text().replace(fastcnn.__version__, "0.0.1"))
    compile_library(tmp_path, (tmp_path / "lib.cpp").read_text())
    done = run("import fastcnn", FASTCNN_LIBRARY=str(library))
    assert done.returncode != 0
    assert f"is of fastcnn 0.0.1, this is {fastcnn.__version__}" in done.stderr


def test_the_named_library_is_loaded_and_tells_what_it_is(tmp_path):
    library = library_without_kernels(
        tmp_path, "cuda", architectures=["8.0+PTX", "9.0a"], cuda="13.0", torch_built="2.11.0"
    )
    done = run(
        "from fastcnn import _library as l; i = l.build_info()\n"
        "print(i.kind, i.path, i.architectures, i.cuda, i.torch_target, i.torch_built, i.source_hash)\n"
        "print(sorted(l.KERNEL_DEVICES), l.load_error, l.kernels_for('cuda'), l.kernels_for('cpu'))",
        FASTCNN_LIBRARY=str(library),
    )
    assert done.returncode == 0, done.stderr
    expected = ("cuda", library, ("8.0+PTX", "9.0a"), "13.0", "2.11", "2.11.0", build_info.source_hash())
    assert done.stdout.splitlines() == [" ".join(map(str, expected)), "['cuda'] None True False"]


def test_import_does_not_initialise_cuda(tmp_path):
    library = library_without_kernels(tmp_path, "cuda", architectures=["8.0+PTX"])
    code = "import torch, fastcnn; print(torch.cuda.is_initialized())"
    assert run(code, FASTCNN_LIBRARY=str(library)).stdout.strip() == "False"


def test_a_broken_installed_library_warns_and_leaves_aten(tmp_path):
    code = (
        "import warnings; from pathlib import Path\n"
        "import fastcnn; from fastcnn import _library as l\n"
        f"l.find = lambda: Path({str(tmp_path / 'broken.so')!r})\n"
        "l._loaded.clear(); l.KERNEL_DEVICES.clear()\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); l._load_at_import()\n"
        "print(*[w.message for w in caught]); print(l.load_error); print(l.kernels_for('cuda'))"
    )
    environ = {key: value for key, value in os.environ.items() if key != "FASTCNN_LIBRARY"}
    (tmp_path / "broken.so").write_text("broken")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    warning, error, kernels = done.stdout.splitlines()
    assert warning.startswith("fastcnn works through ATen, as its compiled library cannot be used: ")
    assert warning.endswith("reinstall fastcnn")
    assert "cannot be loaded" in error
    assert kernels == "False"


def test_the_installed_distribution_serves_a_checkout(tmp_path, monkeypatch):
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    (site / "fastcnn-0.1.0.dist-info").mkdir(parents=True)
    (site / "fastcnn-0.1.0.dist-info" / "METADATA").write_text("Name: fastcnn\nVersion: 0.1.0\n")
    (site / "fastcnn-0.1.0.dist-info" / "RECORD").write_text("fastcnn/_C.abi3.so,,\nfastcnn/ops.py,,\n")
    (site / "fastcnn").mkdir()
    (site / "fastcnn" / "_C.abi3.so").touch()
    (checkout / "fastcnn.egg-info").mkdir(parents=True)  # what an earlier build leaves in a checkout
    (checkout / "fastcnn.egg-info" / "PKG-INFO").write_text("Name: fastcnn\nVersion: 0.1.0\n")
    (checkout / "fastcnn").mkdir()
    monkeypatch.delenv("FASTCNN_LIBRARY", raising=False)
    monkeypatch.setattr(sys, "path", [str(checkout), str(site)])
    monkeypatch.setattr(_library, "__file__", str(checkout / "fastcnn" / "_library.py"))
    assert _library.find() == site / "fastcnn" / "_C.abi3.so"
    (checkout / "fastcnn" / "_C.abi3.so").touch()
    assert _library.find() == checkout / "fastcnn" / "_C.abi3.so"
    monkeypatch.setenv("FASTCNN_LIBRARY", "/elsewhere/lib.so")
    assert _library.find() == Path("/elsewhere/lib.so")


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        (("8.0+PTX", "9.0a"), (7, 5), False),
        (("8.0+PTX", "9.0a"), (8, 0), True),
        (("8.0+PTX", "9.0a"), (8, 9), True),
        (("8.0+PTX", "9.0a"), (9, 0), True),
        (("8.0+PTX", "9.0a"), (12, 0), True),
        (("9.0a",), (9, 0), True),
        (("9.0a",), (8, 0), False),
        (("9.0a",), (10, 0), False),
        (("8.6",), (8, 0), False),
        (("8.6",), (8, 9), True),
        (("8.6",), (9, 0), False),
        ((), (9, 0), False),
    ],
)
def test_which_chips_a_build_covers(architectures, capability, covered):
    assert _library.covers(architectures, capability) is covered


def test_an_uncovered_gpu_is_told_in_one_sentence_and_goes_to_aten(tmp_path):
    library = library_without_kernels(tmp_path, "cuda", architectures=["8.0+PTX", "9.0a"], cuda="13.0")
    code = (
        "import warnings, torch, fastcnn\n"
        "from fastcnn import _library as l\n"
        "torch.cuda.device_count = lambda: 1\n"
        "torch.cuda.get_device_capability = lambda index: (7, 5)\n"
        "torch.cuda.get_device_name = lambda index: 'Tesla T4'\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); l._check_gpus()\n"
        "print(*[w.message for w in caught], sep='|'); print(l.kernels_for('cuda'))\n"
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('fastcnn::conv2d', 'CUDA'))"
    )
    done = run(code, FASTCNN_LIBRARY=str(library))
    assert done.returncode == 0, done.stderr
    sentence, kernels, aten_on_cuda = done.stdout.splitlines()
    assert sentence == (
        "fastcnn's library was built for 8.0+PTX, 9.0a, which does not cover Tesla T4 (compute capability "
        '7.5): CUDA tensors go through ATen; reinstall fastcnn with TORCH_CUDA_ARCH_LIST="7.5" to run its '
        "kernels, or hide that GPU with CUDA_VISIBLE_DEVICES."
    )
    assert (kernels, aten_on_cuda) == ("False", "True")


def test_cpu_tensors_can_be_sent_to_aten_and_back(tmp_path):
    library = library_without_kernels(tmp_path)
    code = (
        "import torch; from fastcnn import _library as l\n"
        "on_cpu = lambda: torch._C._dispatch_has_kernel_for_dispatch_key('fastcnn::conv2d', 'CPU')\n"
        "print(l.kernels_for('cpu'), on_cpu())\n"
        "l.use_aten_on_cpu(); l.use_aten_on_cpu(); print(l.kernels_for('cpu'), on_cpu())\n"
        "x = torch.ones(1, 1, 2, 2); print(torch.ops.fastcnn.conv2d_bias_grad(x).item())\n"
        "l.use_emulated_on_cpu(); print(l.kernels_for('cpu'), on_cpu())"
    )
    done = run(code, FASTCNN_LIBRARY=str(library))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True False", "False True", "4.0", "True False"]
    assert "Overriding" not in done.stderr


def test_the_emulated_kernels_need_their_library(monkeypatch):
    monkeypatch.setattr(_library, "_loaded", {})
    with pytest.raises(RuntimeError, match=r"python -m tests\.emulator"):
        _library.use_emulated_on_cpu()


def test_loading_a_missing_file_raises_import_error(tmp_path):
    with pytest.raises(ImportError, match="there is no file"):
        _library.load(tmp_path / "none.so")


def test_the_versions_agree():
    assert fastcnn.__version__ == build_info.package_version()
    major, minor = map(int, build_info.TORCH_TARGET.split("."))
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (major, minor)
    assert int(build_info.TORCH_TARGET_DEFINE, 16) == major << 56 | minor << 48
