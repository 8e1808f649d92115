"""The emulator is evidence only as far as a GPU gives the same answers.

`python -m tests.emulator --conformance` prepares the comparison where nvcc is. The machine with the GPU
looks for the folder in build/conformance, or where FASTCNN_CONFORMANCE says.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from build_support import cuda
from tests.emulator import conformance


@pytest.fixture(scope="module")
def prepared() -> Path:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    folder = conformance.folder()
    answers = folder / conformance.ANSWERS
    if not answers.exists() or str(np.load(answers)["sources_hash"]) != conformance.sources_hash():
        try:
            conformance.prepare(folder)
        except conformance.EmulatorUnavailable as reason:
            pytest.skip(
                f"{folder} lacks the answers of these sources and they cannot be made here ({reason}): run "
                "`python -m tests.emulator --conformance` where nvcc is"
            )
    return folder


@pytest.mark.cuda
@pytest.mark.conformance
@pytest.mark.parametrize("name", conformance.cases())
def test_gpu_agrees_with_the_emulator(prepared: Path, name: str) -> None:
    words = conformance.cases()[name]
    gpu = conformance.InstructionLibrary(prepared / conformance.LIBRARY).run(name, words)
    emulated = np.load(prepared / conformance.ANSWERS)[name]
    if not name.startswith("mma"):
        np.testing.assert_array_equal(gpu, emulated)
        return
    integers = conformance.MMA_INTEGER_WARPS
    np.testing.assert_array_equal(gpu[:integers], emulated[:integers])
    # Random sums of 16 products near 1: hardware truncates where the emulator rounds once.
    np.testing.assert_allclose(gpu.view(np.float32), emulated.view(np.float32), rtol=0, atol=3e-5)


def test_every_instruction_has_a_case(device: ModuleType) -> None:
    words = {name: (cases.shape[1], cases.shape[2]) for name, cases in conformance.cases().items()}
    assert words == {name: (32, inputs) for name, (inputs, _) in device.instructions().items()}


def test_the_emulator_answers_every_case(device: ModuleType) -> None:
    for name, words in conformance.cases().items():
        answers = device.run_instruction(name, words)
        assert len(np.unique(answers)) > 1, name


@pytest.mark.slow
def test_nvcc_compiles_every_wrapper(device: ModuleType, tmp_path: Path) -> None:
    if cuda.find_cuda_home() is None:
        pytest.skip("there is no nvcc")
    library = conformance.build_library(tmp_path)
    assert conformance.InstructionLibrary(library).words == device.instructions()
