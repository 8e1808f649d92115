"""compile, export, tracing, autocast, torch.func and forward mode, as users of PyTorch expect them."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn import functional
from fastcnn import nn as fnn

_ops = torch.ops.fastcnn


def every_layer(device: str) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        fnn.Conv2d(3, 4, 3, padding="same"),
        fnn.MaxPool2d(2),
        fnn.ConvAct2d(4, 4, 3, padding=1, groups=4, activation="tanh"),
        fnn.ConvActPool2d(4, 4, 2, padding=(2, 3), activation="sigmoid"),
        fnn.AvgPool2d(3, 1, 1),
        fnn.AdaptiveMaxPool2d((3, 2)),
        fnn.AdaptiveAvgPool2d(1),
    ).to(device)


def gradients(model, call, input):
    model.zero_grad()
    output = call(input)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_compile_with_backward(backend, layout):
    torch._dynamo.reset()
    model = every_layer(backend.device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    input = torch.randn(2, 3, 8, 6, device=backend.device).to(memory_format=layout)
    assert_same(gradients(model, compiled, input), gradients(model, model, input))
    with torch.no_grad():
        torch.testing.assert_close(compiled(input), model(input))


@pytest.mark.slow
def test_compile_with_inductor(operators_on_cpu):
    torch._dynamo.reset()
    model = every_layer("cpu")
    input = torch.randn(2, 3, 8, 6)
    # What makes its kernels fast takes its C++ compiler most of the time, and is not looked at here.
    plain = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    compiled = torch.compile(model, fullgraph=True, options=plain)
    assert_same(gradients(model, compiled, input), gradients(model, model, input))


def test_compile_with_dynamic_batch(backend):
    torch._dynamo.reset()
    model = every_layer(backend.device)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for batch, height in ((2, 8), (3, 9), (5, 10)):
        input = torch.randn(batch, 3, height, 6, device=backend.device)
        assert_same(gradients(model, compiled, input), gradients(model, model, input))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_backward(backend, strict):
    model = every_layer(backend.device)
    input = torch.randn(2, 3, 8, 6, device=backend.device)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (input,), dynamic_shapes=({0: batch},), strict=strict).module()
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {"fastcnn.conv2d.default", "fastcnn.avg_pool2d.default"} <= targets
    for size in (2, 3):
        input = torch.randn(size, 3, 8, 6, device=backend.device)
        exported.zero_grad()
        assert_same(gradients(exported, exported, input), gradients(model, model, input))


def test_an_exported_program_runs_on_aten(operators_on_cpu):
    model = every_layer("cpu")
    input = torch.randn(2, 3, 8, 6)
    exported = torch.export.export(model, (input,)).module()
    torch.testing.assert_close(exported(input), model(input))


def test_symbolic_trace_and_jit_trace(backend):
    model = every_layer(backend.device)
    input = torch.randn(2, 3, 8, 6, device=backend.device)
    traced = torch.fx.symbolic_trace(model)
    assert functional.conv2d in {node.target for node in traced.graph.nodes}
    assert torch.equal(traced(input), model(input))
    scripted = torch.jit.trace(model, input)
    assert torch.equal(scripted(input), model(input))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, dtype):
    model = every_layer(backend.device)
    input = torch.randn(2, 3, 8, 6, device=backend.device)
    low = model[0].weight.to(dtype)
    with torch.autocast(backend.device, dtype=dtype):
        output = model[0](input)
        assert output.dtype == dtype
        assert functional.max_pool2d(input, 2).dtype == torch.float32
        assert functional.avg_pool2d(output, 2).dtype == dtype
        with torch.no_grad():
            raw = _ops.conv2d(
                input, model[0].weight, model[0].bias, None, 1, 1, 1, 1, 1, 1, 1, 1, 1, "none", 0.0, False
            )
            assert torch.equal(raw, output)
        double = functional.conv2d(input.double(), model[0].weight.double())
        assert double.dtype == torch.float64
    expected = functional.conv2d(input.to(dtype), low, model[0].bias.to(dtype), padding=1)
    assert torch.equal(output, expected)
    output.float().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
    assert model[0].bias.grad.dtype == torch.float32


def test_autocast_under_compile(backend):
    torch._dynamo.reset()
    model = fnn.Conv2d(3, 4, 3).to(backend.device)
    input = torch.randn(2, 3, 6, 6, device=backend.device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(backend.device, dtype=dtype):
            output = compiled(input)
            assert output.dtype == dtype
            assert torch.equal(output, model(input))
        (weight_grad,) = torch.autograd.grad(output.float().sum(), model.weight)
        assert weight_grad.dtype == torch.float32


CALLS = {
    "conv2d": lambda x: functional.conv2d(x, torch.ones(1, x.shape[1], 2, 2, device=x.device)),
    "conv2d_act_max_pool2d": lambda x: functional.conv2d_act_max_pool2d(
        x, torch.ones(1, x.shape[1], 2, 2, device=x.device)
    ),
    "max_pool2d": lambda x: functional.max_pool2d(x, 2),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: functional.adaptive_max_pool2d(x, 2),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_forward_mode_raises(backend, name):
    input = torch.randn(1, 2, 4, 4, device=backend.device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, torch.ones_like(input))
        with pytest.raises(NotImplementedError, match=f"{name}.*forward-mode"):
            CALLS[name](dual)
        CALLS[name](input)  # no tangent, nothing to lose
    leaf = input.clone().requires_grad_()
    output = CALLS[name](leaf)
    with forward_ad.dual_level():
        along = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(output, leaf, along)


def test_func_transforms_are_torchs(backend):
    input, weight = (torch.randn(shape, device=backend.device) for shape in ((3, 2, 5, 5), (4, 2, 3, 3)))

    def loss(module):
        return lambda w, x: module.conv2d(x[None], w).square().sum()

    def per_sample(module):
        return vmap(grad(loss(module)), (None, 0))(weight, input)

    torch.testing.assert_close(per_sample(functional), per_sample(F))
    tangent = torch.ones_like(input)
    got = jvp(lambda x: functional.conv2d(x, weight), (input,), (tangent,))[1]
    torch.testing.assert_close(got, F.conv2d(tangent, weight))


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_read_at_each_call(monkeypatch, allowed):
    """On fake CUDA tensors, so without a GPU: the operator gets what torch's switch says at that moment."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is _ops.conv2d.default:
                seen.append(args[-1])
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(functional, "KERNEL_DEVICES", {"cuda"})
    with FakeTensorMode(), Watch(), torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        image, weight = torch.empty(1, 2, 4, 4, device="cuda"), torch.empty(2, 2, 3, 3, device="cuda")
        functional.conv2d(image, weight)
        functional.conv2d(image, weight.requires_grad_())
    assert seen == [allowed, allowed]


def test_checkpointing_and_saved_tensor_hooks(backend):
    model = every_layer(backend.device)
    input = torch.randn(2, 3, 8, 6, device=backend.device)
    expected = gradients(model, model, input)

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    assert_same(gradients(model, checkpointed, input), expected)
    with torch.autograd.graph.save_on_cpu():
        assert_same(gradients(model, model, input), expected)


def test_inference_mode(backend):
    model = every_layer(backend.device)
    input = torch.randn(2, 3, 8, 6, device=backend.device)
    with torch.inference_mode():
        output = model(input)
    assert output.is_inference()
    torch.testing.assert_close(output.clone(), model(input).detach())
