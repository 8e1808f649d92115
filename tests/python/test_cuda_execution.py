"""What only a GPU can show: graphs, streams, several devices, the same bits again, 2^31 elements and more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn import functional, models

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("kernels_on_cuda")]

GIGABYTE = 1 << 30
SHAPE = (4, 8, 12, 10)
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "conv2d": lambda x, w, b: functional.conv2d(x, w, b, padding=1, activation="relu"),
    "conv2d-depthwise": lambda x, w, b: functional.conv2d(x, w[:8, :1], b[:8], stride=2, groups=8),
    "max_pool2d": lambda x, w, b: functional.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x, w, b: functional.avg_pool2d(x, 3, 2, 1),
    "adaptive_max_pool2d": lambda x, w, b: functional.adaptive_max_pool2d(x, 3),
    "adaptive_avg_pool2d": lambda x, w, b: functional.adaptive_avg_pool2d(x, 3),
}
calls = pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def operands(device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Input, weight and bias, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (SHAPE, (16, SHAPE[1], 3, 3), (16,))
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def forward_and_backward(call, leaves: list[Tensor]) -> list[Tensor]:
    """The value, and the gradient of its squares' sum by every leaf that it depends on."""
    value = call(*leaves)
    grads = torch.autograd.grad(value.square().sum(), leaves, allow_unused=True)
    return [value.detach(), *(grad for grad in grads if grad is not None)]


def assert_same_bits(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@calls
@dtypes
def test_a_captured_graph_replays_on_new_input(call, dtype):
    static = operands("cuda", dtype, seed=0)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        forward_and_backward(call, static)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(call, static)
    for seed in (1, 2):
        fresh = operands("cuda", dtype, seed)
        with torch.no_grad():
            for to, of in zip(static, fresh, strict=True):
                to.copy_(of)
        graph.replay()
        assert_same_bits(captured, forward_and_backward(call, fresh))


@calls
def test_the_current_stream_is_used(call):
    fresh = operands("cuda", torch.float32, seed=1)
    expected = forward_and_backward(call, fresh)
    late = [torch.zeros_like(leaf).requires_grad_() for leaf in fresh]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # A kernel on any other stream would run during the sleep, and read zeros.
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for to, of in zip(late, fresh, strict=True):
                to.copy_(of)
        got = forward_and_backward(call, late)
    stream.synchronize()
    assert_same_bits(got, expected)


@calls
def test_a_device_that_is_not_the_current_one(call):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    with torch.cuda.device(0):
        got = forward_and_backward(call, operands("cuda:1", torch.float32, seed=0))
        assert torch.cuda.current_device() == 0
    assert {str(tensor.device) for tensor in got} == {"cuda:1"}
    exact = forward_and_backward(call, operands("cpu", torch.float64, seed=0))
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-4, atol=1e-4)


@calls
@dtypes
def test_ten_runs_give_the_same_bits(call, dtype):
    first = forward_and_backward(call, operands("cuda", dtype, seed=0))
    for _ in range(9):
        assert_same_bits(forward_and_backward(call, operands("cuda", dtype, seed=0)), first)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_long_reduction_gives_the_same_bits(dtype):
    """The weight's gradient over many pixels, whose sum is split over blocks."""
    generator = torch.Generator("cuda").manual_seed(0)
    image = torch.randn(64, 16, 56, 56, generator=generator, device="cuda").to(dtype)
    weight = torch.randn(16, 16, 3, 3, generator=generator, device="cuda").to(dtype).requires_grad_()
    bias = torch.zeros(16, device="cuda", dtype=dtype, requires_grad=True)
    along = torch.randn(64, 16, 54, 54, generator=generator, device="cuda").to(dtype)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(functional.conv2d(image, weight, bias), (weight, bias), along))

    first = gradients()
    for _ in range(9):
        assert_same_bits(gradients(), first)


@pytest.mark.slow
def test_compile_with_cuda_graphs():
    pytest.importorskip("triton", reason="torch.compile needs triton on a GPU")
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = models.small_cnn(4, image_size=22).cuda()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def step(network, images) -> list[Tensor]:
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        output = network(images)
        output.square().sum().backward()
        return [output.detach().clone(), *(p.grad.clone() for p in model.parameters())]

    for _ in range(4):  # warm-up, recording, two replays
        images = torch.randn(2, 1, 22, 22, device="cuda")
        for got, expected in zip(step(compiled, images), step(model, images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.fixture
def large_image() -> Tensor:
    """Whole numbers in float16, more than 2^31 of them: sums of their products stay exact."""
    torch.cuda.empty_cache()  # what an earlier test used and let go counts as free
    if torch.cuda.mem_get_info()[0] < 24 * GIGABYTE:
        pytest.skip("needs 24 GB of free GPU memory")
    image = torch.randint(-3, 4, (33, 64, 1024, 1024), dtype=torch.float16, device="cuda")
    assert image.numel() > 2**31
    return image.requires_grad_()


def last_image_alone(call, image: Tensor, along: Tensor) -> list[Tensor]:
    """Value and gradient of torch's own operator on a copy of the last image, in float32."""
    alone = image.detach()[-1:].float().requires_grad_()
    value = call(alone)
    return [value.detach(), *torch.autograd.grad(value, alone, along[-1:].float())]


def assert_last_image(value: Tensor, grad: Tensor, expected: list[Tensor]) -> None:
    assert torch.equal(value.detach()[-1:].float(), expected[0])
    assert torch.equal(grad[-1:].float(), expected[1])


@pytest.mark.slow
def test_max_pool2d_beyond_two_to_the_31(large_image):
    value = functional.max_pool2d(large_image, 2)
    along = torch.randint_like(value, -3, 4)
    (grad,) = torch.autograd.grad(value, large_image, along)
    expected = last_image_alone(lambda x: F.max_pool2d(x, 2), large_image, along)
    assert_last_image(value, grad, expected)


@pytest.mark.slow
def test_conv2d_beyond_two_to_the_31(large_image):
    weight = torch.randint(-3, 4, (64, 64, 1, 1), device="cuda").half()
    value = functional.conv2d(large_image, weight)
    along = torch.randint_like(value, -3, 4)
    (grad,) = torch.autograd.grad(value, large_image, along)
    expected = last_image_alone(lambda x: F.conv2d(x, weight.float()), large_image, along)
    assert_last_image(value, grad, expected)
