"""Convolution and pooling for PyTorch on CUDA kernels written by hand: a drop-in for torch's own layers.

    model = fastcnn.convert(model)          # the convolution and pooling layers of any model
    layer = fastcnn.nn.Conv2d(3, 64, 7)     # or layer by layer
    y = fastcnn.functional.conv2d(x, w)     # or call by call

`fastcnn.training` is imported at its first use: it needs the packages of fastcnn[train].

Where the compiled library or a GPU is missing, the same calls run through ATen: `fastcnn info` tells.
"""

import importlib
from types import ModuleType

# The operators' schemas come first: the library, loaded by the import of _library, implements them.
from fastcnn import ops as ops  # isort: skip
from fastcnn import _library as _library  # isort: skip
from fastcnn import arrays, functional, models, nn
from fastcnn._version import __version__
from fastcnn.convert import Fused, Report, Skipped, Swapped, convert, revert
from fastcnn.plan import Plan, plan

__all__ = [
    "Fused",
    "Plan",
    "Report",
    "Skipped",
    "Swapped",
    "__version__",
    "arrays",
    "convert",
    "functional",
    "models",
    "nn",
    "plan",
    "revert",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name == "training":
        return importlib.import_module("fastcnn.training")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
