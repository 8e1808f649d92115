"""`import fastcnn`: every public name is there, and the packages of fastcnn[train] are not asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastcnn

OPTIONAL = ("PIL", "matplotlib", "rich", "safetensors", "sklearn", "torchvision")
# An import of any of these fails, as where only the required packages are installed.
WITHOUT_THEM = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_is_there():
    assert set(fastcnn.__all__) <= set(dir(fastcnn))
    for name in fastcnn.__all__:
        assert getattr(fastcnn, name) is not None


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'fastcnn' has no attribute 'trainings'"):
        fastcnn.trainings  # noqa: B018


def test_the_import_is_light():
    code = (
        f"{WITHOUT_THEM}import fastcnn; fastcnn.models.small_cnn(); print('fastcnn.training' in sys.modules)"
    )
    assert run(code) == "False"


def test_training_is_imported_at_its_first_use():
    assert run("import fastcnn; print(fastcnn.training.Trainer.__module__)") == "fastcnn.training.trainer"
