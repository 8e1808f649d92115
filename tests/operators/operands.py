"""Operands: integer-valued, random, and in every kind of memory layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def integers(shape: Sequence[int], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Whole numbers from -3 to 3, few of them zero: products and sums of them are exact in float32."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(-3, 4, tuple(shape), generator=generator).to(device, dtype)


def distinct(shape: Sequence[int], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Whole numbers without ties within a window of up to 512 neighbours, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed + 2)
    count = 1
    for extent in shape:
        count *= extent
    spread = 256 if dtype == torch.bfloat16 else 2048
    return (
        (torch.randperm(count, generator=generator) % spread - spread // 2).reshape(shape).to(device, dtype)
    )


def normal(shape: Sequence[int], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 3)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device, dtype)


def _sliced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor in each spatial dimension, off its start."""
    n, c, h, w = tensor.shape
    larger = torch.full((n + 1, c + 2, 2 * h + 1, 2 * w + 1), 99.0, dtype=tensor.dtype, device=tensor.device)
    view = larger[1:, 1 : c + 1, 1::2, 1::2]
    return view.copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def _channel_slice(tensor: Tensor) -> Tensor:
    """Some channels of an NHWC tensor with an odd number of them: rows of channels start misaligned."""
    n, c, h, w = tensor.shape
    larger = torch.full((n, h, w, c + 3), 99.0, dtype=tensor.dtype, device=tensor.device)
    view = larger[..., 1 : c + 1].permute(0, 3, 1, 2)
    return view.copy_(tensor)


def _batch_last(tensor: Tensor) -> Tensor:
    return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def odd_where_one(tensor: Tensor) -> Tensor:
    """Axes of one element get strides no access is aligned to: nothing may go along them."""
    strides = [7 if n == 1 else stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


#: Same values, other memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda tensor: tensor.contiguous(),
    "nhwc": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "transposed": _transposed,
    "channel-slice": _channel_slice,
    "batch-last": _batch_last,
}
