"""Autocast: convolutions run in the dtype the user chose, pools in their input's.

`torch.library.register_autocast` pins one dtype at registration; these read it at each call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


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


def conv2d_on(device_type: str) -> Callable[..., Tensor]:
    """The conv2d implementation for one device's autocast key."""
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEYS[device_type]))

    def conv2d(input, weight, bias, *args):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return torch.ops.fastcnn.conv2d.default(
                cast(input, device_type, dtype),
                cast(weight, device_type, dtype),
                cast(bias, device_type, dtype),
                *args,
            )

    return conv2d
