"""The build of the emulator: what it needs, what it does without ninja, and trial programs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests import emulator
from tests.emulator import compile, toolchain
from tests.emulator.compile import CompileError, Product, Source, make

HEADER = "#pragma once\nconstexpr int kAnswer = {};\n"
MAIN = '#include <cstdio>\n#include "answer.h"\nint main() {{ std::printf("%d", kAnswer + {}); }}\n'

needs_compiler = pytest.mark.skipif(
    toolchain.shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)


def product(folder: Path) -> Product:
    source = Source(folder / "main.cpp", folder / "objects" / "main.o", ("-I", str(folder), "-std=c++17"))
    return Product(folder / "program", (source,), ())


def answer(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def test_without_a_compiler_the_emulator_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        emulator.EmulatorUnavailable, match=r"no 'no-such-compiler': install g\+\+ or set CXX"
    ):
        emulator.compiler()


@needs_compiler
@pytest.mark.parametrize("ninja", [None, ""], ids=["ninja", "no ninja"])
def test_make_follows_sources_and_headers(tmp_path: Path, ninja: str | None) -> None:
    if ninja is None and compile.find_ninja() is None:
        pytest.skip("there is no ninja")
    (tmp_path / "answer.h").write_text(HEADER.format(40))
    (tmp_path / "main.cpp").write_text(MAIN.format(2))
    target = product(tmp_path)

    def made(headers: str) -> str:
        make([target], tmp_path / "work", headers, ninja)
        return answer(target.path)

    assert made("first") == "42"
    compiled = (tmp_path / "objects" / "main.o").stat().st_mtime_ns
    assert made("first") == "42"
    assert (tmp_path / "objects" / "main.o").stat().st_mtime_ns == compiled
    time.sleep(0.01)  # ninja compares times
    (tmp_path / "main.cpp").write_text(MAIN.format(3))
    assert made("first") == "43"
    time.sleep(0.01)
    (tmp_path / "answer.h").write_text(HEADER.format(50))
    assert made("second") == "53"


@needs_compiler
@pytest.mark.parametrize("ninja", [None, ""], ids=["ninja", "no ninja"])
def test_a_compilers_complaint_is_passed_on(tmp_path: Path, ninja: str | None) -> None:
    if ninja is None and compile.find_ninja() is None:
        pytest.skip("there is no ninja")
    (tmp_path / "main.cpp").write_text("int main() { return nowhere_declared; }\n")
    with pytest.raises(CompileError, match="nowhere_declared"):
        make([product(tmp_path)], tmp_path / "work", "", ninja)


@needs_compiler
def test_the_library_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = emulator.build()
    assert library.exists()

    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("tests.emulator.library.make", refuse)
    monkeypatch.setattr("tests.emulator.library._built", {})
    assert emulator.build() == library


@needs_compiler
def test_a_trial_program_runs_a_kernel(tmp_path: Path) -> None:
    trial = tmp_path / "trial.cpp"
    trial.write_text(TRIAL)
    program = emulator.build_program([trial])
    assert answer(program) == "0 1 4 9 "


TRIAL = """
#include <cstdio>

#include "common/launch.h"
#include "common/memory.cuh"
#include "emulator/global_memory.h"

struct Params {
  int* out;
};

__global__ void square(const __grid_constant__ Params params) {
  const int t = static_cast<int>(threadIdx.x);
  fastcnn::store_global(params.out + t, t * t);
}

int main() {
  int out[4];
  fastcnn::emulator::BufferScope scope;
  scope.may_write(out, sizeof(out));
  fastcnn::LaunchConfig config;
  config.grid = dim3(1);
  config.threads = 4;
  fastcnn::launch("square", &square, config, Params{out});
  for (int x : out) std::printf("%d ", x);
}
"""
