"""Small image folders, and the command line in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "fastcnn", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread: small models gain nothing from more, and a busy machine costs them much."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run_fastcnn(*arguments: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `fastcnn ARGUMENTS` and check its exit status."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


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
