"""Wrong arguments: the exception is torch's own type on every backend, and the message names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastcnn import functional
from fastcnn import nn as fnn

from .shapes import parametrize


@dataclass(frozen=True)
class Wrong:
    """A call of one function, of our module or torch's, and what our message must say."""

    id: str
    call: Callable[[Any, Callable[..., torch.Tensor]], Any]
    says: str


def image(new, *shape: int, **options) -> torch.Tensor:
    return new(shape or (2, 4, 8, 8), **options)


WRONG = [
    Wrong("conv-2d-input", lambda f, new: f.conv2d(new((8, 8)), new((6, 4, 3, 3))), "input|Expected 3D"),
    Wrong(
        "conv-5d-input", lambda f, new: f.conv2d(new((1, 2, 4, 8, 8)), new((6, 4, 3, 3))), "input|Expected 3D"
    ),
    Wrong("conv-3d-weight", lambda f, new: f.conv2d(image(new), new((6, 4, 3))), "weight"),
    Wrong("conv-channels", lambda f, new: f.conv2d(image(new), new((6, 3, 3, 3))), "4 channels"),
    Wrong("conv-groups", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), groups=3), "groups=3"),
    Wrong(
        "conv-groups-of-outputs",
        lambda f, new: f.conv2d(image(new), new((5, 2, 3, 3)), groups=2),
        "groups=2|groups",
    ),
    Wrong("conv-no-groups", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), groups=0), "groups"),
    Wrong(
        "conv-weight-dtype",
        lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3), dtype=torch.float64)),
        "weight",
    ),
    Wrong(
        "conv-bias-dtype",
        lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), new((6,), dtype=torch.float64)),
        "bias",
    ),
    Wrong("conv-bias-size", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), new((5,))), "bias"),
    Wrong("conv-bias-2d", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), new((1, 6))), "bias"),
    Wrong(
        "conv-negative-padding", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), padding=-1), "padding"
    ),
    Wrong("conv-stride-0", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), stride=0), "stride"),
    Wrong(
        "conv-stride-negative",
        lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), stride=(1, -1)),
        "stride",
    ),
    Wrong("conv-dilation-0", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), dilation=0), "dilation"),
    Wrong(
        "conv-stride-triple",
        lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), stride=(1, 1, 1)),
        "stride",
    ),
    Wrong("conv-stride-float", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), stride=1.5), "stride"),
    Wrong("conv-groups-float", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), groups=1.5), "groups"),
    Wrong("conv-no-input", lambda f, new: f.conv2d(None, new((6, 4, 3, 3))), "NoneType"),
    Wrong("conv-no-weight", lambda f, new: f.conv2d(image(new), None), "NoneType"),
    Wrong(
        "conv-kernel-too-large",
        lambda f, new: f.conv2d(new((2, 4, 2, 9)), new((6, 4, 3, 3))),
        re.escape("can't be greater than actual input size"),
    ),
    Wrong("conv-no-output-channels", lambda f, new: f.conv2d(image(new), new((0, 4, 3, 3))), "weight"),
    Wrong(
        "conv-empty-image", lambda f, new: f.conv2d(new((2, 4, 0, 8)), new((6, 4, 3, 3)), padding=2), "input"
    ),
    Wrong(
        "conv-same-strided",
        lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), stride=2, padding="same"),
        "same",
    ),
    Wrong(
        "conv-padding-word", lambda f, new: f.conv2d(image(new), new((6, 4, 3, 3)), padding="full"), "full"
    ),
    Wrong("max-2d-input", lambda f, new: f.max_pool2d(new((8, 8)), 2), "input"),
    Wrong("max-5d-input", lambda f, new: f.max_pool2d(new((1, 2, 4, 8, 8)), 2), "input"),
    Wrong("max-kernel-0", lambda f, new: f.max_pool2d(image(new), 0, 1), "kernel"),
    Wrong("max-kernel-triple", lambda f, new: f.max_pool2d(image(new), (2, 2, 2)), "kernel_size"),
    Wrong("max-kernel-float", lambda f, new: f.max_pool2d(image(new), 2.5), "kernel_size"),
    Wrong("max-stride-0", lambda f, new: f.max_pool2d(image(new), 2, 0), "stride"),
    Wrong("max-stride-negative", lambda f, new: f.max_pool2d(image(new), 2, -1), "stride"),
    Wrong("max-padding", lambda f, new: f.max_pool2d(image(new), 2, 2, 2), "pad"),
    Wrong("max-padding-negative", lambda f, new: f.max_pool2d(image(new), 2, 2, -1), "pad"),
    Wrong("max-padding-dilated", lambda f, new: f.max_pool2d(image(new), 3, 2, 2, 2), "pad"),
    Wrong("max-dilation-0", lambda f, new: f.max_pool2d(image(new), 2, 2, 0, 0), "dilation"),
    Wrong("max-window-too-large", lambda f, new: f.max_pool2d(image(new), 9), "(?i)output size is too small"),
    Wrong("max-no-channels", lambda f, new: f.max_pool2d(new((2, 0, 8, 8)), 2), "input"),
    Wrong("max-no-rows", lambda f, new: f.max_pool2d(new((2, 4, 0, 8)), 2), "input"),
    Wrong("avg-kernel-0", lambda f, new: f.avg_pool2d(image(new), 0, 1), "kernel|output size|integer"),
    Wrong("avg-stride-0", lambda f, new: f.avg_pool2d(image(new), 2, 0), "stride"),
    Wrong("avg-padding", lambda f, new: f.avg_pool2d(image(new), 2, 2, 2), "pad"),
    Wrong("avg-divisor-0", lambda f, new: f.avg_pool2d(image(new), 2, divisor_override=0), "divisor"),
    Wrong("avg-kernel-triple", lambda f, new: f.avg_pool2d(image(new), (1, 2, 3)), "kernel_size"),
    Wrong("avg-window-too-large", lambda f, new: f.avg_pool2d(image(new), 9), "(?i)output size is too small"),
    Wrong("adaptive-avg-2d-input", lambda f, new: f.adaptive_avg_pool2d(new((8, 8)), 2), "(?i)3-?D"),
    Wrong("adaptive-avg-negative", lambda f, new: f.adaptive_avg_pool2d(image(new), -1), "output_size"),
    Wrong("adaptive-avg-triple", lambda f, new: f.adaptive_avg_pool2d(image(new), (1, 2, 3)), "output_size"),
    Wrong("adaptive-avg-single", lambda f, new: f.adaptive_avg_pool2d(image(new), (1,)), "output_size"),
    Wrong("adaptive-avg-empty", lambda f, new: f.adaptive_avg_pool2d(new((2, 4, 0, 8)), 2), "input"),
    Wrong("adaptive-max-2d-input", lambda f, new: f.adaptive_max_pool2d(new((8, 8)), 2), "(?i)3-?D"),
    Wrong(
        "adaptive-max-negative", lambda f, new: f.adaptive_max_pool2d(image(new), -1), "output_size|negative"
    ),
    Wrong("adaptive-max-empty", lambda f, new: f.adaptive_max_pool2d(new((2, 0, 8, 8)), 2), "input"),
]


@parametrize("case", WRONG)
def test_same_exception_as_torch(backend, case):
    def new(shape, dtype=torch.float32):
        return torch.ones(shape, dtype=dtype, device=backend.device)

    with pytest.raises(Exception) as torchs:  # noqa: PT011 - which one is what is asked
        case.call(F, new)
    with pytest.raises(type(torchs.value), match=case.says):
        case.call(functional, new)


@parametrize("case", [case for case in WRONG if "input" in case.id or "padding" in case.id])
def test_same_exception_without_kernels(aten_on_cpu, case):
    with pytest.raises(Exception) as torchs:  # noqa: PT011 - which one is what is asked
        case.call(F, torch.ones)
    with pytest.raises(type(torchs.value), match=re.escape(str(torchs.value)[:60])):
        case.call(functional, torch.ones)


def test_unknown_activation(backend):
    image, weight = (
        torch.ones(1, 1, 3, 3, device=backend.device),
        torch.ones(1, 1, 1, 1, device=backend.device),
    )
    with pytest.raises(ValueError, match="'swish'"):
        functional.conv2d(image, weight, activation="swish")
    with pytest.raises(ValueError, match="'swish'"):
        fnn.ConvAct2d(1, 1, 1, activation="swish")
    with pytest.raises(ValueError, match="'swish'"):
        functional.conv2d_act_max_pool2d(image, weight, activation="swish")
    with pytest.raises(ValueError, match="'swish'"):
        fnn.ConvActPool2d(1, 1, 1, activation="swish")
    with pytest.raises(RuntimeError, match="activation"):
        torch.ops.fastcnn.conv2d(image, weight, None, None, 1, 1, 0, 0, 0, 0, 1, 1, 1, "swish", 0.0, False)


def test_other_device(kernels_on_cuda):
    image, weight = torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="device"):
        functional.conv2d(image, weight)
    with pytest.raises(RuntimeError, match="device"):
        functional.conv2d(image, weight.cuda(), torch.ones(1))


_ops = torch.ops.fastcnn
CONV = (1, 1, 0, 0, 0, 0, 1, 1, 1)
MAX = (2, 2, 2, 2, 0, 0, 1, 1, False)
AVG = (2, 2, 2, 2, 0, 0, False, True, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        (
            "conv2d",
            ((1, 2, 4, 4), torch.int32, (2, 2, 3, 3), torch.int32, *CONV, "none", 0.0, False),
            "float",
        ),
        (
            "conv2d_act_max_pool2d",
            ((1, 2, 4, 4), None, (2, 2, 3, 4), None, *CONV, "none", 0.0, False),
            "output size is too small",
        ),
        (
            "conv2d_act_max_pool2d",
            ((1, 2, 4, 4), None, (2, 2, 3, 3), None, *CONV, "swish", 0.0, False),
            "activation",
        ),
        ("conv2d_dgrad", ((1, 2, 2, 3), None, (2, 2, 3, 3), None, 4, 4, *CONV, False, False), "grad_output"),
        ("conv2d_wgrad", ((1, 2, 2, 3), None, (1, 2, 4, 4), None, 3, 3, *CONV, False, False), "grad_output"),
        ("conv2d_bias_grad", ((2, 3, 4), None), "grad_output"),
        (
            "max_pool2d_backward",
            ((1, 2, 2, 3), None, (1, 2, 2, 3), torch.uint8, 4, 4, *MAX, False),
            "grad_output",
        ),
        (
            "max_pool2d_backward",
            ((1, 2, 2, 2), None, (1, 2, 2, 2), torch.int32, 4, 4, *MAX, False),
            "indices",
        ),
        (
            "max_pool2d_backward",
            ((1, 2, 2, 2), None, (1, 2, 2, 1), torch.uint8, 4, 4, *MAX, False),
            "indices",
        ),
        ("max_pool2d_gather", ((1, 2, 4, 4), None, (1, 2, 2, 1), torch.uint8, *MAX), "indices"),
        ("avg_pool2d_backward", ((1, 2, 2, 3), None, 4, 4, *AVG, False), "grad_output"),
        (
            "adaptive_max_pool2d_backward",
            ((1, 2, 2, 2), None, (1, 2, 2, 2), torch.uint8, 4, 4, False),
            "indices",
        ),
        ("adaptive_max_pool2d_gather", ((1, 2, 4, 4), None, (1, 3, 2, 2), torch.int64), "indices"),
    ],
)
def test_operators_refuse_what_does_not_fit(backend, name, arguments, says):
    """Shapes are followed by their dtype (None: float32); the fake refuses as the kernel does."""

    def tensors(device):
        built, rest = [], list(arguments)
        while rest:
            argument = rest.pop(0)
            if isinstance(argument, tuple):
                argument = torch.zeros(argument, dtype=rest.pop(0) or torch.float32, device=device)
            built.append(argument)
        if name == "conv2d":
            built[2:2] = [None, None]
        if name == "conv2d_act_max_pool2d":
            built[2:2] = [None]
        return built

    for device in (backend.device, "meta"):
        with pytest.raises(RuntimeError, match=says):
            getattr(_ops, name)(*tensors(device))
