"""The pooling kernels: values, indices and gradients against ATen in float64, memory layout, special values,
determinism, errors, and (through a small program in the emulator) what lies below the operators."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastcnn.ops  # noqa: F401  (defines the operators)
from fastcnn._shapes import suggests_channels_last
from tests.emulator import EmulatorUnavailable, build_program

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Rounding of the result, and of a float32 sum before it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float64: 1e-14}
ops = torch.ops.fastcnn


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where our kernels run."""
    cuda = request.param == "cuda"
    request.getfixturevalue("kernels_on_cuda" if cuda else "emulated_on_cpu")
    return "cuda" if cuda else "cpu"


@dataclass(frozen=True)
class Pool:
    """A sliding pool's geometry on an image of `image` pixels."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def arguments(self) -> tuple[int, ...]:
        """As max_pool2d takes them."""
        return (*self.kernel, *self.stride, *self.pad, *self.dilation, self.ceil_mode)

    def windows_with_inputs(self, outputs: tuple[int, int]) -> torch.Tensor:
        """For each output, whether its window holds any place of the image."""
        sides = []
        for axis in (0, 1):
            start = torch.arange(outputs[axis])[:, None] * self.stride[axis] - self.pad[axis]
            places = start + torch.arange(self.kernel[axis]) * self.dilation[axis]
            sides.append(((places >= 0) & (places < self.image[axis])).any(1))
        return sides[0][:, None] & sides[1]

    def max_pool(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.max_pool2d(
            input, self.kernel, self.stride, self.pad, self.dilation, self.ceil_mode, return_indices=True
        )


SLIDING = (
    Pool((8, 6), (2, 2), (2, 2)),
    Pool((9, 7), (3, 3), (2, 2), (1, 1)),
    Pool((9, 7), (3, 3), (2, 2), (1, 1), ceil_mode=True),
    Pool((7, 11), (2, 3), (3, 4), (1, 1)),  # stride > kernel
    Pool((7, 10), (5, 4), (1, 2), (2, 2)),  # padding at its most
    Pool((5, 6), (2, 2), (5, 6), (1, 1), ceil_mode=True),  # one window, mostly padding
    Pool((1, 1), (1, 1), (1, 1)),
    Pool((1, 9), (1, 3), (1, 1), (0, 1)),  # a single row
    Pool((9, 1), (3, 1), (2, 1), (1, 0)),  # a single column
    Pool((6, 5), (6, 5), (1, 1)),  # the whole image
    Pool((4, 3), (9, 8), (9, 8), (4, 4), ceil_mode=True),  # a kernel larger than the padded image
    Pool((13, 12), (7, 7), (1, 1), (3, 3)),  # windows shared by threads
    Pool((19, 18), (17, 17), (3, 2), (8, 8)),  # windows of more than 256
)
DILATED = (
    Pool((9, 8), (2, 3), (1, 2), (1, 1), (2, 3)),
    Pool((11, 10), (3, 3), (2, 2), (1, 1), (3, 2), ceil_mode=True),
    Pool((10, 12), (3, 2), (3, 1), (1, 1), (2, 4)),
    Pool((14, 13), (6, 6), (1, 1), (3, 3), (2, 2)),  # shared by threads
    Pool((1, 5), (2, 2), (1, 1), (1, 1), (2, 2)),  # windows that step over the whole image
)
ADAPTIVE = (
    ((7, 7), (1, 1)),
    ((13, 11), (1, 1)),
    ((5, 4), (5, 4)),
    ((10, 7), (3, 5)),
    ((4, 3), (7, 9)),  # more outputs than inputs
    ((1, 8), (3, 3)),
    ((2, 2), (13, 12)),  # inputs in many windows
    ((12, 12), (5, 1)),
)
NAMED = {
    "2x2": SLIDING[0],
    "overlap": SLIDING[2],
    "whole": SLIDING[9],
    "shared": SLIDING[11],
    "dilated": DILATED[1],
}


def integers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Small whole numbers: sums of them are exact in every dtype, and maxima have ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with gaps between them in every direction."""
    n, c, h, w = tensor.shape
    view = torch.zeros(n, c + 1, h + 2, 2 * w, dtype=tensor.dtype)[:, 1:, 1 : h + 1, ::2]
    return view.copy_(tensor)


def some_channels(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as NHWC of one channel more, so that pixels do not start at whole vectors."""
    return channels_last(F.pad(tensor, (0, 0, 0, 0, 0, 1)))[:, :-1]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in W C N H order."""
    return tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


LAYOUTS = {
    "nchw": torch.Tensor.contiguous,
    "nhwc": channels_last,
    "some-channels": some_channels,
    "strided": strided,
    "transposed": transposed,
}


def assert_dense(tensor: torch.Tensor, nhwc: bool) -> None:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    assert tensor.stride() == torch.empty(tensor.shape, memory_format=layout).stride()


def assert_exact(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.cpu().double(), wanted.double(), rtol=0, atol=0, equal_nan=True)


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.cpu().double(), wanted.double(), rtol=tolerance, atol=tolerance)


def spread(grad: torch.Tensor, indices: torch.Tensor, image: tuple[int, int]) -> torch.Tensor:
    """The gradient of picking the `indices` of each plane. Places off the plane pick nothing."""
    inside = (indices >= 0) & (indices < image[0] * image[1])
    result = torch.zeros(*grad.shape[:2], image[0] * image[1], dtype=torch.float64)
    result.scatter_add_(2, (indices * inside).flatten(2), (grad.double() * inside).flatten(2))
    return result.view(*grad.shape[:2], *image)


def check_max_pool(pool: Pool, values: torch.Tensor, layout: str, device: str) -> None:
    """Forward in three index modes, backward from three kinds of index, and the double backward's pick."""
    wanted, flat = pool.max_pool(values.double())
    input = LAYOUTS[layout](values.to(device))
    nhwc = suggests_channels_last(input)
    arguments = pool.arguments

    plain = ops.max_pool2d(input, *arguments)
    with_offsets, offsets = ops.max_pool2d_with_offsets(input, *arguments)
    with_indices, indices = ops.max_pool2d_with_indices(input, *arguments)
    area = pool.kernel[0] * pool.kernel[1]
    assert offsets.dtype == (torch.uint8 if area <= 256 else torch.int32)
    assert indices.dtype == torch.int64
    for got in (plain, with_offsets, with_indices):
        assert got.dtype == input.dtype
        assert_exact(got, wanted)
    assert_exact(indices, flat)
    for got in (plain, offsets, indices):
        assert_dense(got, nhwc)

    # A window without a valid place picks nothing; torch says a place off the image, maybe in the next row.
    picked = torch.where(pool.windows_with_inputs(wanted.shape[2:]), flat, -1)
    grad = integers(*wanted.shape, dtype=values.dtype, seed=1)
    tangent = integers(*values.shape, dtype=values.dtype, seed=2)
    wanted_grad = spread(grad, picked, pool.image)
    wanted_pick = tangent.double().flatten(2).gather(2, picked.clamp(min=0).flatten(2)).view(wanted.shape)
    wanted_pick = wanted_pick * (picked >= 0)
    grad = LAYOUTS[layout](grad.to(device))
    tangent = LAYOUTS[layout](tangent.to(device))
    for kind, result_nhwc in itertools.product((offsets, indices, strided(indices)), (False, True)):
        got = ops.max_pool2d_backward(grad, kind, *pool.image, *arguments, result_nhwc)
        assert_exact(got, wanted_grad)
        assert_dense(got, result_nhwc)
        got = ops.max_pool2d_gather(tangent, kind, *arguments)
        assert_exact(got, wanted_pick)
        assert_dense(got, suggests_channels_last(tangent))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", (*SLIDING, *DILATED), ids=str)
def test_max_pool(pool: Pool, layout: str, device: str) -> None:
    for dtype, channels in ((torch.float32, 3), (torch.float16, 16)):
        check_max_pool(pool, integers(2, channels, *pool.image, dtype=dtype), layout, device)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", NAMED.values(), ids=NAMED)
def test_max_pool_of_every_dtype(pool: Pool, dtype: torch.dtype, layout: str, device: str) -> None:
    for channels in (8, 5):
        check_max_pool(pool, integers(1, channels, *pool.image, dtype=dtype), layout, device)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("pool", NAMED.values(), ids=NAMED)
def test_max_pool_of_nan_and_infinities(pool: Pool, layout: str, device: str) -> None:
    """A NaN wins and the last one is named; of nothing but -inf, the first place is named."""
    input = integers(2, 8, *pool.image)
    draw = torch.rand(input.shape, generator=torch.Generator().manual_seed(3))
    input[draw < 0.1] = float("nan")
    input[(draw > 0.1) & (draw < 0.5)] = -float("inf")
    input[draw > 0.95] = float("inf")
    check_max_pool(pool, input, layout, device)
    check_max_pool(pool, torch.full_like(input, -float("inf")), layout, device)
    check_max_pool(pool, torch.full_like(input, float("nan")), layout, device)


def test_backward_and_pick_ignore_indices_that_point_nowhere(device: str) -> None:
    for name, layout in itertools.product(NAMED, (torch.contiguous_format, torch.channels_last)):
        pool = NAMED[name]
        input = torch.ones(1, 8, *pool.image, device=device).contiguous(memory_format=layout)
        nhwc = layout == torch.channels_last
        grad = ops.max_pool2d(input, *pool.arguments)
        for index in (-1, -(2**62), 2**62, pool.image[0] * pool.image[1]):
            indices = torch.full_like(grad, index, dtype=torch.int64)
            assert not ops.max_pool2d_backward(grad, indices, *pool.image, *pool.arguments, nhwc).any()
            assert not ops.max_pool2d_gather(input, indices, *pool.arguments).any()
        offsets = torch.full_like(grad, 255, dtype=torch.uint8)
        assert not ops.max_pool2d_backward(grad, offsets, *pool.image, *pool.arguments, nhwc).any()
        assert not ops.max_pool2d_gather(input, offsets, *pool.arguments).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", SLIDING, ids=str)
def test_avg_pool(pool: Pool, layout: str, device: str) -> None:
    for include_pad, divisor in ((True, 0), (False, 0), (True, 7), (False, -2)):
        for dtype, channels in ((torch.float32, 3), (torch.float16, 16)):
            check_avg_pool(pool, include_pad, divisor, dtype, channels, layout, device)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [NAMED[name] for name in ("2x2", "overlap", "shared")], ids=str)
def test_avg_pool_of_every_dtype(pool: Pool, dtype: torch.dtype, layout: str, device: str) -> None:
    for channels in (8, 5):
        check_avg_pool(pool, False, 0, dtype, channels, layout, device)


def check_avg_pool(
    pool: Pool, include_pad: bool, divisor: int, dtype: torch.dtype, channels: int, layout: str, device: str
) -> None:
    values = integers(2, channels, *pool.image, dtype=dtype)
    input = LAYOUTS[layout](values.to(device))
    reference = values.double().requires_grad_()
    wanted = F.avg_pool2d(
        reference, pool.kernel, pool.stride, pool.pad, pool.ceil_mode, include_pad, divisor or None
    )
    arguments = (*pool.kernel, *pool.stride, *pool.pad, pool.ceil_mode, include_pad, divisor)
    got = ops.avg_pool2d(input, *arguments)
    assert_near(got, wanted.detach())
    assert_dense(got, suggests_channels_last(input))
    grad = integers(*wanted.shape, dtype=dtype, seed=1)
    (wanted_grad,) = torch.autograd.grad(wanted, reference, grad.double())
    grad = LAYOUTS[layout](grad.to(device))
    for nhwc in (False, True):
        got = ops.avg_pool2d_backward(grad, *pool.image, *arguments, nhwc)
        assert_near(got, wanted_grad)
        assert_dense(got, nhwc)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("image", "output"), ADAPTIVE, ids=str)
def test_adaptive_avg_pool(image: tuple[int, int], output: tuple[int, int], layout: str, device: str) -> None:
    for dtype, channels in itertools.product(DTYPES, (3, 8)):
        values = integers(2, channels, *image, dtype=dtype)
        input = LAYOUTS[layout](values.to(device))
        reference = values.double().requires_grad_()
        wanted = F.adaptive_avg_pool2d(reference, output)
        got = ops.adaptive_avg_pool2d(input, *output)
        assert_near(got, wanted.detach())
        assert_dense(got, suggests_channels_last(input))
        grad = integers(*wanted.shape, dtype=dtype, seed=1)
        (wanted_grad,) = torch.autograd.grad(wanted, reference, grad.double())
        grad = LAYOUTS[layout](grad.to(device))
        for nhwc in (False, True):
            got = ops.adaptive_avg_pool2d_backward(grad, *image, nhwc)
            assert_near(got, wanted_grad)
            assert_dense(got, nhwc)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("image", "output"), ADAPTIVE, ids=str)
def test_adaptive_max_pool(image: tuple[int, int], output: tuple[int, int], layout: str, device: str) -> None:
    for dtype, channels in itertools.product(DTYPES, (3, 8)):
        values = integers(2, channels, *image, dtype=dtype)
        if dtype == torch.float32:
            values[:, 1] = float("nan")
            values[:, 2] = -float("inf")
        input = LAYOUTS[layout](values.to(device))
        wanted, flat = F.adaptive_max_pool2d(values.double(), output, return_indices=True)
        got, indices = ops.adaptive_max_pool2d(input, *output)
        assert_exact(got, wanted)
        assert_exact(indices, flat)
        assert_dense(got, suggests_channels_last(input))
        assert_dense(indices, suggests_channels_last(input))
        grad = integers(*wanted.shape, dtype=dtype, seed=1)
        wanted_grad = spread(grad, flat, image)
        grad = LAYOUTS[layout](grad.to(device))
        for nhwc in (False, True):
            back = ops.adaptive_max_pool2d_backward(grad, indices, *image, nhwc)
            assert_exact(back, wanted_grad)
            assert_dense(back, nhwc)
        picked = ops.adaptive_max_pool2d_gather(input, indices)
        assert_exact(picked, wanted)
        assert_dense(picked, suggests_channels_last(input))


def test_expanded_gradients_are_read_in_place(device: str) -> None:
    """The gradient of a sum is one number seen through strides of 0."""
    pool = SLIDING[2]
    values = integers(2, 8, *pool.image)
    wanted, indices = pool.max_pool(values)
    grad = torch.ones((), device=device).expand(wanted.shape)
    got = ops.max_pool2d_backward(grad, indices.to(device), *pool.image, *pool.arguments, True)
    assert_exact(got, spread(torch.ones(wanted.shape), indices, pool.image))
    input = values.to(device)[:1].expand(3, -1, -1, -1)
    assert_exact(ops.max_pool2d(input, *pool.arguments), wanted[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_places_beyond_32_bits(dtype: torch.dtype, device: str) -> None:
    """Images 2^31 elements apart: on a CPU, in memory of which only the used pages come to exist."""
    apart = 2**31
    memory = torch.empty(apart + 64, dtype=dtype, device=device)
    values = integers(2, 2, 4, 4, dtype=dtype)
    for strides in ((apart, 16, 4, 1), (apart, 1, 8, 2)):
        input = memory.as_strided(values.shape, strides).copy_(values)
        assert_exact(ops.max_pool2d(input, *MAX), F.max_pool2d(values.double(), 2))
        got = ops.avg_pool2d_backward(input, 8, 8, *AVG, False)
        assert_exact(got, values.double().repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)


@pytest.mark.parametrize("nhwc", [False, True])
def test_same_bits_ten_times(nhwc: bool, device: str) -> None:
    """In the emulator, every launch draws another order of blocks and threads."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 5, 14, 13, generator=generator).to(device)
    grad = torch.randn(2, 5, 8, 7, generator=generator).to(device)
    input = channels_last(input) if nhwc else input
    window = (7, 7, 1, 1, 0, 0)

    def run() -> tuple[torch.Tensor, ...]:
        _, indices = ops.max_pool2d_with_indices(input, *window, 1, 1, False)
        return (
            indices,
            ops.max_pool2d_backward(grad, indices, 14, 13, *window, 1, 1, False, nhwc),
            ops.avg_pool2d(input, *window, False, True, 0),
            ops.avg_pool2d_backward(grad, 14, 13, *window, False, True, 0, nhwc),
            ops.adaptive_avg_pool2d(input, 1, 1),
            ops.adaptive_avg_pool2d_backward(grad, 2, 2, nhwc),
        )

    first = run()
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("nhwc", [False, True])
def test_empty_batches_and_empty_outputs(nhwc: bool, device: str) -> None:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    empty = torch.empty(0, 3, 4, 4, memory_format=layout, device=device)
    assert ops.max_pool2d(empty, *MAX).shape == (0, 3, 2, 2)
    output, indices = ops.max_pool2d_with_indices(empty, *MAX)
    assert ops.max_pool2d_backward(output, indices, 4, 4, *MAX, nhwc).shape == (0, 3, 4, 4)
    assert ops.avg_pool2d(empty, *AVG).shape == (0, 3, 2, 2)
    assert ops.adaptive_avg_pool2d(empty, 1, 1).shape == (0, 3, 1, 1)
    # An adaptive pool may be asked for no outputs at all; nothing then flows back.
    full = torch.ones(2, 3, 5, 5, device=device).contiguous(memory_format=layout)
    output, indices = ops.adaptive_max_pool2d(full, 0, 2)
    assert output.shape == indices.shape == (2, 3, 0, 2)
    for back in (
        ops.adaptive_max_pool2d_backward(output, indices, 5, 5, nhwc),
        ops.adaptive_avg_pool2d_backward(ops.adaptive_avg_pool2d(full, 0, 2), 5, 5, nhwc),
    ):
        assert_exact(back, torch.zeros(2, 3, 5, 5))


def test_padding_up_to_half_of_a_dilated_kernel(device: str) -> None:
    """Torch allows half of the kernel, however far its dilation reaches, and so do the kernels."""
    values = integers(2, 3, 7, 6)
    with pytest.raises(RuntimeError, match="half of kernel size"):
        F.max_pool2d(values, 3, 2, 2, 2)
    with pytest.raises(RuntimeError, match="at most half of the kernel size"):
        ops.max_pool2d_with_indices(values.to(device), 3, 3, 2, 2, 2, 2, 2, 2, False)


MAX = (2, 2, 2, 2, 0, 0, 1, 1, False)
AVG = (2, 2, 2, 2, 0, 0, False, True, 0)
IMAGE = torch.zeros(1, 2, 4, 4)
POOLED = torch.zeros(1, 2, 2, 2)
OFFSETS = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
WRONG = {
    "3-d": (ops.max_pool2d, (IMAGE[0], *MAX), "input must have 4 dimensions"),
    "integer": (ops.max_pool2d, (IMAGE.int(), *MAX), "input must be float32, float16, bfloat16 or float64"),
    "no channels": (ops.max_pool2d, (IMAGE[:, :0], *MAX), "only the batch of input may be empty"),
    "no rows": (ops.adaptive_avg_pool2d, (IMAGE[:, :, :0], 1, 1), "only the batch of input may be empty"),
    "kernel 0": (
        ops.max_pool2d,
        (IMAGE, 0, *MAX[1:]),
        r"kernel_size must be greater than zero, but is \(0, 2\)",
    ),
    "stride 0": (ops.avg_pool2d, (IMAGE, 2, 2, 2, 0, *AVG[4:]), r"stride must be .* but is \(2, 0\)"),
    "dilation 0": (ops.max_pool2d, (IMAGE, *MAX[:6], 0, 1, False), r"dilation must be .* but is \(0, 1\)"),
    "pad < 0": (
        ops.max_pool2d,
        (IMAGE, *MAX[:4], -1, 0, 1, 1, False),
        r"padding must be non-negative.*\(-1, 0\)",
    ),
    "pad > half": (
        ops.avg_pool2d,
        (IMAGE, *AVG[:4], 0, 2, *AVG[6:]),
        r"at most half of .*but padding is \(0, 2\)",
    ),
    "too small": (ops.max_pool2d, (IMAGE, 5, 2, *MAX[2:]), r"output size is too small: .* gives \(0 x 2\)"),
    "huge stride": (
        ops.max_pool2d,
        (IMAGE, 2, 2, 2**40, 1, *MAX[4:]),
        "stride.* may each be at most 536870912",
    ),
    "huge window": (
        ops.max_pool2d_with_offsets,
        (IMAGE, 2**16, 2**16, 1, 1, 2**15, 2**15, 1, 1, False),
        "too large for offsets in the window",
    ),
    "grad size": (ops.max_pool2d_backward, (POOLED, OFFSETS, 4, 6, *MAX, False), r"give \[1, 2, 2, 3\]"),
    "index size": (
        ops.max_pool2d_backward,
        (POOLED, OFFSETS[:, :1], 4, 4, *MAX, False),
        r"indices have size \[1, 1, 2, 2\]",
    ),
    "index dtype": (
        ops.max_pool2d_gather,
        (IMAGE, OFFSETS.int(), *MAX),
        r"indices must be int64 or, for kernel_size \(2, 2\), uint8",
    ),
    "adaptive index dtype": (
        ops.adaptive_max_pool2d_backward,
        (POOLED, OFFSETS, 4, 4, False),
        "indices must be int64",
    ),
    "output size": (ops.adaptive_avg_pool2d, (IMAGE, -1, 2), r"output_size must be .* but are \(-1, 2\)"),
    "backward size": (
        ops.adaptive_avg_pool2d_backward,
        (POOLED, 0, 4, False),
        "height and width must be positive",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument(case: str, device: str) -> None:
    op, arguments, message = WRONG[case]
    arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=message) as raised:
        op(*arguments)
    assert re.match(rf"{op.__name__}\(\): ", str(raised.value))


@pytest.fixture(scope="module")
def program() -> Path:
    sources = [
        path for path in sorted((ROOT / "csrc" / "pool2d").iterdir()) if path.suffix in (".cu", ".cpp")
    ]
    try:
        return build_program([Path(__file__).with_name("pool2d_program.cpp"), *sources])
    except EmulatorUnavailable as reason:
        pytest.skip(f"the emulator cannot be built: {reason}")


@pytest.mark.emulated
@pytest.mark.parametrize("check", ("axes", "alignment", "boxes", "bytes", "plans", "seeds"))
def test_below_the_operators(program: Path, check: str) -> None:
    result = subprocess.run([program, check], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
