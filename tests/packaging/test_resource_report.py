"""tools/resource_report.py on logs as ptxas writes them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "resource_report.py"

CLEAN = """\
  [7/29] nvcc -c /src/csrc/pool2d/max.cu -o max.o -Xptxas=-v
  ptxas info    : 28 bytes gmem, 224 bytes cmem[4]
  ptxas info    : Compiling entry function '_ZN7fastcnn3maxEPf' for 'sm_80'
  ptxas info    : Function properties for _ZN7fastcnn3maxEPf
      0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
  ptxas info    : Used 34 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
  ptxas info    : Compile time = 8.471 ms
  ptxas info    : Compiling entry function '_ZN7fastcnn3maxEPf' for 'sm_90a'
  ptxas info    : Function properties for _ZN7fastcnn3maxEPf
      0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
  ptxas info    : Used 255 registers, used 0 barriers, 360 bytes cmem[0]
  warning: build_py: byte-compiling is disabled, skipping.
  warning: no previously-included files matching '*.so' found anywhere in distribution
"""


def report(tmp_path: Path, log: str, *options: str | Path) -> subprocess.CompletedProcess:
    (tmp_path / "build.log").write_text(log)
    command = [sys.executable, str(TOOL), str(tmp_path / "build.log"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_clean_build_passes(tmp_path):
    done = report(tmp_path, CLEAN)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["registers", "shared", "stack", "spilled", "arch", "kernel"]
    assert lines[1][:5] == ["34", "2048", "0", "0", "sm_80"]
    assert lines[2][:5] == ["255", "0", "0", "0", "sm_90a"]
    assert done.stdout.splitlines()[-1].endswith("1 kernels, at most 255 registers, 0 complaints")


def test_spills_fail_and_name_kernel_and_architecture(tmp_path):
    log = CLEAN.replace(
        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
        "48 bytes stack frame, 52 bytes spill stores, 60 bytes spill loads",
        1,
    )
    done = report(tmp_path, log)
    assert done.returncode == 1
    assert "max" in done.stderr
    assert "for sm_80 spills 112 bytes" in done.stderr
    assert "sm_90a" not in done.stderr


def test_a_stack_fails(tmp_path):
    done = report(tmp_path, CLEAN.replace("0 bytes stack frame", "16 bytes stack frame", 1))
    assert done.returncode == 1
    assert "for sm_80 keeps 16 bytes of stack" in done.stderr


def test_a_stack_of_a_function_that_was_not_inlined_counts(tmp_path):
    called = (
        "  ptxas info    : Function properties for _Z6helperf\n"
        "      24 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    )
    used = "  ptxas info    : Used 34 registers"
    done = report(tmp_path, CLEAN.replace(used, called + used))
    assert done.returncode == 1
    assert "keeps 24 bytes of stack" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        '/src/csrc/pool2d/max.cu(12): warning #177-D: variable "x" was declared but never referenced',
        "/src/csrc/conv2d/plan.cpp:3:10: warning: unused variable 'x' [-Wunused-variable]",
        "nvcc warning : Support for offline compilation will be removed",
        "ptxas warning : Value of threads per SM is out of range",
    ],
)
def test_a_compilers_warning_fails(tmp_path, line):
    done = report(tmp_path, CLEAN + line + "\n")
    assert done.returncode == 1
    assert line in done.stderr


def test_a_log_without_kernels_fails(tmp_path):
    done = report(tmp_path, "Successfully installed fastcnn\n")
    assert done.returncode == 1
    assert "has no kernel" in done.stderr


TILED = """\
  ptxas info    : Compiling entry function '_ZN7fastcnn6kernelIfNS_4TileILi8ELi4EEEEEvPf' for 'sm_80'
  ptxas info    : Used 41 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
  ptxas info    : Compiling entry function '_ZN7fastcnn6kernelIdNS_4TileILi8ELi4EEEEEvPf' for 'sm_80'
  ptxas info    : Used 33 registers, used 1 barriers, 4096 bytes smem, 360 bytes cmem[0]
  ptxas info    : Compiling entry function '_ZN7fastcnn6kernelIfNS_4TileILi2ELi2EEEEEvPf' for 'sm_80'
  ptxas info    : Used 20 registers, used 1 barriers, 360 bytes cmem[0]
"""
needs_filt = pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")


@needs_filt
def test_a_budget_holds_each_template_and_tile_to_its_ceiling(tmp_path):
    budget = tmp_path / "budget.toml"
    assert report(tmp_path, TILED, "--budget", budget, "--update-budget").returncode == 0
    lines = budget.read_text().splitlines()
    assert '"kernel Tile<8, 4>" = { registers = 48, shared = 4096 }' in lines
    assert '"kernel Tile<2, 2>" = { registers = 24, shared = 0 }' in lines
    assert report(tmp_path, TILED, "--budget", budget).returncode == 0
    # Up to the next eight nothing is lost.
    assert report(tmp_path, TILED.replace("41 registers", "48 registers"), "--budget", budget).returncode == 0
    done = report(tmp_path, TILED.replace("20 registers", "25 registers"), "--budget", budget)
    assert done.returncode == 1
    assert (
        "kernel<float, Tile<2, 2> > for sm_80 uses 25 registers, its budget is 24: make it fit" in done.stderr
    )
    assert "--update-budget" in done.stderr
    done = report(tmp_path, TILED.replace("4096 bytes smem", "4100 bytes smem"), "--budget", budget)
    assert "uses 4100 bytes of shared memory, its budget is 4096" in done.stderr


@needs_filt
def test_a_kernel_without_a_budget_fails_and_an_update_keeps_the_others(tmp_path):
    budget = tmp_path / "budget.toml"
    report(tmp_path, CLEAN, "--budget", budget, "--update-budget")
    done = report(tmp_path, TILED, "--budget", budget)
    assert done.returncode == 1
    assert "kernel Tile<8, 4> for sm_80 has no budget" in done.stderr
    assert "2 budgets are of kernels that this log has not" in done.stdout
    report(tmp_path, TILED, "--budget", budget, "--update-budget")
    assert report(tmp_path, CLEAN + TILED, "--budget", budget).returncode == 0
    report(tmp_path, TILED, "--budget", budget, "--update-budget", "--prune")
    assert report(tmp_path, TILED, "--budget", budget).returncode == 0
    assert "max for sm_90a has no budget" in report(tmp_path, CLEAN, "--budget", budget).stderr


@needs_filt
def test_a_budget_that_cannot_be_read_fails(tmp_path):
    budget = tmp_path / "budget.toml"
    assert "budget.toml" in report(tmp_path, CLEAN, "--budget", budget).stderr
    for text in ("[sm_80", "sm_80 = 3", '[sm_80]\n"max" = { registers = 3 }'):
        budget.write_text(text)
        done = report(tmp_path, CLEAN, "--budget", budget)
        assert done.returncode == 1
        assert "is no budget" in done.stderr
    assert report(tmp_path, CLEAN, "--update-budget").returncode == 2
