"""The module that controls the emulated device, for the build that is loaded."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch  # noqa: F401 - its libraries are what the operator library is linked against

from .library import Variant, build_controls


@functools.cache
def controls(variant: Variant | str = Variant.RELEASE) -> ModuleType:
    """The controls of the emulated library as `build(variant)` gives it. They share its state with operators
    that were loaded from the same file."""
    path = build_controls(variant)
    spec = importlib.util.spec_from_file_location("fastcnn_emulator_controls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
