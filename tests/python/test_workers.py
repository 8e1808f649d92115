"""Which runs of the tests are spread over processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import workers

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"numprocesses": None, "dist": "no", "distload": False, "tx": [], "capture": "fd", "lf": False}


class Config:
    """What `distribute` sees of pytest: `arguments` given in the root of the checkout, and options."""

    def __init__(self, *arguments: str, xdist: bool = True, **options: object) -> None:
        self.pluginmanager = SimpleNamespace(hasplugin=lambda name: xdist and name == "xdist")
        self.option = SimpleNamespace(**{**PLAIN, **options})
        self.args = list(arguments)
        self.invocation_params = SimpleNamespace(dir=ROOT)

    def getoption(self, name: str, default: object = None) -> object:
        return getattr(self.option, name, default)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "jobs", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("arguments", [("tests",), ("tests/python", f"{ROOT}/tests/training/")])
def test_folders_take_all_cores(four_cores: None, arguments: tuple[str, ...]) -> None:
    config = Config(*arguments)
    workers.distribute(config)
    assert (config.option.numprocesses, config.option.dist) == (4, "worksteal")


@pytest.mark.parametrize(
    "config",
    [
        Config("tests", xdist=False),
        Config("benchmarks"),
        Config("tests", "benchmarks"),
        Config("tests/python/test_workers.py"),
        Config("tests/python/test_workers.py::test_folders_take_all_cores"),
        Config("tests", markexpr="cuda"),
        Config("tests", keyword="pool"),
        Config("tests", capture="no"),
        Config("tests", lf=True),
        Config("tests", tx=["ssh=elsewhere"], dist="load"),
    ],
    ids=[
        "no-xdist",
        "benchmarks",
        "both",
        "file",
        "test",
        "marker",
        "keyword",
        "shown",
        "failed",
        "elsewhere",
    ],
)
def test_other_runs_stay_in_one_process(four_cores: None, config: Config) -> None:
    before = dict(vars(config.option))
    workers.distribute(config)
    assert vars(config.option) == before


def test_a_number_on_the_command_line_stays(four_cores: None) -> None:
    config = Config("tests", numprocesses=0)
    workers.distribute(config)
    assert config.option.numprocesses == 0


def test_a_gpu_serves_one_process(four_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = Config("tests")
    workers.distribute(config)
    assert config.option.numprocesses is None
