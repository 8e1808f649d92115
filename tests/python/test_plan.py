"""fastcnn.plan: what the planner says, and what the caller did wrong."""

from __future__ import annotations

import pytest
import torch

import fastcnn
from fastcnn import _library
from fastcnn.plan import _conv_problem

CONV = {"input": (32, 64, 56, 56), "weight": (128, 64, 3, 3), "padding": 1}
CALLS = {
    "conv2d_fprop": CONV,
    "conv2d_dgrad": {**CONV, "stride": 2, "channels_last": True},
    "conv2d_wgrad": {**CONV, "padding": (0, 1, 1, 0), "dtype": torch.bfloat16},
    "conv2d_act_max_pool2d": {**CONV, "channels_last": True},
    "max_pool2d": {"input": (8, 64, 56, 56), "kernel_size": 3, "stride": 2, "padding": 1},
    "max_pool2d_backward": {
        "input": (8, 64, 56, 56),
        "kernel_size": (2, 3),
        "dilation": 2,
        "ceil_mode": True,
    },
    "avg_pool2d": {"input": (8, 64, 56, 56), "kernel_size": 2},
    "avg_pool2d_backward": {"input": (8, 64, 56, 56), "kernel_size": 2, "dtype": torch.float64},
    "adaptive_avg_pool2d": {"input": (8, 64, 7, 7), "output_size": 1},
    "adaptive_avg_pool2d_backward": {"input": (8, 64, 7, 7), "output_size": (3, 2)},
    "adaptive_max_pool2d": {"input": (8, 64, 7, 7), "output_size": 4},
    "adaptive_max_pool2d_backward": {"input": (8, 64, 7, 7), "output_size": 1, "channels_last": True},
}


@pytest.mark.emulated
@pytest.mark.parametrize("chip", ["sm_80", "H100"])
@pytest.mark.parametrize("op", list(CALLS))
def test_every_operation_has_a_plan(emulated_library, op, chip):
    plan = fastcnn.plan(op, chip=chip, **CALLS[op])
    assert plan.op == op
    assert plan.kernel not in ("", "aten")
    assert plan.reason
    assert plan.grid >= 1
    assert 32 <= plan.threads <= 1024
    assert 0 <= plan.shared_bytes <= 227 * 1024
    assert plan.splits >= 1
    assert plan == fastcnn.plan(op, chip=chip, **CALLS[op])
    assert plan.kernel in str(plan)
    assert plan.reason in str(plan)


@pytest.mark.emulated
def test_depthwise_and_a_long_reduction_are_seen(emulated_library):
    depthwise = fastcnn.plan("conv2d_fprop", (8, 64, 28, 28), (64, 1, 3, 3), groups=64, chip="sm_80")
    assert "depthwise" in depthwise.kernel
    split = fastcnn.plan("conv2d_wgrad", (64, 16, 56, 56), (16, 16, 3, 3), padding=1, chip="sm_80")
    assert split.splits > 1
    assert split.workspace_bytes > 0


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("padding", "sides"), [("same", (1, 2, 3, 3)), ("valid", (0, 0, 0, 0)), (1, (1, 1, 1, 1))]
)
def test_padding_by_name(emulated_library, padding, sides):
    problem = {"input": (2, 8, 16, 16), "weight": (8, 8, 4, 3), "dilation": (1, 3), "chip": "sm_80"}
    named = fastcnn.plan("conv2d_fprop", **problem, padding=padding)
    assert named == fastcnn.plan("conv2d_fprop", **problem, padding=sides)
    assert _conv_problem("conv2d_fprop", problem["input"], problem["weight"], 1, padding, (1, 3)) == (
        _conv_problem("conv2d_fprop", problem["input"], problem["weight"], 1, sides, (1, 3))
    )


@pytest.mark.emulated
def test_unknown_chip(emulated_library):
    with pytest.raises(RuntimeError, match=r"chip.*'sm_20'"):
        fastcnn.plan("avg_pool2d", (1, 1, 4, 4), kernel_size=2, chip="sm_20")


def test_without_a_library_it_says_so(monkeypatch):
    monkeypatch.setattr(_library, "build_info", lambda: None)
    monkeypatch.setattr(_library, "load_error", "there was no nvcc")
    plan = fastcnn.plan("conv2d_fprop", **CONV)
    assert plan.kernel == "aten"
    assert "there was no nvcc" in str(plan)


@pytest.mark.parametrize(
    ("exception", "says", "op", "arguments"),
    [
        (ValueError, "op must be one of conv2d_fprop.*'conv'", "conv", CONV),
        (ValueError, "takes weight", "conv2d_fprop", {"input": (1, 1, 4, 4), "kernel_size": 3}),
        (ValueError, "takes kernel_size", "max_pool2d", {"input": (1, 1, 4, 4)}),
        (ValueError, "takes kernel_size.*got weight", "max_pool2d", {**CONV, "kernel_size": 3}),
        (ValueError, "got groups", "max_pool2d", {"input": (1, 1, 4, 4), "kernel_size": 2, "groups": 1}),
        (ValueError, "got dilation", "avg_pool2d", {"input": (1, 1, 4, 4), "kernel_size": 2, "dilation": 1}),
        (
            ValueError,
            "got stride",
            "adaptive_avg_pool2d",
            {"input": (1, 1, 4, 4), "output_size": 2, "stride": 1},
        ),
        (ValueError, "got ceil_mode", "conv2d_dgrad", {**CONV, "ceil_mode": False}),
        (RuntimeError, "strided", "conv2d_fprop", {**CONV, "padding": "same", "stride": 2}),
        (RuntimeError, "'full'", "conv2d_fprop", {**CONV, "padding": "full"}),
        (ValueError, "takes output_size", "adaptive_max_pool2d", {"input": (1, 1, 4, 4), "kernel_size": 2}),
        (ValueError, "four sizes", "max_pool2d", {"input": (4, 4), "kernel_size": 2}),
        (ValueError, "input must be the four sizes.*but is 3", "conv2d_fprop", {**CONV, "input": 3}),
        (ValueError, "weight must be the four sizes", "conv2d_fprop", {**CONV, "weight": "4333"}),
        (
            TypeError,
            "'input' must be an int, not float",
            "max_pool2d",
            {"input": (1, 1, 4.5, 4), "kernel_size": 2},
        ),
        (TypeError, "'groups' must be an int, not float", "conv2d_fprop", {**CONV, "groups": 1.0}),
        (ValueError, "torch.int8", "conv2d_fprop", {**CONV, "dtype": torch.int8}),
        (ValueError, "positive", "adaptive_avg_pool2d", {"input": (1, 1, 4, 4), "output_size": 0}),
        (RuntimeError, "32 channels", "conv2d_fprop", {**CONV, "weight": (8, 32, 3, 3)}),
        (
            RuntimeError,
            "output size is too small",
            "conv2d_act_max_pool2d",
            {"input": (1, 1, 3, 9), "weight": (1, 1, 2, 2), "stride": 2},
        ),
        (RuntimeError, "too small", "avg_pool2d", {"input": (1, 1, 4, 4), "kernel_size": 5}),
    ],
)
def test_wrong_problems(exception, says, op, arguments):
    with pytest.raises(exception, match=says):
        fastcnn.plan(op, **arguments)
