"""Bringing the arguments users write (an int, a tuple, None, "same") to the operators' plain integers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor


def single(op: str, name: str, value: Any) -> int:
    """One integer, else a TypeError that names the argument."""
    if isinstance(value, (int, torch.SymInt)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}(): argument '{name}' must be an int, not {type(value).__name__}") from None


def real(name: str, value: Any) -> float:
    """One real number as a float, else a TypeError that names the argument."""
    if isinstance(value, (float, torch.SymFloat)):
        return value
    try:
        if hasattr(type(value), "__float__"):  # numbers of NumPy and torch too, no strings
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name} must be a real number, such as 0.01, not {value!r} ({type(value).__name__})")


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """Two integers from an int, or from a sequence of one or two."""
    if isinstance(value, (int, torch.SymInt)):
        return value, value
    if isinstance(value, (tuple, list)):
        if len(value) == 2:
            return single(op, name, value[0]), single(op, name, value[1])
        if len(value) == 1:
            both = single(op, name, value[0])
            return both, both
        raise RuntimeError(
            f"{op}(): {name} must either be a single int, or a tuple of two ints, but is {tuple(value)}"
        )
    try:
        both = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{op}(): argument '{name}' must be an int or a tuple of two ints, not {type(value).__name__}"
        ) from None
    return both, both


def kernel_pair(op: str, kernel_size: Any, stride: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """A pool's kernel and stride; a stride left out is the kernel."""
    kernel = pair(op, "kernel_size", kernel_size)
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        return kernel, kernel
    return kernel, pair(op, "stride", stride)


def size_pair(op: str, output_size: Any, input: Tensor) -> tuple[int, int]:
    """An adaptive pool's output size, None standing for the input's."""
    if isinstance(output_size, (tuple, list)):
        if len(output_size) != 2:
            raise RuntimeError(f"{op}(): output_size must be 2 values, but is {tuple(output_size)}")
        height, width = (
            size if given is None else single(op, "output_size", given)
            for given, size in zip(output_size, input.shape[2:], strict=True)
        )
        return height, width
    both = single(op, "output_size", output_size)
    return both, both


def same_padding(
    padding: str, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right padding for padding="valid" and padding="same"."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise RuntimeError(
            f"conv2d(): invalid padding string: {padding!r}; allowed are 'same', 'valid' or integers"
        )
    if stride != (1, 1):
        raise RuntimeError(
            f"conv2d(): padding='same' is not supported for strided convolutions, stride is {stride}"
        )
    if weight.dim() != 4:
        raise RuntimeError(f"conv2d(): weight must be 4-D, but has size {list(weight.shape)}")
    total_h = dilation[0] * (weight.shape[2] - 1)
    total_w = dilation[1] * (weight.shape[3] - 1)
    top, left = total_h // 2, total_w // 2
    return top, total_h - top, left, total_w - left
