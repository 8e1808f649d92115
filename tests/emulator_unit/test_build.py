"""The build of the emulator: what it needs, what it compiles anew, and trial programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import emulator
from tests.emulator import toolchain
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
def test_make_follows_the_content_of_sources_and_headers(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (0, 0))  # as from an archive: older than the objects

    def made() -> str:
        make([target])
        return answer(target.path)

    write("answer.h", HEADER.format(40))
    write("main.cpp", MAIN.format(2))
    target = product(tmp_path)
    assert made() == "42"
    compiled = (tmp_path / "objects" / "main.o").stat().st_mtime_ns
    assert made() == "42"
    assert (tmp_path / "objects" / "main.o").stat().st_mtime_ns == compiled
    write("main.cpp", MAIN.format(3))
    assert made() == "43"
    write("answer.h", HEADER.format(50))
    assert made() == "53"


@needs_compiler
def test_a_compilers_complaint_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text("int main() { return nowhere_declared; }\n")
    with pytest.raises(CompileError, match="nowhere_declared"):
        make([product(tmp_path)])


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
