"""The `fastcnn` command: train, eval, predict and info."""

from .main import main

__all__ = ["main"]
