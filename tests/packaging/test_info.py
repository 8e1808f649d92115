"""`fastcnn info` as text and as JSON, with and without a library and a GPU."""

import json
import subprocess
import sys

import pytest

from fastcnn import _library, info
from fastcnn._version import __version__
from fastcnn.bench import measured

CUDA_BUILD = _library.BuildInfo(
    kind="cuda",
    path="/lib/_C.abi3.so",
    version=__version__,
    architectures=("8.0+PTX", "9.0a"),
    cuda="13.0",
    torch_target="2.11",
    torch_built="2.11.0",
    source_hash="0123456789abcdef",
    families={"conv2d/generic": "a" * 16, "conv2d/thin": "b" * 16, "pool2d/max": "c" * 16, "ptx": "d" * 16},
)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(_library, "_loaded", {})
    monkeypatch.setattr(_library, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_library, "load_error", "fastcnn was installed without its compiled library")


@pytest.fixture
def cuda_build(monkeypatch):
    monkeypatch.setattr(_library, "_loaded", {"cuda": CUDA_BUILD})
    monkeypatch.setattr(_library, "KERNEL_DEVICES", {"cuda"})
    monkeypatch.setattr(_library, "load_error", None)


def with_gpu(monkeypatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: capability)


def printed(capsys, *arguments: str) -> str:
    assert info.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_without_library_and_gpu(without_library, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = printed(capsys)
    assert text.startswith(f"fastcnn {__version__}, Python {sys.version.split()[0]}, torch ")
    assert "library        none: fastcnn was installed without its compiled library\n" in text
    assert "GPU            none\n" in text
    assert "CUDA tensors   cannot be used: " in text
    assert "CPU tensors    ATen: " in text


def test_a_gpu_without_library_tells_the_remedy(without_library, monkeypatch, capsys):
    with_gpu(monkeypatch, "NVIDIA H100", (9, 0))
    text = printed(capsys)
    assert "GPU            NVIDIA H100, compute capability 9.0, not covered by the build\n" in text
    assert "CUDA tensors   ATen: fastcnn was installed without its compiled library\n" in text
    assert f"to do          {info.REINSTALL}\n" in text


def test_a_covered_gpu_runs_our_kernels(cuda_build, monkeypatch, capsys):
    with_gpu(monkeypatch, "NVIDIA H100", (9, 0))
    monkeypatch.setattr(_library, "uncovered_gpus", [])
    text = printed(capsys)
    assert "library        /lib/_C.abi3.so\n" in text
    assert "cuda, built with CUDA 13.0 against torch 2.11.0, for torch >= 2.11\n" in text
    assert "architectures  8.0+PTX, 9.0a\n" in text
    assert "GPU            NVIDIA H100, compute capability 9.0, covered by the build\n" in text
    assert "CUDA tensors   fastcnn's kernels: " in text
    assert "to do" not in text


def test_an_uncovered_gpu_tells_what_to_build_for(cuda_build, monkeypatch, capsys):
    with_gpu(monkeypatch, "Tesla T4", (7, 5))
    monkeypatch.setattr(_library, "uncovered_gpus", ["Tesla T4 (compute capability 7.5)"])
    text = printed(capsys)
    assert "Tesla T4, compute capability 7.5, not covered by the build\n" in text
    assert "CUDA tensors   ATen: fastcnn's library was built for 8.0+PTX, 9.0a, which does not cover" in text
    assert 'to do          reinstall fastcnn with TORCH_CUDA_ARCH_LIST="7.5"' in text


def test_a_cpu_build_of_torch_is_named(without_library, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    text = printed(capsys)
    assert "CUDA tensors   cannot be used: this torch is built without CUDA\n" in text
    assert "to do          install a CUDA build of torch to use a GPU\n" in text


def test_changed_sources_are_told(cuda_build, capsys):
    facts = json.loads(printed(capsys, "--json"))
    assert facts["sources_changed_since_build"] is True
    assert "csrc has changed since" in printed(capsys)


def test_json_has_the_same_facts(cuda_build, monkeypatch, capsys):
    with_gpu(monkeypatch, "Tesla T4", (7, 5))
    monkeypatch.setattr(_library, "uncovered_gpus", ["Tesla T4 (compute capability 7.5)"])
    facts = json.loads(printed(capsys, "--json"))
    assert facts["versions"]["fastcnn"] == __version__
    assert facts["library"]["architectures"] == ["8.0+PTX", "9.0a"]
    assert facts["gpus"] == [{"name": "Tesla T4", "compute_capability": "7.5", "covered": False}]
    assert facts["runs"]["cuda"]["kernels"] == "aten"
    assert facts["runs"]["cpu"]["kernels"] == "aten"
    assert len(facts["remedies"]) == 1


def test_it_tells_what_is_measured_of_the_loaded_kernels(cuda_build, monkeypatch, capsys):
    monkeypatch.setattr(measured, "read", list)
    assert "measured       not yet: conv2d/generic, conv2d/thin, pool2d/max\n" in printed(capsys)
    entries = [
        {"family": family, "gpu": "FIXTURE", "date": date, "sources": sources}
        for family, date, sources in (
            ("conv2d/generic", "2001-01-01", "a" * 16),
            ("conv2d/generic", "2001-01-03", "e" * 16),
            ("conv2d/thin", "2001-01-02", "e" * 16),
        )
    ]
    monkeypatch.setattr(measured, "read", lambda: entries)
    assert (
        "measured       on FIXTURE, 2001-01-01: conv2d/generic\n"
        "               not since the sources changed (on FIXTURE, 2001-01-02): conv2d/thin\n"
        "               not yet: pool2d/max\n"
    ) in printed(capsys)
    states = json.loads(printed(capsys, "--json"))["measured"]
    assert [state["state"] for state in states] == ["current", "changed since", "not measured yet"]


def test_what_is_measured_travels_with_the_package():
    assert isinstance(measured.read(), list)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fastcnn", "info", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["versions"]["fastcnn"] == __version__
