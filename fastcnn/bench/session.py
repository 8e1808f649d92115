"""Many cases, one after another: the ceilings first, a budget of time, a record that grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fastcnn import _library
from fastcnn.bench.cases import Case
from fastcnn.bench.measure import Settings, measure
from fastcnn.bench.record import Record, new_record
from fastcnn.testing.timing import default_timer, measure_ceilings

NO_GPU = (
    "this times kernels on an NVIDIA GPU, and torch finds none here: run it where `nvidia-smi` names one and "
    "torch is a CUDA build (`fastcnn info` says); `fastcnn bench --list` shows what would be measured"
)


class NoDevice(RuntimeError):
    """There is nothing here to measure on; the message says so."""


class DeviceLost(RuntimeError):
    """CUDA can no longer be used in this process, as after an illegal access; the message names the case."""


def gpu_settings(*, autotune: bool = True) -> Settings:
    """How the current GPU is measured. Initialises CUDA.

    Raises:
        NoDevice: torch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise NoDevice(NO_GPU)
    torch.cuda.init()
    missing = None
    if not _library.kernels_for("cuda"):
        missing = _library.load_error or "the library that is loaded is not one for CUDA"
        if _library.uncovered_gpus:
            missing = _library.gpu_sentence()
    return Settings(default_timer(), autotune=autotune, without_ours=missing)


class Session:
    """A run over cases.

    Args:
        settings: how to measure; its ceilings are measured by `start` where it has none.
        seconds: begin no further case when so much time has gone by since `start`; None for no end.
        path: where the record saves itself as it grows, or None.

    Attributes:
        record: the run's record, from `start` on.
        cases: what was measured so far, as the record has it.
        left_out: the cases that the budget left out.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        seconds: float | None = None,
        path: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.record: Record | None = None
        self.cases: list[dict] = []
        self.left_out: list[Case] = []
        self._seconds, self._path, self._clock = seconds, path, clock
        self._begun: float | None = None

    def start(self) -> None:
        """Measures the ceilings and begins the record; a second call does nothing."""
        if self._begun is not None:
            return
        self._begun = self._clock()
        if self.settings.ceilings is None:
            self.settings = replace(self.settings, ceilings=measure_ceilings(self.settings.timer))
        self.record = new_record(
            "benchmark",
            path=self._path,
            protocol=self.settings.protocol(),
            ceilings=asdict(self.settings.ceilings),
        )

    @property
    def time_is_up(self) -> bool:
        """Whether no further case is to be begun."""
        return (
            self._seconds is not None
            and self._begun is not None
            and self._clock() - self._begun >= self._seconds
        )

    def measure(self, case: Case) -> dict:
        """Measures one case and adds it to the record.

        Raises:
            DeviceLost: nothing more can be measured; the case is in the record, with the reason.
        """
        self.start()
        found = measure(case, self.settings)
        self.cases.append(found)
        self.record.add(found)
        if self.settings.timer.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                raise DeviceLost(f"CUDA was lost in {case.id}: {str(error).splitlines()[0]}") from error
        return found

    def run(self, cases: Sequence[Case]) -> Iterator[dict]:
        """Measures the cases in turn; those that the budget leaves no time for end up in `left_out`."""
        self.start()
        for index, case in enumerate(cases):
            if self.time_is_up:
                self.left_out = list(cases[index:])
                return
            yield self.measure(case)

    def finish(self) -> None:
        """Marks the record as complete: the run came to its end, be it that of its budget."""
        if self.record is not None:
            self.record.finish()
