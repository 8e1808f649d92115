"""Every tile and load width of the generic convolution, at its edges, on the emulator.

The planner takes large tiles where they fill the chip, small ones where they do not; the tests tell it of
chips of other sizes.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.emulator import controls

pytestmark = pytest.mark.emulated

OPS = torch.ops.fastcnn
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def integers(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def launched() -> list[dict]:
    return controls().launches()


#: By the shared memory that two steps of the operands take.
TILES = {
    2 * depth * (rows + 4 + columns + 4) * 4: name
    for name, rows, columns, depth in (
        ("wide", 128, 128, 8),
        ("narrow", 128, 32, 16),
        ("small", 32, 32, 64),
        ("tiny", 16, 16, 128),
    )
}


def tile(launch: dict) -> str:
    """Of a launch with 4-byte sums."""
    return TILES[launch["shared_bytes"]]


def check(
    input_shape, weight_shape, dtype, layout, *, stride=1, padding=0, dilation=1, groups=1
) -> list[dict]:
    """All three passes against float64; gives the launches they made."""
    memory_format = LAYOUTS[layout]
    x = integers(*input_shape, dtype=dtype, seed=1).contiguous(memory_format=memory_format)
    w = integers(*weight_shape, dtype=dtype, seed=2).contiguous(memory_format=memory_format)
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    expected = F.conv2d(exact_x, exact_w, None, stride, padding, dilation, groups)
    dy = integers(*expected.shape, dtype=dtype, seed=3).contiguous(memory_format=memory_format)
    expected_dx, expected_dw = torch.autograd.grad(expected, (exact_x, exact_w), dy.double())

    controls().reset()
    geometry = (stride, stride, *(padding,) * 4, dilation, dilation, groups)
    nhwc = layout == "nhwc"
    y = OPS.conv2d(x, w, None, None, *geometry, "none", 0.0, False)
    dx = OPS.conv2d_dgrad(dy, w, *input_shape[2:], *geometry, nhwc, False)
    dw = OPS.conv2d_wgrad(dy, x, *weight_shape[2:], *geometry, nhwc, False)
    for got, want in ((y, expected), (dx, expected_dx), (dw, expected_dw)):
        assert torch.equal(got, want.to(dtype))
    return launched()


def vector(dtype: torch.dtype) -> int:
    return 16 // dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_wide_tiles_around_their_edges(chip, dtype, layout, extra):
    """128 rows and 128 columns, one less and one more; channels on and off the vector width."""
    chip(1)
    launches = check((1, 8, 1, 129 + extra), (128 + extra, 8, 1, 2), dtype, layout)
    # fprop has 127..129 columns: wide, but for float64, which has no wide tile.
    columns = 32 if dtype == torch.float64 else 128
    accumulator = 8 if dtype == torch.float64 else 4
    depth = 16 if columns == 32 else 8
    assert launches[0]["shared_bytes"] == 2 * depth * (128 + 4 + columns + 4) * accumulator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_channels_around_the_vector_width(chip, dtype, offset):
    """16-byte loads where channels come in whole vectors, single elements where they do not."""
    chip(132)
    channels = 2 * vector(dtype) + offset
    launches = check((2, channels, 5, 7), (2 * channels, channels, 3, 2), dtype, "nhwc", padding=1)
    for launch in launches[:2]:
        wide_loads = launch["global_loads"][16]
        assert (wide_loads > 0) == (offset == 0), launch


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "nchw"),
        (torch.float32, "nhwc"),
        (torch.float16, "nhwc"),
        (torch.bfloat16, "nhwc"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize(("extra", "channels"), [(-1, -1), (0, 0), (1, 1), (0, 16), (1, -16)])
@pytest.mark.parametrize(
    ("name", "sm_count", "edge", "depth"),
    [("small", 4, 32, 64), ("tiny", 132, 16, 128)],
    ids=["small", "tiny"],
)
def test_sliced_tiles_around_their_edges(chip, name, sm_count, edge, depth, extra, channels, layout, dtype):
    """Rows, columns and a step's depth, one less and one more; channels on and off the vector width."""
    chip(sm_count)
    size = edge + extra
    # Two taps: 1x1 in half precision has kernels of its own.
    channels += depth // 2
    launches = check((1, channels, 1, size + 1), (size, channels, 1, 2), dtype, layout)
    if name == "tiny" or extra == 1:
        assert tile(launches[0]) == name
        assert launches[0]["grid"][0] == (4 if extra == 1 else 1)
    assert {tile(launch) for launch in launches} <= {"small", "tiny"}
    assert len(launches) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [5, 8, 9, 63, 250])
@pytest.mark.parametrize("sm_count", [4, 132])
def test_slices_of_short_and_long_reductions(chip, sm_count, length, layout):
    """Slices without a share, with part of one, with several."""
    chip(sm_count)
    launches = check((1, length, 6, 6), (33, length, 1, 1), torch.float32, layout)
    assert tile(launches[0]) == ("small" if sm_count == 4 else "tiny")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "sm_count", "filters"), [("wide", 1, 68), ("narrow", 1, 33), ("small", 4, 36), ("tiny", 132, 20)]
)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_what_is_fused_on_every_tile(chip, name, sm_count, filters, activation, layout):
    """Bias, residual and activation; backward through it, and the bias gradient."""
    chip(sm_count)
    memory_format = LAYOUTS[layout]
    functions = {"relu": F.relu, "gelu": F.gelu}
    generator = torch.Generator().manual_seed(0)
    x, w, bias, residual, dy = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, 5, 7, 6), (filters, 5, 3, 3), (filters,), (1, filters, 7, 6), (1, filters, 7, 6))
    )
    x.requires_grad_(), w.requires_grad_(), bias.requires_grad_()
    z = F.conv2d(x, w, bias, padding=1) + residual
    y = functions[activation](z)
    expected = torch.autograd.grad(y, (x, w, bias), dy)

    def single(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().float()
        return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

    geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    controls().reset()
    got, preactivation = OPS.conv2d_with_preactivation(
        single(x), single(w), single(bias), single(residual), *geometry, activation, 0.0, False
    )
    assert tile(launched()[0]) == name
    saved = single(y if activation == "relu" else z)
    act, nhwc = (activation, 0.0), layout == "nhwc"
    dx = OPS.conv2d_act_dgrad(single(dy), saved, single(w), 7, 6, *geometry, *act, nhwc, False)
    dw, db = OPS.conv2d_act_wgrad(single(dy), saved, single(x), 3, 3, *geometry, *act, True, nhwc, False)
    for result, exact in ((got, y), (preactivation, z), *zip((dx, dw, db), expected, strict=True)):
        torch.testing.assert_close(result, exact.detach().float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("layout", "bias"), [("nchw", False), ("nhwc", True)], ids=["nchw", "nhwc-bias"])
@pytest.mark.parametrize(
    ("input_shape", "filters", "sm_count", "splits", "name"),
    [
        ((3, 8, 5, 5), 9, 132, 1, "tiny"),
        ((3, 8, 19, 23), 12, 132, 6, "tiny"),
        ((3, 8, 19, 23), 20, 132, 7, "small"),
        ((3, 8, 30, 41), 36, 132, 52, "wide"),
        ((3, 5, 25, 31), 36, 132, 17, "narrow"),
        ((2, 8, 25, 31), 36, 4, 1, "tiny"),
    ],
    ids=["image-5", "tiny", "small", "wide", "narrow", "few-sms"],
)
def test_wgrad_splits(chip, layout, input_shape, filters, sm_count, splits, name, bias):
    """One split writes the gradient itself, several go through the workspace; the last one may be short."""
    chip(sm_count)
    if not bias:
        launches = check(input_shape, (filters, input_shape[1], 3, 3), torch.float32, layout, padding=1)[2:]
    else:
        nhwc = layout == "nhwc"
        x = integers(*input_shape, dtype=torch.float32, seed=1).contiguous(memory_format=LAYOUTS[layout])
        dy = integers(input_shape[0], filters, *input_shape[2:], dtype=torch.float32, seed=2)
        dy = dy.contiguous(memory_format=LAYOUTS[layout])
        controls().reset()
        geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)
        dw, db = OPS.conv2d_act_wgrad(dy, None, x, 3, 3, *geometry, "none", 0.0, True, nhwc, False)
        launches = launched()
        assert torch.equal(db, dy.double().sum((0, 2, 3)).float())
        assert torch.equal(dw, OPS.conv2d_wgrad(dy, x, 3, 3, *geometry, nhwc, False))
    summed = ["conv2d::split_sum"] if splits > 1 else []
    assert [launch["name"] for launch in launches] == ["conv2d::generic_wgrad", *summed]
    assert tile(launches[0]) == name
    columns, edge = 9 * input_shape[1], {"wide": 128, "narrow": 32, "small": 32, "tiny": 16}[name]
    tiles = -(-columns // edge) * -(-filters // {"wide": 128, "narrow": 128}.get(name, edge))
    assert launches[0]["grid"][0] == tiles * splits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "options"),
    [
        ((1, 5, 9, 9), (70, 5, 3, 3), {"stride": 2, "padding": 2}),
        ((2, 16, 6, 5), (140, 16, 3, 3), {"padding": 2, "dilation": 2}),
        ((1, 12, 11, 4), (9, 4, 4, 1), {"stride": 3, "groups": 3}),
        ((2, 6, 14, 14), (32, 6, 3, 3), {}),
        ((1, 40, 3, 3), (200, 40, 3, 3), {"padding": 1}),
        ((1, 8, 2, 2), (8, 8, 5, 5), {"padding": 4}),
        ((2, 5, 9, 9), (6, 5, 1, 1), {"stride": 3}),
        ((1, 160, 4, 4), (160, 80, 1, 1), {"groups": 2}),
    ],
    ids=["c5-s2", "dilated", "grouped", "c6", "tiny-image", "pad-k-1", "stride-over-kernel", "wide-groups"],
)
@pytest.mark.parametrize("sm_count", [1, 4, 132])
def test_shapes_on_every_tile(chip, input_shape, weight_shape, options, layout, sm_count):
    chip(sm_count)
    check(input_shape, weight_shape, torch.float32, layout, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("sm_count", "shape", "filters", "used"),
    [
        (2, (2, 12, 12, 11), 72, {"wide", "narrow"}),
        (14, (1, 12, 17, 13), 64, {"small", "tiny"}),
        (132, (3, 12, 19, 23), 20, {"small", "tiny", "split"}),
        (132, (3, 12, 19, 23), 12, {"tiny", "split"}),
    ],
    ids=["large", "small", "split", "tiny-split"],
)
def test_thread_order_does_not_show(chip, sm_count, shape, filters, used, layout):
    """Six orders of threads and blocks, the same bits: every tile, several splits."""
    chip(sm_count)
    generator = torch.Generator().manual_seed(0)
    n, channels, *image = shape
    x = torch.randn(*shape, generator=generator).contiguous(memory_format=LAYOUTS[layout])
    w = torch.randn(filters, channels, 3, 3, generator=generator)
    dy = torch.randn(n, filters, *image, generator=generator)
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    seen = set()
    for seed in range(6):
        controls().reset()
        controls().set_seed(seed)
        results = (
            OPS.conv2d(x, w, None, None, *geometry, "tanh", 0.0, False),
            OPS.conv2d_dgrad(dy, w, *image, *geometry, False, False),
            OPS.conv2d_wgrad(dy, x, 3, 3, *geometry, False, False),
        )
        seen.add(tuple(result.numpy().tobytes() for result in results))
    assert len(seen) == 1
    assert {"split" if "split" in a["name"] else tile(a) for a in launched()} == used


@pytest.mark.parametrize(
    ("rows", "columns", "channels", "sm_count", "name"),
    [
        (128, 128, 16, 1, "wide"),
        (64, 32, 96, 1, "narrow"),
        (32, 32, 96, 1, "small"),
        (16, 16, 200, 1, "tiny"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_read_once_per_tile(chip, rows, columns, channels, sm_count, name, layout):
    """A 1x1 layer of one tile moves exactly its tensors."""
    chip(sm_count)
    launch = check((1, channels, 8, rows // 8), (columns, channels, 1, 1), torch.float32, layout)[0]
    assert (tile(launch), launch["grid"][0]) == (name, 1)
    assert launch["global_bytes_read"] == 4 * channels * (rows + columns)
    assert launch["global_bytes_written"] == 4 * rows * columns


@pytest.mark.parametrize(("edge", "slices"), [(32, 4), (16, 16)], ids=["small", "tiny"])
def test_slices_share_the_reduction(chip, edge, slices):
    """Each of the reduction's steps is read by one slice of 4 x 4 products a thread, the sums once by all."""
    chip(1)
    channels = 200
    launch = check((1, channels, 1, edge), (edge, channels, 1, 1), torch.float32, "nhwc")[0]
    threads, results = edge * edge // 16, edge * edge
    sums = 256 * slices if results // 256 == 1 else results // 4 * slices
    assert launch["shared_loads"] == channels * threads * 2 + sums


def channel_slice(tensor: torch.Tensor, memory_channels: int, first: int) -> torch.Tensor:
    """The same values as some channels of a wider NHWC tensor."""
    n, c, h, w = tensor.shape
    wide = torch.full((n, memory_channels, h, w), 99.0, dtype=tensor.dtype)
    view = wide.contiguous(memory_format=torch.channels_last)[:, first : first + c]
    return view.copy_(tensor)


@pytest.mark.parametrize(
    ("channels", "filters", "memory_channels", "first"),
    [(10, 12, 12, 0), (12, 10, 12, 0), (12, 12, 13, 0), (12, 12, 16, 1), (12, 12, 16, 2), (12, 12, 16, 4)],
    ids=["part-vector-c", "part-vector-k", "odd-stride", "off-by-4-bytes", "off-by-8-bytes", "aligned"],
)
def test_channel_slices(chip, channels, filters, memory_channels, first):
    """Vectors only where every pixel has whole, aligned ones; what lies beside the channels is not read."""
    chip(132)
    x = integers(2, channels, 5, 4, dtype=torch.float32, seed=1)
    w = integers(filters, channels, 3, 3, dtype=torch.float32, seed=2)
    dy = integers(2, filters, 5, 4, dtype=torch.float32, seed=3)
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)

    def results(x, w, dy):
        return (
            OPS.conv2d(x, w, None, None, *geometry, "none", 0.0, False),
            OPS.conv2d_dgrad(dy, w, 5, 4, *geometry, False, False),
            OPS.conv2d_wgrad(dy, x, 3, 3, *geometry, False, False),
        )

    plain = results(x, w, dy)
    controls().reset()
    sliced = results(*(channel_slice(t, memory_channels, first) for t in (x, w, dy)))
    assert all(torch.equal(a, b) for a, b in zip(plain, sliced, strict=True))
    aligned = channels % 4 == filters % 4 == memory_channels % 4 == first % 4 == 0
    if aligned:
        assert all(launch["global_loads"][16] > 0 for launch in launched())


def far_images(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, more than 2^31 elements from image to image; untouched pages cost nothing."""
    n, c, h, w = tensor.shape
    stride = 2**31 + 64
    memory = torch.empty((n - 1) * stride + c * h * w, dtype=tensor.dtype)
    view = memory.as_strided((n, c, h, w), (stride, h * w, w, 1))
    return view.copy_(tensor)


@pytest.mark.parametrize("channels", [4, 5], ids=["thin", "generic"])
def test_images_more_than_two_to_the_31_elements_apart(chip, channels):
    chip(132)
    x = integers(2, channels, 5, 4, dtype=torch.float16, seed=1)
    w = integers(3, channels, 3, 3, dtype=torch.float16, seed=2)
    dy = integers(2, 3, 5, 4, dtype=torch.float16, seed=3)
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    far_x, far_dy = far_images(x), far_images(dy)
    for near, far in (
        (
            OPS.conv2d(x, w, None, None, *geometry, "none", 0.0, False),
            OPS.conv2d(far_x, w, None, None, *geometry, "none", 0.0, False),
        ),
        (
            OPS.conv2d_dgrad(dy, w, 5, 4, *geometry, False, False),
            OPS.conv2d_dgrad(far_dy, w, 5, 4, *geometry, False, False),
        ),
        (
            OPS.conv2d_wgrad(dy, x, 3, 3, *geometry, False, False),
            OPS.conv2d_wgrad(far_dy, far_x, 3, 3, *geometry, False, False),
        ),
    ):
        assert torch.equal(near, far)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_tap_spoils_only_what_it_reaches(chip, stride):
    """A NaN in one weight stays out of the pixels that its tap never sees."""
    chip(132)
    w = torch.ones(1, 2, 3, 3)
    w[0, 0, 0, 1] = float("nan")
    dy = torch.ones(1, 1, 2, 2)
    size = 2 * stride + 1
    x = torch.zeros(1, 2, size, size, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, w, stride=stride, padding=1)[..., :2, :2], x, dy)
    full = torch.zeros(1, 1, *F.conv2d(x, w, stride=stride, padding=1).shape[2:])
    full[..., :2, :2] = dy
    dx = OPS.conv2d_dgrad(full, w, size, size, stride, stride, 1, 1, 1, 1, 1, 1, 1, False, False)
    assert dx.isnan().sum() >= expected.isnan().sum() > 0
    # A zero of `full` times the NaN is NaN too, but only where stride and tap meet.
    reached = torch.zeros(size, size, dtype=torch.bool)
    reached[stride - 1 :: stride, ::stride] = True
    assert not dx[0, 0][~reached].isnan().any()
    assert not dx[0, 1].isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("stride", "dilation", "kernel"),
    [(2, 1, 3), (2, 2, 3), (3, 2, 4), (4, 6, 3), (5, 1, 2), (6, 4, 5), (2, 3, 2)],
)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_phases_of_the_stride_share_a_launch(chip, layout, stride, dilation, kernel, extra):
    """Each phase runs over its own taps; together they read no tap twice and write every pixel."""
    chip(132)
    size = dilation * (kernel - 1) + 1 + 2 * stride + extra
    launches = check(
        (2, 8, size, size),
        (8, 8, kernel, kernel),
        torch.float32,
        layout,
        stride=stride,
        dilation=dilation,
        padding=extra + 1,
    )
    (dgrad,) = (launch for launch in launches if launch["name"] == "conv2d::generic_dgrad")
    rows = 2 * (-(-size // stride)) ** 2
    edge = {"narrow": 128, "small": 32, "tiny": 16}[tile(dgrad)]
    assert dgrad["grid"][0] == stride**2 * -(-rows // edge)
    assert dgrad["global_bytes_written"] == 4 * 2 * 8 * size**2


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "padding", "dilation"),
    [
        ((3, 5), (2, 3), (7, 2), (0, 2), (1, 1)),
        ((5, 2), (3, 2), (9, 8), (4, 0), (2, 3)),
        ((1, 1), (3, 3), (2, 3), (2, 2), (1, 2)),
        ((4, 7), (9, 1), (1, 3), (8, 0), (1, 5)),
        ((2, 33), (1, 2), (3, 32), (0, 1), (1, 20)),
        ((6, 6), (1, 1), (70000, 46341), (0, 0), (1, 1)),
        ((5, 5), (3, 3), (1000003, 1), (2, 1), (1, 1)),
        ((1, 1), (2, 2), (131071, 1), (131069, 0), (131069, 1)),
    ],
    ids=["over-the-image", "dilated", "one-pixel", "one-axis", "wide", "far", "far-tall", "far-dilated"],
)
def test_strides_larger_than_the_image(chip, image, kernel, stride, padding, dilation):
    """A phase for every pixel of the image, in one launch; most have no tap and are zero."""
    chip(132)
    x = torch.zeros(2, 3, *image, dtype=torch.float64, requires_grad=True)
    w = integers(4, 3, *kernel, dtype=torch.float32, seed=2)
    pad = tuple(
        max(p, -(-max(0, d * (k - 1) + 1 - s) // 2))
        for p, d, k, s in zip(padding, dilation, kernel, image, strict=True)
    )
    y = F.conv2d(x, w.double(), None, stride, pad, dilation)
    dy = integers(*y.shape, dtype=torch.float32, seed=3)
    (expected,) = torch.autograd.grad(y, x, dy.double())
    controls().reset()
    geometry = (*stride, pad[0], pad[0], pad[1], pad[1], *dilation, 1)
    dx = OPS.conv2d_dgrad(dy, w, *image, *geometry, False, False)
    assert torch.equal(dx, expected.float())
    assert len(launched()) == 1
    phases = min(stride[0], image[0]) * min(stride[1], image[1])
    pixels = 2 * -(-image[0] // stride[0]) * -(-image[1] // stride[1])
    assert launched()[0]["grid"][0] == phases * -(-pixels // 16)


def test_pointwise_weights_are_read_16_bytes_at_a_time(chip):
    """The strides of a 1x1 weight's last axes say nothing about its layout."""
    chip(132)
    x = integers(1, 32, 4, 4, dtype=torch.float32, seed=1).contiguous(memory_format=torch.channels_last)
    w = integers(32, 32, 1, 1, dtype=torch.float32, seed=2)
    assert w.stride() == (32, 1, 1, 1)
    controls().reset()
    y = OPS.conv2d(x, w, None, None, 1, 1, 0, 0, 0, 0, 1, 1, 1, "none", 0.0, False)
    assert torch.equal(y, F.conv2d(x, w))
    assert launched()[0]["global_loads"][4] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_channel_and_one_filter_is_depthwise(chip, layout):
    """A product of one column would waste 31 of 32."""
    chip(132)
    launches = check((2, 1, 9, 8), (1, 1, 3, 3), torch.float32, layout, padding=1)
    assert all("depthwise" in launch["name"] or "split_sum" in launch["name"] for launch in launches)


@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "groups"),
    [((1, 2), (2, 1), 2), ((1, 1), (2, 1), 1)],
    ids=["depthwise", "dense"],
)
def test_a_kernel_past_32_bits_is_refused(chip, input_shape, weight_shape, groups):
    x = torch.zeros(1, 1, 1, 1).expand(*input_shape, 65536, 65536)
    w = torch.zeros(1, 1, 1, 1).expand(*weight_shape, 65536, 65536)
    with pytest.raises(RuntimeError, match="more than kernels can index"):
        OPS.conv2d(x, w, None, None, 1, 1, 0, 0, 0, 0, 1, 1, groups, "none", 0.0, False)


def test_out_of_memory_says_so(chip):
    x = torch.zeros(1, 1, 1, 1).expand(1 << 20, 1, 64, 64)
    w = torch.zeros(1, 1, 1, 1).expand(1 << 20, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"out of memory: .* \[1048576, 1048576, 64, 64\]"):
        OPS.conv2d(x, w, None, None, 1, 1, 0, 0, 0, 0, 1, 1, 1, "none", 0.0, False)
