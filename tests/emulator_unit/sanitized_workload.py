"""Run under the sanitizers by test_sanitized.py: every operator once or twice on odd shapes, against ATen."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

import fastcnn  # noqa: F401 - registers the operators
from fastcnn import _library

ops = torch.ops.fastcnn


def check(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-2, torch.bfloat16: 1e-1}
    atol = tolerance.get(ours.dtype, 0)
    torch.testing.assert_close(ours, theirs, rtol=atol, atol=atol, msg=lambda text: f"{name}: {text}")
    print(f"agrees: {name}")


def convolutions() -> None:
    cases = [
        # N C H W, K R S, stride, padding, dilation, groups, dtype, channels_last
        ((2, 3, 9, 7), (5, 3, 3), (1, 1), (1, 1), (1, 1), 1, torch.float32, False),
        ((1, 8, 11, 13), (12, 3, 2), (2, 1), (2, 0), (1, 2), 2, torch.float32, True),
        ((2, 6, 7, 9), (12, 3, 3), (1, 2), (1, 1), (1, 1), 6, torch.float32, False),
        ((1, 8, 8, 8), (8, 5, 5), (1, 1), (2, 2), (1, 1), 8, torch.bfloat16, True),
        ((1, 17, 6, 5), (33, 1, 1), (1, 1), (0, 0), (1, 1), 1, torch.float16, False),
        ((1, 4, 6, 6), (3, 3, 3), (2, 2), (1, 1), (1, 1), 1, torch.float64, True),
        ((2, 32, 8, 8), (64, 3, 3), (1, 1), (1, 1), (1, 1), 1, torch.float32, True),
        ((1, 8, 13, 12), (8, 3, 3), (1, 1), (2, 2), (2, 2), 8, torch.float16, False),
        ((1, 8, 12, 12), (8, 13, 13), (1, 1), (6, 6), (1, 1), 8, torch.float32, True),
        ((1, 16, 12, 11), (3, 7, 7), (1, 1), (3, 3), (1, 1), 1, torch.float16, True),
        ((2, 17, 7, 7), (12, 1, 1), (2, 2), (0, 0), (1, 1), 1, torch.float16, False),
    ]
    for (n, c, h, w), (k, r, s), stride, padding, dilation, groups, dtype, last in cases:
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(n, c, h, w).to(dtype=dtype, memory_format=layout)
        weight = (torch.randn(k, c // groups, r, s) / 4).to(dtype)
        bias = torch.randn(k).to(dtype)
        pads = (padding[0], padding[0], padding[1], padding[1])
        rest = (*stride, *pads, *dilation, groups)
        name = f"x {n}x{c}x{h}x{w} w {k}x{r}x{s} groups {groups} {dtype} channels_last={last}"
        y = ops.conv2d(x, weight, bias, None, *rest, "relu", 0.0, False)
        check(f"conv2d {name}", y, F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu())
        dy = torch.randn(y.shape).to(dtype=dtype, memory_format=layout)
        dx, dw, db = torch.ops.aten.convolution_backward(
            dy, x, weight, [k], stride, padding, dilation, False, [0, 0], groups, [True, True, True]
        )
        check(f"dgrad {name}", ops.conv2d_dgrad(dy, weight, h, w, *rest, last, False), dx)
        check(f"wgrad {name}", ops.conv2d_wgrad(dy, x, r, s, *rest, last, False), dw)
        check(f"bias gradient {name}", ops.conv2d_bias_grad(dy), db)


def pools() -> None:
    for last, dtype in ((False, torch.float32), (True, torch.float16), (True, torch.float64)):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(2, 5, 11, 13).to(dtype=dtype, memory_format=layout)
        window = (3, 2, 2, 1, 1, 1)
        name = f"channels_last={last} {dtype}"
        theirs, indices = F.max_pool2d(x, (3, 2), (2, 1), (1, 1), (1, 2), ceil_mode=True, return_indices=True)
        ours, found = ops.max_pool2d_with_indices(x, *window, 1, 2, True)
        check(f"max_pool2d {name}", ours, theirs)
        check(f"max_pool2d indices {name}", found, indices)
        check(f"max_pool2d alone {name}", ops.max_pool2d(x, *window, 1, 2, True), theirs)
        dy = torch.randn(theirs.shape).to(dtype=dtype, memory_format=layout)
        dx = torch.ops.aten.max_pool2d_with_indices_backward(
            dy, x, [3, 2], [2, 1], [1, 1], [1, 2], True, indices
        )
        _, offsets = ops.max_pool2d_with_offsets(x, *window, 1, 2, True)
        for which in (offsets, found):
            back = ops.max_pool2d_backward(dy, which, 11, 13, *window, 1, 2, True, last)
            check(f"max_pool2d backward {which.dtype} {name}", back, dx)
            picked = ops.max_pool2d_gather(x, which, *window, 1, 2, True)
            check(f"max_pool2d gather {which.dtype} {name}", picked, theirs)

        theirs = F.avg_pool2d(x, (3, 2), (2, 1), (1, 1), True, False)
        check(f"avg_pool2d {name}", ops.avg_pool2d(x, *window, True, False, 0), theirs)
        dy = torch.randn(theirs.shape).to(dtype=dtype, memory_format=layout)
        dx = torch.ops.aten.avg_pool2d_backward(dy, x, [3, 2], [2, 1], [1, 1], True, False, None)
        back = ops.avg_pool2d_backward(dy, 11, 13, *window, True, False, 0, last)
        check(f"avg_pool2d backward {name}", back, dx)

        theirs = F.adaptive_avg_pool2d(x, (4, 5))
        check(f"adaptive_avg_pool2d {name}", ops.adaptive_avg_pool2d(x, 4, 5), theirs)
        dy = torch.randn(theirs.shape).to(dtype=dtype, memory_format=layout)
        dx = torch.ops.aten._adaptive_avg_pool2d_backward(dy, x)
        back = ops.adaptive_avg_pool2d_backward(dy, 11, 13, last)
        check(f"adaptive_avg_pool2d backward {name}", back, dx)

        theirs, indices = F.adaptive_max_pool2d(x, (4, 5), return_indices=True)
        ours, found = ops.adaptive_max_pool2d(x, 4, 5)
        check(f"adaptive_max_pool2d {name}", ours, theirs)
        check(f"adaptive_max_pool2d indices {name}", found, indices)
        dx = torch.ops.aten.adaptive_max_pool2d_backward(dy, x, indices)
        back = ops.adaptive_max_pool2d_backward(dy, found, 11, 13, last)
        check(f"adaptive_max_pool2d backward {name}", back, dx)
        check(f"adaptive_max_pool2d gather {name}", ops.adaptive_max_pool2d_gather(x, found), theirs)


def device() -> None:
    """The emulated device itself, broken kernels included."""
    from tests.emulator import Variant, conformance, controls

    sanitized = controls(Variant.ASAN)
    for name in sanitized.self_tests():
        sanitized.run_self_test(name, False)
        try:
            sanitized.run_self_test(name, True)
        except RuntimeError:
            continue
        raise AssertionError(f"{name} was not refused")
    for name, words in conformance.cases().items():
        sanitized.run_instruction(name, words[:2])
    print("agrees: the emulated device")


def main() -> None:
    info = _library.build_info("emulated")
    assert info is not None, _library.load_error
    assert "/asan/" in info.path, info.path
    torch.manual_seed(0)
    with torch.inference_mode():
        {"convolutions": convolutions, "pools": pools, "device": device}[sys.argv[1]]()


if __name__ == "__main__":
    main()
