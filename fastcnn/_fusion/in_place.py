"""Python's in-place operators as functions that `torch.fx` keeps, in a graph and in a pickled one.

A plain `torch.fx` proxy has no ``+=``: it would record ``x + y``, which writes to nobody else's tensor.
"""

from __future__ import annotations

from typing import Any

import torch.fx

__all__ = ["iadd", "imul", "isub", "itruediv"]


@torch.fx.wrap
def iadd(left: Any, right: Any) -> Any:
    """``left += right``."""
    left += right
    return left


@torch.fx.wrap
def isub(left: Any, right: Any) -> Any:
    """``left -= right``."""
    left -= right
    return left


@torch.fx.wrap
def imul(left: Any, right: Any) -> Any:
    """``left *= right``."""
    left *= right
    return left


@torch.fx.wrap
def itruediv(left: Any, right: Any) -> Any:
    """``left /= right``."""
    left /= right
    return left
