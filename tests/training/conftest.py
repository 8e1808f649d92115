"""Small image folders, and the command line in this process or one of its own."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.cli import main

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "fastcnn", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread: small models gain nothing from more, and a busy machine costs them much."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@dataclass
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def run_fastcnn(*arguments: str | Path, cwd: Path, status: int = 0) -> Done:
    """Run `fastcnn ARGUMENTS` in this process, where torch is imported already, and check its status."""
    out, err = io.StringIO(), io.StringIO()
    here = os.getcwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(map(str, arguments)))
    except SystemExit as leaving:
        code = leaving.code
    finally:
        os.chdir(here)
    done = Done(code, out.getvalue(), err.getvalue())
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_process(*arguments: str | Path, cwd: Path) -> Done:
    """Run `fastcnn ARGUMENTS` in a process of its own, which must succeed."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Here as in the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(
    path: Path, label: int, seed: int, *, colour: bool = False, size: tuple[int, int] = (40, 30)
) -> Path:
    """A noisy picture whose class shows: bright at the top (0), at the bottom (1) or on the left (2)."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3 if colour else 1), np.uint8)
    where = (np.s_[: height // 2], np.s_[height // 2 :], np.s_[:, : width // 2])[label]
    pixels[where] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if colour else pixels[..., 0]).save(path)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder(name, classes={"up": 6, ...}, colour=False, under=""): adds pictures, gives the folder."""

    def make(
        name: str = "pictures",
        classes: dict[str, int] | None = None,
        *,
        colour: bool = False,
        under: str = "",
    ) -> Path:
        root = tmp_path / name
        for label, (kind, number) in enumerate((classes or {"up": 10, "down": 10, "left": 10}).items()):
            for index in range(number):
                file = root / under / kind / f"{index:03}.png"
                draw(file, label % 3, 100 * label + index, colour=colour, size=(30 + index, 40 - index % 7))
        return root

    return make
