"""Autocast: convolutions run in the dtype the user chose, pools in their input's.

`torch.library.register_autocast` pins one dtype at registration; these read it at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
NAMES = (
    "conv2d",
    "conv2d_with_preactivation",
    "conv2d_act_max_pool2d",
    "conv2d_act_max_pool2d_with_offsets",
)


def cast(tensor: Tensor | None, device_type: str, dtype: torch.dtype) -> Tensor | None:
    """`tensor` in the autocast dtype; by torch's own rule float64 and other devices' tensors stay."""
    if (
        tensor is None
        or tensor.dtype == dtype
        or tensor.dtype == torch.float64
        or not tensor.is_floating_point()
        or tensor.device.type != device_type
    ):
        return tensor
    return tensor.to(dtype)


def conv2d_on(device_type: str, name: str) -> Callable[..., Any]:
    """The implementation of one of `NAMES` for one autocast key."""
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEYS[device_type]))
    op = getattr(torch.ops.fastcnn, name).default

    def conv2d(*args):
        dtype = torch.get_autocast_dtype(device_type)
        args = [cast(arg, device_type, dtype) if isinstance(arg, Tensor) else arg for arg in args]
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return op(*args)

    return conv2d
