"""What a GPU is compared with: single instructions as a CUDA library, and the emulator's answers to them.

`prepare()` needs nvcc and g++ and leaves both in one folder, build/conformance. The comparison
(tests/emulator_unit/test_conformance.py) needs that folder and a GPU, no compiler.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np

from build_support import cuda
from build_support.build_info import ROOT, source_hash

from .toolchain import EMULATOR, EmulatorUnavailable

FOLDER_VARIABLE = "FASTCNN_CONFORMANCE"
LIBRARY = "libfastcnn_instructions.so"
ANSWERS = "emulated.npz"
SOURCES = (EMULATOR / "instructions" / "instructions.cu", EMULATOR / "instructions" / "interface.cpp")


def folder() -> Path:
    """Where prepare() puts its results: $FASTCNN_CONFORMANCE, or build/conformance."""
    return Path(os.environ.get(FOLDER_VARIABLE, ROOT / "build" / "conformance"))


def sources_hash() -> str:
    """Changes with the wrappers, their twins and the single instructions."""
    return source_hash(ROOT / "csrc" / "ptx", ROOT / "csrc" / "common", EMULATOR)


def cases() -> dict[str, np.ndarray]:
    """For each instruction, words of shape [warps, 32, inputs] for which CUDA defines the answer."""
    generator = np.random.default_rng(20240229)

    def words(warps: int, count: int) -> np.ndarray:
        return generator.integers(0, 1 << 32, (warps, 32, count), dtype=np.uint32)

    result = {"integers": words(64, 2), "widen_bits": np.arange(1 << 16, dtype=np.uint32).reshape(-1, 32, 1)}
    result["round_float"] = words(2048, 1)
    result["round_float"][0, :8, 0] = [
        0,
        1 << 31,
        0x7F800000,
        0xFF800000,
        0x7FC00001,
        0x7F7FFFFF,
        1,
        0x477FF000,
    ]
    floats = generator.standard_normal((64, 32, 3)).astype(np.float32)
    floats[0, :4] = [[np.nan, 1, 2], [1, np.nan, 2], [np.inf, 1, -np.inf], [-0.0, 0.0, 0.0]]
    result["floats"] = floats.view(np.uint32)
    result["votes"] = generator.integers(0, 2, (16, 32, 1)).astype(np.uint32)
    result["votes"][:2] = np.array([0, 7], np.uint32)[:, None, None]
    for mode in ("shfl", "shfl_up", "shfl_down", "shfl_xor"):
        shuffled = words(32 * 6, 4)
        shuffled[..., 2] = np.tile(np.arange(32), 6)[:, None]
        shuffled[..., 3] = np.repeat(1 << np.arange(6), 32)[:, None]
        result[mode] = shuffled
    for count in (1, 2, 4):
        for suffix in ("", "_trans"):
            rows = words(16, 5)
            rows[..., 4] = np.stack([generator.permutation(32) for _ in range(16)])
            result[f"ldmatrix_x{count}{suffix}"] = rows
    for size in (4, 8, 16):
        copies = words(16, 8)
        copies[..., 4] = generator.integers(0, 2, (16, 32))
        result[f"cp_async_{size}"] = copies
    result["cp_async_groups"] = words(16, 4)
    for dtype in ("float16", "bfloat16"):
        result[f"mma_m16n8k16_{dtype}"] = _mma_words(generator, dtype)
    result["mma_m16n8k8_tf32"] = _mma_words(generator, "tf32")
    return result


MMA_INTEGER_WARPS = 16  # the first warps of each mma case: their sums are exact


def _mma_words(generator: np.random.Generator, dtype: str) -> np.ndarray:
    shape = (2 * MMA_INTEGER_WARPS, 32, 16)
    values = generator.standard_normal(shape).astype(np.float32)
    values[:MMA_INTEGER_WARPS] = generator.integers(-8, 9, (MMA_INTEGER_WARPS, 32, 16))
    bits = values.view(np.uint32)
    if dtype == "tf32":
        return np.ascontiguousarray(np.concatenate([bits[..., :6], bits[..., 12:]], axis=-1))
    halves = values.astype(np.float16).view(np.uint16).astype(np.uint32) if dtype == "float16" else bits >> 16
    packed = halves[..., 0:12:2] | halves[..., 1:12:2] << 16
    return np.ascontiguousarray(np.concatenate([packed, bits[..., 12:]], axis=-1))


def build_library(target: Path) -> Path:
    """Compiles the single instructions with nvcc for the architectures of the package's build."""
    home = cuda.find_cuda_home()
    if home is None:
        raise EmulatorUnavailable("the GPU's library of single instructions needs nvcc, and none was found")
    codes = []
    for name in cuda.architectures():
        version, _, ptx = name.partition("+")
        number = version.replace(".", "")
        codes += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if ptx:
            codes += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    target.mkdir(parents=True, exist_ok=True)
    library = target / LIBRARY
    include = ["-I", str(ROOT / "csrc"), "-I", str(EMULATOR)]
    command = [str(home / "bin" / "nvcc"), "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC,-Wall", *codes]
    command += [*include, "-cudart", "static", f"-L{cuda.library_folder(home)}"]
    command += ["-o", str(library), *map(str, SOURCES)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc refused the single instructions:\n{result.stderr[-8000:]}")
    return library


def prepare(target: Path | None = None) -> Path:
    """Builds the library and records the emulator's answers; returns their folder."""
    from .loading import controls

    target = folder() if target is None else target
    build_library(target)
    device = controls()
    answers = {name: device.run_instruction(name, words) for name, words in cases().items()}
    np.savez(target / ANSWERS, sources_hash=np.array(sources_hash()), **answers)
    return target


class InstructionLibrary:
    """The single instructions of a CUDA library, by name."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.fastcnn_instruction.restype = ctypes.c_char_p
        self._library.fastcnn_run_instruction.restype = ctypes.c_char_p
        self._library.fastcnn_run_instruction.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        inputs, outputs = ctypes.c_int(), ctypes.c_int()
        self.words: dict[str, tuple[int, int]] = {}
        for index in range(self._library.fastcnn_instruction_count()):
            name = self._library.fastcnn_instruction(index, ctypes.byref(inputs), ctypes.byref(outputs))
            self.words[name.decode()] = (inputs.value, outputs.value)

    def run(self, name: str, words: np.ndarray) -> np.ndarray:
        """Runs an instruction on the current GPU and stream; [warps, 32, in] to [warps, 32, out]."""
        import torch

        source = torch.from_numpy(words.view(np.int32)).cuda()
        target = torch.empty((len(words), 32, self.words[name][1]), dtype=torch.int32, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        error = self._library.fastcnn_run_instruction(
            list(self.words).index(name), source.data_ptr(), target.data_ptr(), len(words), stream
        )
        if error is not None:
            raise RuntimeError(error.decode())
        return target.cpu().numpy().view(np.uint32)
