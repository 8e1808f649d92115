"""The `fastcnn` command: train, eval, predict, bench and info."""

from .main import main

__all__ = ["main"]
