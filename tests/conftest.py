"""The backends every operator test runs on: ATen, our kernels over the emulator, our kernels on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from fastcnn import _library
from tests import workers
from tests.emulator import EmulatorUnavailable

#: Set to 1, a test that would be skipped because the emulator cannot be built fails.
REQUIRE_EMULATOR = "FASTCNN_REQUIRE_EMULATOR"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own, which acts upon it
def pytest_cmdline_main(config: pytest.Config) -> None:
    workers.distribute(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers.order(config, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.skipped and call.excinfo and os.environ.get(REQUIRE_EMULATOR) == "1":
        missing = isinstance(call.excinfo.value.__context__, EmulatorUnavailable)
        if missing and item.get_closest_marker("cuda") is None:
            report.outcome = "failed"
            report.longrepr = f"{REQUIRE_EMULATOR} is 1, but {call.excinfo.value}"
    return report


@dataclass(frozen=True)
class Backend:
    """Where an operator test runs; every operator goes through `torch.ops.fastcnn` on each of them."""

    name: str
    device: str

    @property
    def is_ours(self) -> bool:
        """Whether kernels of ours compute, rather than ATen."""
        return self.name != "cpu"


@pytest.fixture(scope="session")
def emulated_library() -> None:
    """Our kernels, compiled for the emulator, loaded but not yet in use."""
    if _library.build_info("emulated") is None:
        from tests import emulator

        try:
            path = emulator.build()
        except EmulatorUnavailable as reason:
            pytest.skip(f"the emulator cannot be built: {reason}")
        in_use = "cpu" in _library.KERNEL_DEVICES
        _library.load(path)
        if not in_use:
            _library.use_aten_on_cpu()


@pytest.fixture
def aten_on_cpu() -> Iterator[None]:
    """CPU tensors go straight to torch, as where no emulated library is loaded."""
    in_use = "cpu" in _library.KERNEL_DEVICES
    _library.use_aten_on_cpu()
    _library.KERNEL_DEVICES.discard("cpu")
    yield
    if in_use:
        _library.use_emulated_on_cpu()


@pytest.fixture
def operators_on_cpu(aten_on_cpu: None) -> Iterator[None]:
    """CPU tensors go through our operators, which ATen then computes."""
    _library.KERNEL_DEVICES.add("cpu")
    yield
    _library.KERNEL_DEVICES.discard("cpu")


@pytest.fixture
def emulated_on_cpu(emulated_library: None) -> Iterator[None]:
    """CPU tensors go through our kernels over the emulator."""
    in_use = "cpu" in _library.KERNEL_DEVICES
    _library.use_emulated_on_cpu()
    yield
    if not in_use:
        _library.use_aten_on_cpu()


@pytest.fixture
def kernels_on_cuda() -> Iterator[None]:
    """A GPU that runs our kernels; torch's own float32 stays float32 beside them."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    torch.cuda.init()
    if not _library.kernels_for("cuda"):
        pytest.skip(f"no kernels for this GPU are loaded: {_library.load_error or _library.gpu_sentence()}")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


BACKENDS = {
    "cpu": ("operators_on_cpu", "cpu", ()),
    "emulated": ("emulated_on_cpu", "cpu", (pytest.mark.emulated,)),
    "cuda": ("kernels_on_cuda", "cuda", (pytest.mark.cuda,)),
}


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, (_, _, marks) in BACKENDS.items()])
def backend(request: pytest.FixtureRequest) -> Backend:
    fixture, device, _ = BACKENDS[request.param]
    request.getfixturevalue(fixture)
    return Backend(request.param, device)
