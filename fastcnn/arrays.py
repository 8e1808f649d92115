"""The forward functions for arrays of any library that speaks DLPack: NumPy, CuPy, JAX, torch and others.

An array goes in without a copy (a read-only NumPy array is copied once), the work runs on its own device and
that device's current stream, and the result comes back as the kind of the first argument. Nothing is recorded
for differentiation. Signatures and errors are those of `fastcnn.functional`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcnn import functional

__all__ = ["adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "conv2d", "max_pool2d"]


def _to_tensor(name: str, array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):
        return _from_numpy(name, array)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(
            f"{name} must be an array with __dlpack__ (NumPy, CuPy, torch, ...), not {type(array).__name__}"
        )
    return torch.from_dlpack(array)


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    # torch takes neither negative strides, nor other byte orders, nor (without a warning) read-only memory.
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative or not array.flags.writeable:
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name} has dtype {array.dtype}, which torch does not have") from error


def _giver(array: Any) -> Callable[[Tensor], Any]:
    """The way back to the kind of `array`."""
    if isinstance(array, Tensor):
        return lambda tensor: tensor
    if isinstance(array, np.ndarray):
        return lambda tensor: tensor.numpy()
    # The caller's array came from its library, so that is imported already. CuPy among them is never
    # imported here. Its from_dlpack takes the memory on the current stream.
    root = type(array).__module__.partition(".")[0]
    for module in (sys.modules.get(root), sys.modules.get(f"{root}.numpy")):
        if hasattr(module, "from_dlpack"):
            return module.from_dlpack
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__().from_dlpack
    raise TypeError(
        f"{type(array).__module__}.{type(array).__qualname__} has no from_dlpack to take the result back"
    )


@contextlib.contextmanager
def _same_stream(array: Any, tensor: Tensor):
    """The device of the array, and, for a CuPy array, the stream that CuPy is working on."""
    if not tensor.is_cuda:
        yield
        return
    with torch.cuda.device(tensor.device):
        cupy = sys.modules.get("cupy")
        if cupy is None or not isinstance(array, cupy.ndarray):
            yield
            return
        stream = cupy.cuda.get_current_stream()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, device=tensor.device)):
            yield


def _run(function: Callable[..., Any], array: Any, *others: Any, **options: Any) -> Any:
    give = _giver(array) if hasattr(array, "__dlpack__") else None
    tensor = _to_tensor("input", array)
    with torch.inference_mode(False), torch.no_grad(), _same_stream(array, tensor):
        operands = [
            None if other is None else _to_tensor(name, other)
            for name, other in zip(("weight", "bias"), others, strict=False)
        ]
        result = function(tensor, *operands, **options)
        if isinstance(result, tuple):
            return tuple(give(part) for part in result)
        return give(result)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation="none"):
    """`fastcnn.functional.conv2d` for arrays: input (N, C, H, W) or (C, H, W), weight (K, C/groups, R, S)."""
    return _run(
        functional.conv2d,
        input,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
    )


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """`fastcnn.functional.max_pool2d` for arrays: input (N, C, H, W) or (C, H, W)."""
    return _run(
        functional.max_pool2d,
        input,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """`fastcnn.functional.avg_pool2d` for arrays: input (N, C, H, W) or (C, H, W)."""
    return _run(
        functional.avg_pool2d,
        input,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def adaptive_avg_pool2d(input, output_size):
    """`fastcnn.functional.adaptive_avg_pool2d` for arrays: input (N, C, H, W) or (C, H, W)."""
    return _run(functional.adaptive_avg_pool2d, input, output_size=output_size)


def adaptive_max_pool2d(input, output_size, return_indices=False):
    """`fastcnn.functional.adaptive_max_pool2d` for arrays: input (N, C, H, W) or (C, H, W)."""
    return _run(functional.adaptive_max_pool2d, input, output_size=output_size, return_indices=return_indices)
