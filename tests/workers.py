"""A run of whole folders of tests takes all cores, through pytest-xdist where that is installed.

It stays in one process if its arguments pick tests (a file, -k, -m, --lf), debug them or show their output
as it comes; where there is a GPU, whose memory each test needs to itself; and with `-n 0`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.emulator.compile import jobs

TESTS = Path(__file__).resolve().parent
MOST_WORKERS = 8  # each imports torch and collects all tests, which takes it some seconds


def distribute(config: pytest.Config) -> None:
    """Ask pytest-xdist for workers, as -n and --dist on the command line do, if the run is for them."""
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    option = config.option
    if option.numprocesses is not None or option.distload or option.tx or torch.cuda.is_available():
        return
    workers = min(jobs(), MOST_WORKERS)
    if workers > 1 and _is_of_whole_folders(config):
        option.numprocesses = workers
        option.dist = "worksteal"  # neighbours stay together, so that fixtures are seldom made twice
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # in workers and what they start: a worker has one core


def order(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests first, so that none is begun when the other workers have nothing left."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _is_of_whole_folders(config: pytest.Config) -> bool:
    picks = ("keyword", "markexpr", "lf", "stepwise", "usepdb", "trace", "collectonly")
    if config.getoption("capture") == "no" or any(config.getoption(name, None) for name in picks):
        return False
    paths = [config.invocation_params.dir.joinpath(argument).resolve() for argument in config.args]
    return all(path.is_dir() and path.is_relative_to(TESTS) for path in paths)
