"""What tests of kernels that take the activation's backward in their loads share."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.emulator import controls

_OPS = torch.ops.fastcnn


def launched() -> list[str]:
    """The kernels launched since the emulator's counters were reset."""
    return [launch["name"].removeprefix("conv2d::") for launch in controls().launches()]


def through_activation(
    dy: Tensor, saved: Tensor, activation: str, slope: float, channels_last: bool
) -> Tensor:
    """The activation's backward alone: through a depthwise 1x1 layer of ones."""
    channels, *image = dy.shape[1:]
    ones = torch.ones(channels, 1, 1, 1, dtype=dy.dtype)
    geometry = (1, 1, 0, 0, 0, 0, 1, 1, channels)
    return _OPS.conv2d_act_dgrad(dy, saved, ones, *image, *geometry, activation, slope, channels_last, False)
