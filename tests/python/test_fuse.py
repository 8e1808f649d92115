"""convert(fuse=True): what is fused computes what it computed, and what cannot be proved is left alone."""

from __future__ import annotations

import copy
import operator
import pickle
import random
from collections import Counter, OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fastcnn
from fastcnn import nn as fnn
from fastcnn._fusion.layers import ConvAddAct2d
from fastcnn.testing import assert_accurate


def norm(channels: int, **options) -> nn.BatchNorm2d:
    """A BatchNorm for which folding matters."""
    module = nn.BatchNorm2d(channels, **options).eval()
    with torch.no_grad():
        if module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
        if module.affine:
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
    return module


def settle(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model.eval()


def fuse(model: nn.Module):
    """The fused model, its report, and the model as it was."""
    before = copy.deepcopy(model)
    fused, report = fastcnn.convert(model, fuse=True, report=True)
    return fused, report, before


def same(fused: nn.Module, before: nn.Module, *inputs: torch.Tensor) -> None:
    """Held to the float64 result of the model as it was."""
    with torch.no_grad():
        torchs = before(*inputs)
        exact = copy.deepcopy(before).double()(*(input.double() for input in inputs))
        assert_accurate(fused(*inputs), exact, torchs)


def parts(report) -> list[str]:
    return [" + ".join(fused.parts) for fused in report.fused]


def reasons(report) -> str:
    return "\n".join(f"{left.name}: {left.reason}" for left in report.unfused)


class Block(nn.Module):
    """A residual block that uses one ReLU twice, as torchvision's do."""

    def __init__(self, channels: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), norm(channels))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Code(nn.Module):
    """A convolution, a norm and what else a test needs, in code that the test writes."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = norm(3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.code = forward
        self.eval()

    def forward(self, x):
        return self.code(self, x)


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 6, 5)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Whole networks


def network(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):  # torchvision's own initialisation takes long
        model = getattr(models, name)(num_classes=10, **options)
    if name == "vgg16_bn":
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1).mul_((3 / parameter[0].numel()) ** 0.5)
    return settle(model)


#: The sites by activation and residual, the modules rebuilt, the BatchNorms left, the sites with a pool.
NETWORKS = {
    "resnet50": ({("relu", False): 33, ("relu", True): 16, ("none", False): 4}, 16, 0, 0),
    "mobilenet_v3_large": (
        {("hardswish", False): 20, ("relu", False): 19, ("none", True): 10, ("none", False): 5},
        10,
        0,
        0,
    ),
    # norm1 stands before its convolution: one in each of 58 layers, 3 transitions and the end.
    "densenet121": ({("relu", False): 59}, 0, 62, 0),
    "googlenet": ({("relu", False): 57}, 57, 0, 0),
    "vgg16_bn": ({("relu", False): 13}, 0, 0, 5),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_torchvision_models(name, aten_on_cpu):
    model = network(name)
    kind = type(model)
    fused, report, before = fuse(model)
    sites, rebuilt, norms, pooled = NETWORKS[name]
    assert Counter((f.activation, f.residual) for f in report.fused) == sites
    assert sum(f.after is fnn.ConvActPool2d for f in report.fused) == pooled
    assert report.unfused == []
    assert len(report.rebuilt) == rebuilt
    assert fused is model
    assert type(fused) is kind
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == norms
    same(fused, before, picture(1, 3, 64, 64))


# What is fused


def test_by_our_kernels(backend):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), norm(4), nn.ReLU(), Block(), Block(stride=2)).eval()
    model = model.to(backend.device)
    fused, report, before = fuse(model)
    assert parts(report) == [
        "0 + 1 + 2",
        "3.conv1 + 3.bn1 + 3.relu",
        "3.conv2 + 3.bn2 + add + 3.relu",
        "4.conv1 + 4.bn1 + 4.relu",
        "4.conv2 + 4.bn2 + add + 4.relu",
        "4.downsample.0 + 4.downsample.1",
    ]
    assert [rebuilt.name for rebuilt in report.rebuilt] == ["3", "4"]
    assert type(fused) is nn.Sequential
    assert [type(module) for module in fused][:3] == [fnn.ConvAct2d, nn.Identity, nn.Identity]
    assert type(fused[4].downsample[0]) is fnn.Conv2d
    same(fused, before, picture(2, 3, 9, 8).to(backend.device))


MODULES = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (nn.SiLU(inplace=True), "silu"),
    (nn.GELU(), "gelu"),
    (nn.Hardswish(), "hardswish"),
    (nn.LeakyReLU(0.2), "leaky_relu"),
    (nn.ReLU6(), None),
    (nn.GELU("tanh"), None),
    (nn.LeakyReLU(-0.1), None),
    (nn.Hardsigmoid(), None),
]


@pytest.mark.parametrize(("activation", "name"), MODULES)
def test_activation_modules(activation, name):
    fused, report, before = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), activation).eval())
    assert parts(report) == ["0 + 1" if name is None else "0 + 1 + 2"]
    assert type(fused[0]) is (fnn.Conv2d if name is None else fnn.ConvAct2d)
    assert type(fused[2]) is (type(activation) if name is None else nn.Identity)
    assert report.fused[0].activation == (name or "none")
    assert report.rebuilt == []
    same(fused, before, picture())


FUNCTIONS = [
    (F.relu, "relu"),
    (torch.relu, "relu"),
    (torch.relu_, "relu"),
    (lambda x: F.relu(x, inplace=True), "relu"),
    (lambda x: F.relu(x, True), "relu"),
    (lambda x: x.relu(), "relu"),
    (lambda x: x.relu_(), "relu"),
    (torch.sigmoid, "sigmoid"),
    (lambda x: x.sigmoid(), "sigmoid"),
    (torch.tanh, "tanh"),
    (F.silu, "silu"),
    (F.gelu, "gelu"),
    (lambda x: F.gelu(x, approximate="tanh"), None),
    (F.hardswish, "hardswish"),
    (lambda x: F.leaky_relu(x, 0.3), "leaky_relu"),
    (lambda x: F.leaky_relu(x, negative_slope=0.3, inplace=True), "leaky_relu"),
    (lambda x: F.leaky_relu(x, -0.3), None),
    (lambda x: F.relu6(x), None),
    (lambda x: F.elu(x), None),
]


@pytest.mark.parametrize(("function", "name"), FUNCTIONS)
def test_activation_functions(function, name):
    fused, report, before = fuse(Code(lambda self, x: function(self.bn(self.conv(x)))))
    assert parts(report) == ["conv + bn" if name is None else f"conv + bn + {name}"]
    assert isinstance(fused, torch.fx.GraphModule) is (name is not None)
    assert set(fused.state_dict()) == {"conv.weight", "conv.bias"}
    same(fused, before, picture())


def test_an_activation_without_a_norm():
    conv = nn.Conv2d(3, 4, 3)
    weight = conv.weight
    fused, report, before = fuse(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Tanh()).eval())
    assert parts(report) == ["0 + 1", "2 + 3"]
    assert fused[0].weight is weight  # nothing was folded
    same(fused, before, picture())


ADDITIONS = [
    lambda out, x: out + x,
    lambda out, x: x + out,
    torch.add,
    lambda out, x: torch.add(x, out),
    lambda out, x: torch.add(out, x, alpha=1),
    lambda out, x: out.add(x),
    lambda out, x: out.add_(x),
    operator.iadd,
]


@pytest.mark.parametrize("add", ADDITIONS)
@pytest.mark.parametrize("activated", [True, False])
def test_additions(add, activated):
    def forward(self, x):
        out = add(self.bn(self.conv(x)), x)
        return F.relu(out) if activated else out

    fused, report, before = fuse(Code(forward))
    assert parts(report) == ["conv + bn + add" + (" + relu" if activated else "")]
    assert type(fused.conv) is ConvAddAct2d
    same(fused, before, picture())
    same(fused, before, picture()[0:1])


def own_inplace_add(self, x):
    y = self.pool(x)
    y += self.bn(self.conv(x))
    return F.relu(y)


UNLIKE_ADDITIONS = {
    "scaled": lambda self, x: torch.add(self.bn(self.conv(x)), x, alpha=2),
    "subtracted": lambda self, x: self.bn(self.conv(x)) - x,
    "a number": lambda self, x: self.bn(self.conv(x)) + 1,
    "to itself": lambda self, x: (lambda y: y + y)(self.bn(self.conv(x))),
    "into the other": own_inplace_add,
    "activated, and seen elsewhere": lambda self, x: (lambda y: F.relu(y) * y)(self.bn(self.conv(x))),
    "seen elsewhere": lambda self, x: (lambda y: F.relu(y + x) * y)(self.bn(self.conv(x))),
}


@pytest.mark.parametrize("name", list(UNLIKE_ADDITIONS))
def test_what_is_no_residual(name):
    fused, report, before = fuse(Code(UNLIKE_ADDITIONS[name], pool=nn.AvgPool2d(1)))
    assert parts(report) == ["conv + bn"]
    same(fused, before, picture())


def test_a_residual_that_is_broadcast_is_added_as_before():
    class Two(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.conv, self.in_place = nn.Conv2d(3, 3, 3, padding=1), in_place

        def forward(self, x, y):
            out = self.conv(x)
            if self.in_place:
                out += y
            else:
                out = out + y
            return F.silu(out)

    x = picture()
    for in_place in (False, True):
        fused, report, before = fuse(Two(in_place).eval())
        assert parts(report) == ["conv + add + silu"]
        for y in (x, x[:, :1], x[:1], x[0], torch.tensor(2.0), torch.ones(5)):
            same(fused, before, x, y)
        assert torch.equal(fused(x, 3), before(x, 3))
        assert torch.equal(fused(x[0], x[0]), before(x[0], x[0]))
        assert torch.equal(fused(x[0], x), before(x[0], x)) if not in_place else True
        assert fused(x, x.double()).dtype == before(x, x.double()).dtype
        with torch.autocast("cpu", torch.bfloat16):
            for y in (x, x.bfloat16()):
                got, expected = fused(x, y), before(x, y)
                assert got.dtype == expected.dtype
                torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    with pytest.raises(RuntimeError):  # as before: the sum does not fit where it is to be
        fused(x[:1], x)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "zeros"),
        ({"padding": "same", "dilation": (1, 2)}, "zeros"),
        ({"padding": (2, 1), "stride": (1, 2), "groups": 3}, "reflect"),
        ({"padding": "same"}, "circular"),
        ({"padding": "valid", "bias": False}, "zeros"),
    ],
)
def test_every_convolution(options, mode, operators_on_cpu):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, (3, 2), padding_mode=mode, **options)
            self.bn = norm(6)

        def forward(self, x, y):
            return F.relu(self.bn(self.conv(x)) + y)

    fused, report, before = fuse(Two().eval())
    assert len(report.fused) == 1
    x = picture(2, 3, 7, 8)
    y = torch.randn_like(before.conv(x).detach())
    calls = []
    fused.conv._conv_forward = lambda *_: calls.append("not in one kernel")
    same(fused, before, x, y)
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.5}])
def test_folding(dtype, options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(4, **options)).eval().to(dtype)
    model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    conv, bn = copy.deepcopy(model.double())
    model.to(dtype)
    weight = model[0].weight
    fused, _, _ = fuse(model)
    folded = fused[0].weight
    assert (folded.dtype, folded.stride(), folded.requires_grad) == (dtype, weight.stride(), False)
    assert fused[0].weight is not weight
    factor = 1 / torch.sqrt(bn.running_var + bn.eps) * (1 if bn.weight is None else bn.weight)
    expected = (conv.weight * factor[:, None, None, None]).to(dtype)
    shift = (0 if bn.bias is None else bn.bias) - bn.running_mean * factor
    torch.testing.assert_close(folded, expected, rtol=torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(fused[0].bias, shift.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


# Pools


class Pools(nn.Module):
    """The classic small network: one pool, called twice, and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 3)
        self.bn = norm(6)
        self.pool = nn.MaxPool2d(2, 2)
        self.eval()

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = F.max_pool2d(self.bn(self.conv2(x)).sigmoid(), 2)
        return self.pool(self.conv3(x))


def test_pools_by_our_kernels(backend):
    layers = (
        (nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), nn.Tanh(), fnn.MaxPool2d((2, 2), [2, 2])),
        (nn.Conv2d(5, 3, 3, padding="same", bias=False), nn.MaxPool2d(2, 2)),
    )
    model = nn.Sequential(*(layer for some in layers for layer in some)).eval().to(backend.device)
    fused, report, before = fuse(model)
    assert parts(report) == ["0 + 1 + 2 + 3", "4 + 5 + 6", "7 + 8"]
    assert "0 + 1 + 2 + 3  -> fastcnn.nn.ConvActPool2d (relu)" in str(report)
    assert report.rebuilt == []
    kinds = [type(module) for module in fused]
    assert [kinds.index(fnn.ConvActPool2d, start) for start in (0, 1, 5)] == [0, 4, 7]
    assert kinds.count(nn.Identity) == 6
    x = picture(2, 1, 19, 18).to(backend.device)
    same(fused, before, x)
    same(fused[4:], before[4:], picture(4, 9, 8).to(x))  # unbatched
    assert [type(module) for module in fastcnn.revert(copy.deepcopy(fused))] == kinds
    rebuilt, report, before = fuse(Pools().to(backend.device))
    assert parts(report) == ["conv1 + relu + pool", "conv2 + bn + sigmoid + max_pool2d", "conv3 + pool"]
    assert isinstance(rebuilt, torch.fx.GraphModule)
    assert {type(module) for module in rebuilt.children()} == {fnn.ConvActPool2d}
    x = picture(1, 1, 29, 28).to(backend.device)
    same(rebuilt, before, x)
    x[..., 9, 9] = float("nan")
    torch.testing.assert_close(rebuilt(x), before(x), equal_nan=True)


def test_copies_gradients_and_compilation_with_pools(operators_on_cpu):
    x = picture(1, 1, 29, 28)
    fused, _, before = fuse(Pools())
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        same(copied, before, x)
    same(torch.compile(fused, fullgraph=True, backend="eager"), before, x)
    x, y = x.requires_grad_(), x.detach().double().requires_grad_()
    fused(x).square().sum().backward()
    before.double()(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad.float(), rtol=1e-3, atol=1e-4)


POOLS = [
    (nn.MaxPool2d(2), True),
    (nn.MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1)), True),
    (fnn.MaxPool2d(2), True),
    (nn.MaxPool2d(2, ceil_mode=True), False),
    (nn.MaxPool2d(2, 1), False),
    (nn.MaxPool2d((2, 1)), False),
    (nn.MaxPool2d(2, (2, 1)), False),
    (nn.MaxPool2d(3, 2), False),
    (nn.MaxPool2d(3, 2, 1), False),
    (nn.MaxPool2d(2, 2, 1), False),
    (nn.MaxPool2d(2, 2, (0, 1)), False),
    (nn.MaxPool2d(2, dilation=2), False),
    (nn.AvgPool2d(2), False),
    (nn.AdaptiveMaxPool2d(3), False),
]


@pytest.mark.parametrize(("pool", "fits"), POOLS)
def test_pool_modules(pool, fits):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), pool).eval()
    fused, report, before = fuse(model)
    assert parts(report) == ["0 + 1 + 2" + (" + 3" if fits else "")]
    assert type(fused[0]) is (fnn.ConvActPool2d if fits else fnn.ConvAct2d)
    same(fused, before, picture(2, 3, 9, 7))


POOL_FUNCTIONS = [
    (lambda x: F.max_pool2d(x, 2), True),
    (lambda x: F.max_pool2d(x, (2, 2), stride=[2, 2], padding=(0, 0)), True),
    (lambda x: torch.max_pool2d(x, 2), True),
    (lambda x: torch.max_pool2d(x, [2, 2], [], 0, 1, False), True),
    (lambda x: fastcnn.functional.max_pool2d(x, 2, 2, 0, 1, False, False), True),
    (lambda x: F.max_pool2d(x, 2, ceil_mode=True), False),
    (lambda x: torch.max_pool2d(x, 2, 2, 0, 1, True), False),
    (lambda x: F.max_pool2d(x, 2, 1), False),
    (lambda x: F.max_pool2d(x, 3, 2), False),
    (lambda x: F.max_pool2d(x, 2, padding=1), False),
    (lambda x: F.max_pool2d(x, 2, dilation=2), False),
    (lambda x: torch.max_pool2d(x, (2, 1), 2), False),
    (lambda x: F.max_pool2d(x, x.dim() - 2), False),
    (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], False),
    (lambda x: fastcnn.functional.max_pool2d(x, 2, return_indices=True)[0], False),
    (lambda x: F.avg_pool2d(x, 2), False),
]


@pytest.mark.parametrize(("function", "fits"), POOL_FUNCTIONS)
def test_pool_functions(function, fits):
    fused, report, before = fuse(Code(lambda self, x: function(F.silu(self.bn(self.conv(x))))))
    assert parts(report) == ["conv + bn + silu" + (" + max_pool2d" if fits else "")]
    assert type(fused.conv) is (fnn.ConvActPool2d if fits else fnn.ConvAct2d)
    same(fused, before, picture(2, 3, 9, 7))


def pooled_and_kept(self, x):
    y = F.relu(self.bn(self.conv(x)))
    return self.pool(y) + y.mean()


def pooled_twice(self, x):
    y = F.relu(self.bn(self.conv(x)))
    return self.pool(y) + self.pool(y)


def written_before_the_pool(self, x):
    y = F.relu(self.bn(self.conv(x)))
    y += 1
    return self.pool(y)


def given_before_the_pool(self, x):
    y = F.relu(self.bn(self.conv(x)))
    return self.pool(y), y


def added_before_the_pool(self, x):
    return self.pool(F.relu(self.bn(self.conv(x)) + x))


def added_and_not_activated(self, x):
    return self.pool(self.bn(self.conv(x)) + x)


UNPOOLED = {
    pooled_and_kept: "conv + bn + relu",
    pooled_twice: "conv + bn + relu",
    written_before_the_pool: "conv + bn + relu",
    given_before_the_pool: "conv + bn + relu",
    added_before_the_pool: "conv + bn + add + relu",
    added_and_not_activated: "conv + bn + add",
}


@pytest.mark.parametrize("forward", list(UNPOOLED))
def test_values_that_are_pooled_and_more(forward):
    fused, report, before = fuse(Code(forward, pool=nn.MaxPool2d(2)))
    assert parts(report) == [UNPOOLED[forward]]
    x = picture()
    torch.testing.assert_close(fused(x), before(x), rtol=1e-4, atol=1e-4)


CONVOLUTIONS = [
    ({}, True),
    ({"out_channels": 8, "groups": 4}, False),
    # Windows that the pooled kernels do not unroll: only where there is little to compute.
    ({"stride": 2}, True),
    ({"in_channels": 20, "stride": 2}, False),
    ({"in_channels": 20, "dilation": (1, 2)}, False),
    ({"in_channels": 6, "kernel_size": 5}, True),
    ({"in_channels": 8, "kernel_size": 5}, False),
    ({"in_channels": 1, "kernel_size": 7}, False),
    ({"in_channels": 160, "kernel_size": 1}, False),
]


@pytest.mark.parametrize(("options", "fits"), CONVOLUTIONS)
def test_convolutions_before_a_pool(options, fits):
    conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 3, "kernel_size": 3, **options})
    fused, report, before = fuse(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2)).eval())
    assert parts(report) == ["0 + 1" + (" + 2" if fits else "")]
    same(fused, before, picture(1, conv.in_channels, 13, 12))


def test_a_pool_that_is_watched_or_not_to_be_changed_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    hooked = copy.deepcopy(model)
    seen = []
    hooked[2].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-1]))
    fused, report, before = fuse(hooked)
    assert parts(report) == ["0 + 1"]
    same(fused, before, picture(2, 3, 8, 8))
    assert seen == [6, 6, 6]
    fused, report = fastcnn.convert(model, fuse=True, filter=lambda name, _: name != "2", report=True)
    assert parts(report) == ["0 + 1"]
    assert type(fused[2]) is nn.MaxPool2d
    assert ("2", "the filter said so") in {(left.name, left.reason) for left in report.skipped}


def test_what_is_left_of_a_pooled_chain_where_the_code_cannot_change():
    def forward(self, x):
        x = F.max_pool2d(self.act(self.bn(self.conv(x))), 2)
        x = self.pool(self.act2(self.conv2(x)))
        return self.pool(F.relu(self.conv3(x)))

    parts_ = {"act": nn.ReLU(), "act2": nn.Tanh(), "pool": nn.MaxPool2d(2)}
    parts_ |= {name: nn.Conv2d(3, 3, 1) for name in ("conv2", "conv3")}
    model = nn.Sequential(Code(forward, **parts_)).eval()
    model[0].register_forward_hook(lambda *_: None)
    fused, report, before = fuse(model)
    assert parts(report) == ["0.conv + 0.bn + 0.act", "0.conv2 + 0.act2"]
    assert "0: its forward would have to be rebuilt, which cannot be: it has hooks" in reasons(report)
    assert type(fused[0].pool) is fnn.MaxPool2d
    same(fused, before, picture(2, 3, 16, 17))


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def test_a_module_that_gives_more_than_the_pool_to_whoever_wants_it():
    """Around it nobody does; on its own it has to give what it gave, and the report does not say more."""

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        return F.max_pool2d(y, 2), y

    fused, report, before = fuse(First(Code(forward)).eval())
    assert parts(report) == ["inner.conv + inner.bn"]
    assert type(fused.inner.conv) is fnn.Conv2d
    assert "inner: its forward would have to be rebuilt, which cannot be" in reasons(report)
    same(fused, before, picture())


def test_a_pool_around_a_module():
    """The smallest module around a chain is the one that pools what another module gives."""

    def forward(self, x):
        return F.max_pool2d(self.inner(x), 2)

    inner = nn.Sequential(nn.Conv2d(3, 3, 3), norm(3), nn.ReLU())
    fused, report, before = fuse(nn.Sequential(Code(forward, inner=inner), nn.ReLU()).eval())
    assert parts(report) == ["0.inner.0 + 0.inner.1 + 0.inner.2 + max_pool2d"]
    assert [rebuilt.name for rebuilt in report.rebuilt] == ["0"]
    assert type(fused) is nn.Sequential
    same(fused, before, picture())


# What is left alone


def twice(self, x):
    return F.relu(self.bn(self.conv(self.conv(x))))


def norm_twice(self, x):
    return F.relu(self.bn(self.conv(self.bn(x))))


def input_of_the_norm(self, x):
    y = self.conv(x)
    return F.relu(self.bn(y)) + y


def weight_read(self, x):
    return F.relu(self.bn(self.conv(x))) * self.conv.weight.mean()


def statistics_read(self, x):
    return F.relu(self.bn(self.conv(x))) + self.bn.running_mean[:, None, None]


LEFT = {
    twice: "conv: it is called 2 times",
    norm_twice: "conv: of its BatchNorm: it is called 2 times",
    input_of_the_norm: "conv: what it gives is used more than once",
    weight_read: "conv: its parameters are used outside it",
    statistics_read: "conv: of its BatchNorm: its parameters are used outside it",
}


@pytest.mark.parametrize("forward", list(LEFT))
def test_left_alone_for_what_the_code_does(forward):
    fused, report, before = fuse(Code(forward))
    assert report.fused == []
    assert reasons(report) == LEFT[forward]
    assert isinstance(fused, Code)
    assert type(fused.bn) is nn.BatchNorm2d
    same(fused, before, picture())


def hooked(kind):
    def prepare(model):
        getattr(model[0], f"register_{kind}")(lambda *_: None)

    return prepare


def in_training(model):
    model[1].train()


def without_statistics(model):
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()


def other_dtype(model):
    model[1].double()


def forward_replaced(model):
    model[0].forward = model[0].forward


def parametrized(model):
    weight_norm(model[0])


def old_weight_norm(model):
    nn.utils.weight_norm(model[0])


def tied(model):
    model.append(nn.Conv2d(3, 4, 3))
    model[-1].weight = model[0].weight


def parameter_hook(model):
    model[0].weight.register_hook(lambda grad: grad)


def second_place(model):
    model.extra = nn.ModuleList([model[0]])
    model.__class__ = FirstThree


class FirstThree(nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x)))


def too_large(model):
    model.half()
    with torch.no_grad():
        model[1].running_var.zero_()
        model[1].weight.fill_(60000)


PREPARED = {
    hooked("forward_hook"): "it has hooks",
    hooked("forward_pre_hook"): "it has hooks",
    hooked("full_backward_hook"): "it has hooks",
    lambda model: model[1].register_forward_hook(lambda *_: None): "of its BatchNorm: it has hooks",
    in_training: "its BatchNorm is in training mode",
    without_statistics: "its BatchNorm keeps no running statistics (track_running_stats=False)",
    other_dtype: "the convolution and its BatchNorm are of different dtypes",
    forward_replaced: "its forward was replaced on the object",
    parametrized: "its parameters are computed (torch.nn.utils.parametrize)",
    old_weight_norm: "it has hooks",
    tied: "it shares a parameter with another module",
    parameter_hook: "a parameter of it has hooks",
    second_place: "it has several places in the model",
    too_large: "the weights it folds to are not finite in torch.float16",
    lambda model: model.to("meta"): "it is on the meta device: load the weights first",
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("prepare", list(PREPARED))
def test_left_alone_for_what_the_modules_are(prepare):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU()).eval()
    prepare(model)
    kinds = [type(module) for module in model]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    _, report = fastcnn.convert(model, fuse=True, report=True)
    assert report.fused == []
    assert f"0: {PREPARED[prepare]}" in reasons(report)
    assert [type(module) for module in model][1:3] == kinds[1:3]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state if not state[key].is_meta)


def test_global_hooks_leave_everything_alone():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
        assert fuse(model)[1].fused == []
    finally:
        handle.remove()


def test_hooks_of_others_do_not_matter_and_are_called():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU()), nn.ReLU()).eval()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    fused, report, before = fuse(model)
    assert parts(report) == ["0.0 + 0.1 + 0.2"]
    same(fused, before, picture())
    assert len(seen) == 3
    # Across the hook nothing is fused: it sees what is between.
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda module, args, output: None)
    assert parts(fuse(model)[1]) == ["0.0 + 0.1"]


def test_a_hook_on_a_module_that_would_be_rebuilt():
    model = nn.Sequential(Block()).eval()
    model[0].register_forward_hook(lambda *_: None)
    fused, report, before = fuse(model)
    assert parts(report) == ["0.conv1 + 0.bn1", "0.conv2 + 0.bn2"]
    assert "0: its forward would have to be rebuilt, which cannot be: it has hooks" in reasons(report)
    assert isinstance(fused[0], Block)
    same(fused, before, picture(1, 4, 5, 5))


def test_parts_of_a_hooked_module_that_are_used_from_outside():
    def forward(self, x):
        return self.inner(x) + self.inner[0](x)

    model = Code(forward, inner=nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)))
    model.inner.register_forward_hook(lambda *_: None)
    fused, report, before = fuse(model)
    assert report.fused == []
    assert "inner: parts of it are used from outside it" in reasons(report)
    assert type(fused.inner[0]) is fnn.Conv2d
    same(fused, before, picture())


class Peeking(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner[0](x) if x.mean() > -100 else x


def test_a_module_that_somebody_else_holds_too():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
    model = Code(lambda self, x: self.inner(x) + self.peeking(x), inner=inner, peeking=Peeking(inner))
    fused, report, before = fuse(model)
    assert report.fused == []
    assert "inner.0: a module around it has several places in the model" in reasons(report)
    same(fused, before, picture())


def test_what_was_rebuilt_shares_no_containers_with_what_it_was():
    model = Code(lambda self, x: F.relu(self.conv(x)))
    fused = fastcnn.convert(model, fuse=True)
    assert fused.conv.weight is model.conv.weight
    fused.conv.weight = nn.Parameter(torch.zeros(3, 3, 3, 3))
    fused.conv.register_forward_hook(lambda *_: None)
    assert model.conv.weight.any()
    assert not model.conv._forward_hooks


def test_an_activation_with_a_hook_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU()).eval()
    seen = []
    model[2].register_forward_hook(lambda *_: seen.append("called"))
    fused, report, _ = fuse(model)
    assert parts(report) == ["0 + 1"]
    fused(picture())
    assert seen == ["called"]


def written_before_it_is_added(self, x):
    out = self.bn(self.conv(x))
    y = x.mul_(2)
    return F.relu(out + y)


def written_by_a_view(self, x):
    view = x.flatten(2)
    out = self.bn(self.conv(x))
    view += 1
    return F.relu(out + x)


def written_by_anybody(self, x):
    out = self.bn(self.conv(x))
    return F.relu(out + opaque(x))


@torch.fx.wrap
def opaque(x):
    x += 1
    return x


def written_by_a_function(self, x):
    return F.relu(self.bn(self.conv(x)) + torch.relu_(x))


def written_by_an_option(self, x):
    return F.relu(self.bn(self.conv(x)) + F.relu(x, True))


def written_by_a_module(self, x):
    return F.relu(self.bn(self.conv(x)) + self.relu(x))


@pytest.mark.parametrize(
    "forward",
    [
        written_before_it_is_added,
        written_by_a_view,
        written_by_anybody,
        written_by_a_function,
        written_by_an_option,
        written_by_a_module,
    ],
)
def test_an_input_that_is_written_to_is_read_in_time(forward):
    fused, report, before = fuse(Code(forward, relu=nn.ReLU(inplace=True)))
    assert parts(report) == ["conv + bn"]
    x = picture()
    y = x.clone()
    torch.testing.assert_close(fused(x), before(y), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, y)


def test_an_input_that_is_written_to_before_the_activation():
    def forward(self, x):
        y = self.conv(x)
        x += 1
        return F.relu(self.bn(y)) + x

    fused, report, before = fuse(Code(forward))
    assert parts(report) == ["conv + bn + relu"]
    x = picture()
    torch.testing.assert_close(fused(x.clone()), before(x.clone()), rtol=1e-4, atol=1e-4)


def test_writing_elsewhere_does_not_matter():
    def forward(self, x):
        out = self.bn(self.conv(x))
        return F.relu(out + self.other(x).relu_())

    fused, report, before = fuse(Code(forward, other=nn.Conv2d(3, 3, 1)))
    assert parts(report) == ["conv + bn + add + relu", "other + relu"]
    same(fused, before, picture())


def test_a_residual_that_another_chain_gives():
    def forward(self, x):
        y = F.relu(self.other(x))
        x = F.relu(self.bn(self.conv(x)) + y)
        return F.silu(self.last(x) + F.silu(self.before(y)))

    modules = {name: nn.Conv2d(3, 3, 1) for name in ("other", "last", "before")}
    fused, report, before = fuse(Code(forward, **modules))
    expected = ["before + silu", "conv + bn + add + relu", "last + add + silu", "other + relu"]
    assert sorted(parts(report)) == expected
    same(fused, before, picture())


def test_in_place_on_a_value_that_others_see():
    def forward(self, x):
        y = self.bn(self.conv(x))
        z = y.flatten(1)
        F.relu_(y)
        return z

    fused, report, before = fuse(Code(forward))
    assert parts(report) == ["conv + bn"]
    same(fused, before, picture())
    assert (fused(picture()) >= 0).all()


def test_in_place_operators_survive_rebuilding_and_pickling():
    fused, report, before = fuse(Outer())
    assert isinstance(fused, torch.fx.GraphModule)
    assert parts(report) == ["conv + bn + relu"]
    for model in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        x, y = picture(), picture()
        y.copy_(x)
        torch.testing.assert_close(model(x), before(y), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x, y)  # the caller sees what is written to its tensor


class Outer(nn.Module):
    """Writes to the tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(3)
        self.eval()

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        x += y
        x *= 2
        x -= 1
        x /= 3
        return x + x.shape[0]


class Program(nn.Module):
    """A forward of random steps, in place and not, on values that may be used again."""

    def __init__(self, chance: random.Random, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.relu = nn.ReLU(inplace=chance.random() < 0.5)
        self.pool = nn.MaxPool2d(2)
        self.steps: list[tuple] = []
        for number in range(chance.randint(4, 9)):
            kinds = [
                "conv",
                "conv",
                "norm",
                "norm",
                "module",
                "relu",
                "relu_",
                "silu",
                "add",
                "add",
                "iadd",
                "mul_",
                "pool",
                "pool",
                "max_pool2d",
            ]
            kind = chance.choice([*kinds, "program"] if depth else kinds)
            make = {"conv": lambda: nn.Conv2d(3, 3, 3, padding=1), "norm": lambda: norm(3)}
            make["program"] = lambda: Program(chance, depth - 1)
            if kind in make:
                again = [i for i, (of, *_) in enumerate(self.steps) if of == kind and chance.random() < 0.05]
                self.layers.append(self.layers[again[0]] if again else make[kind]())
            else:
                self.layers.append(nn.Identity())
            # The last value most often: chains are what is looked for.
            of, other = (number if chance.random() < 0.75 else chance.randint(0, number) for _ in range(2))
            self.steps.append((kind, of, other))

    def forward(self, x):
        values = [x]
        for layer, (kind, of, other) in zip(self.layers, self.steps, strict=True):
            value = values[of]
            if kind in ("conv", "norm", "program"):
                value = layer(value)
            elif kind == "add":
                value = value + values[other]
            elif kind == "iadd":
                value += values[other]
            elif kind == "module":
                value = self.relu(value)
            elif kind == "pool":  # and back to the size of all
                value = F.interpolate(self.pool(value), (6, 5))
            elif kind == "max_pool2d":
                value = F.interpolate(F.max_pool2d(value, 2), (6, 5))
            else:
                value = {"relu": F.relu, "relu_": F.relu_, "silu": F.silu, "mul_": lambda v: v.mul_(0.5)}[
                    kind
                ](value)
            values.append(value)
        return values[-1] + values[-2] * 0.5


@pytest.mark.parametrize("first", (0, 30))
def test_random_programs(first, aten_on_cpu):
    """Values, and what is written to the input, are those of the model as it was."""
    fused_sites = 0
    for number in range(first, first + 30):
        torch.manual_seed(number)
        model = Program(random.Random(number)).eval()
        fused, report, before = fuse(model)
        fused_sites += len(report.fused)
        x = picture().double()
        y = x.clone()
        with torch.no_grad():
            got, expected = fused.double()(x), before.double()(y)
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()), msg=str(number)
        )
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
    assert fused_sites > 10


# What cannot be traced


class Deciding(nn.Module):
    """Looks at the numbers to know what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), nn.ReLU())
        self.tapped = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), nn.ReLU())
        self.looped = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), nn.ReLU())
        self.read = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
        self.named = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), bn=norm(3)))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)) for _ in range(2)])
        self.pairs = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)) for _ in range(2)])
        self.eval()

    def forward(self, x):
        x = self.a(x) if x.mean() > 0 else self.b(x)
        x = self.tapped[1](self.tapped[0](x)) + self.helper(x)
        for layer in self.looped:
            x = layer(x)
        for i, block in enumerate(self.blocks):
            x = block(x) if i > 0 else block(x) * 2
        x = self.named.bn(self.named.conv(x) + 1)
        for pair in self.pairs:
            x = pair[1](pair[0](x) + 1)
        return x

    def helper(self, x):
        return self.read(x) * self.read[0].weight.mean()


def test_data_dependent_code_is_left_and_what_it_calls_is_fused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), Deciding(), nn.Conv2d(3, 3, 1), norm(3)).eval()
    fused, report, before = fuse(model)
    assert parts(report) == [
        "0 + 1",
        "2.a.0 + 2.a.1 + 2.a.2",
        "2.b.0 + 2.b.1 + 2.b.2",
        "2.blocks.0.0 + 2.blocks.0.1",
        "2.blocks.1.0 + 2.blocks.1.1",
        "3 + 4",
    ]
    assert "2: its forward cannot be traced: it looks at values to know what to do" in reasons(report)
    for name in ("tapped", "looped", "read", "named", "pairs.0", "pairs.1"):
        assert f"2.{name}: the code around it may use its parts one by one" in reasons(report)
    assert type(fused[2]) is Deciding
    for sign in (1, -1):
        same(fused, before, sign * picture().abs())


class Giving(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
        self.give = give
        self.eval()

    def forward(self, x, *others):
        return self.hand_over(x)

    def hand_over(self, x):
        return self.give(self, x)


def test_code_that_hands_itself_over_may_do_anything():
    model = Giving(lambda holder, x: holder.inner[1](holder.inner[0](x) * 2))
    fused, report, before = fuse(model)
    assert report.fused == []
    assert "its forward takes any number of arguments" in reasons(report)
    assert "inner: the code around it may use its parts one by one" in reasons(report)
    same(fused, before, picture())


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Block(3)
        self.eval()

    def forward(self, x, mask=None):
        x = self.inner(x)
        return x if mask is None else x * mask


def test_optional_arguments():
    fused, report, before = fuse(Optional())
    assert len(report.fused) == 2
    assert reasons(report) == ": its forward can be called with and without 'mask'"
    same(fused, before, picture())
    same(fused, before, picture(), torch.rand(6, 5))


def asks_for_the_class(self, x):
    y = F.relu(self.bn(self.conv(x)))
    return y * 2 if isinstance(y, torch.Tensor) else y


def changes_the_module(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return F.relu(self.bn(self.conv(x)))


def keeps_what_it_saw(self, x):
    y = self.bn(self.conv(x))
    self.seen.append(y)
    return F.relu(y)


def draws(self, x):
    y = self.bn(self.conv(x))
    return y if torch.rand(()) < 2 else F.relu(y)


def sets_data(self, x):
    y = self.bn(self.conv(x))
    y.data = y.data * 2
    return F.relu(y)


def sets_the_mode(self, x):
    with torch.no_grad():
        y = self.conv(x)
    return F.relu(self.bn(y))


def sets_autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.conv(x)
    return F.relu(self.bn(y))


def swaps_parameters(self, x):
    weights = {"weight": torch.ones(3, 3, 3, 3), "bias": torch.zeros(3)}
    return F.relu(self.bn(torch.func.functional_call(self.conv, weights, (x,))))


def sets_attributes(self, x):
    self.conv.padding = (0, 0)
    y = self.conv(x)
    self.conv.padding = (1, 1)
    return F.relu(self.bn(y))


def catches(self, x):
    try:
        if x.mean() > -100:
            x = self.conv(x)
    except Exception:
        x = self.bn(self.conv(x))
    return F.relu(x)


def goes_through(self, x):
    return torch.cat([F.relu(self.bn(self.conv(part[None]))) for part in x])


def raised_in_place(self, x):
    y = self.bn(self.conv(x))
    y **= 2
    return F.relu(y)


REFUSED = {
    sets_the_mode: "it sets the grad mode or autocast",
    sets_autocast: "it sets the grad mode or autocast",
    swaps_parameters: "it changes a module before it calls it",
    sets_attributes: "it changes a module before it calls it",
    catches: "it looks at values to know what to do",
    goes_through: "it iterates over a value",
    raised_in_place: "an in-place operator other than",
    asks_for_the_class: "it asks for the class of a value",
    changes_the_module: "its forward changes the module",
    keeps_what_it_saw: "its forward changes the module",
    draws: "its forward draws random numbers",
    sets_data: "it sets the attribute 'data' of a tensor",
}


@pytest.mark.parametrize("forward", list(REFUSED))
def test_code_that_a_graph_would_not_do_justice(forward):
    model = Code(forward)
    model.seen = []
    generator = torch.get_rng_state()
    fused, report, before = fuse(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.seen == []
    assert not hasattr(model, "calls")
    assert report.fused == []
    assert REFUSED[forward] in reasons(report)
    x = picture()
    torch.testing.assert_close(fused(x), before(x))


def test_code_that_looks_at_its_layers():
    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if self.conv.bias is None else y * 2

    model = Code(forward)
    model.conv = nn.Conv2d(3, 3, 1, bias=False)
    weight = model.conv.weight
    fused, report, before = fuse(model)
    assert report.fused == []
    assert "its forward asks layers for more than their results" in reasons(report)
    assert fused.conv.weight is weight
    assert fused.conv.bias is None
    assert set(fused.state_dict()) == set(before.state_dict())
    same(fused, before, picture())


def test_one_class_that_looks_does_not_keep_others_from_being_fused():
    model = nn.Sequential(
        Code(lambda self, x: self.bn(self.conv(x)) * self.conv.bias.numel()),
        nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)),
        Code(lambda self, x: self.bn(self.conv(x)) * len(self.bn._buffers)),
    ).eval()
    fused, report, before = fuse(model)
    assert parts(report) == ["1.0 + 1.1"]
    assert "0.conv: its parameters are used outside it" in reasons(report)
    assert "2: its forward asks layers for more than their results" in reasons(report)
    same(fused, before, picture())


class Asking(nn.Module):
    """Wants to know more of a block than what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(3)
        self.block.scale = 2
        self.eval()

    def forward(self, x):
        return self.block(x) * getattr(self.block, "scale", 1)


def test_code_that_looks_at_a_block():
    fused, report, before = fuse(Asking())
    assert parts(report) == ["block.conv1 + block.bn1", "block.conv2 + block.bn2"]
    assert report.rebuilt == []
    assert "its forward asks modules that would be rebuilt for more than their results" in reasons(report)
    assert type(fused.block) is Block
    same(fused, before, picture())


class Inverted(nn.Module):
    """A residual around layers of a Sequential: their convolution becomes part of this module's graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x):
        x = x + self.inner(x)
        return F.relu(self.bn(self.conv(x)))


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(3)
        self.last, self.last_bn = nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x, scale=1):
        x = F.relu(self.bn(self.conv(x)))
        return self.last_bn(self.last(x))


class Once(Activated):
    def forward(self, x):
        return super().forward(x)


def test_a_chain_that_goes_through_several_modules():
    layers = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), norm(3), nn.ReLU()), nn.Conv2d(3, 3, 1), norm(3))
    fused, report, before = fuse(
        nn.Sequential(Inverted(layers), Inverted(Once()), Inverted(Activated())).eval()
    )
    assert parts(report) == [
        "0.inner.0.0 + 0.inner.0.1 + 0.inner.0.2",
        "0.inner.1 + 0.inner.2 + add",
        "0.conv + 0.bn + relu",
        "1.inner.conv + 1.inner.bn + relu",
        "1.inner.last + 1.inner.last_bn + add",
        "1.conv + 1.bn + relu",
        "2.inner.conv + 2.inner.bn + relu",
        "2.inner.last + 2.inner.last_bn + add",
        "2.conv + 2.bn + relu",
    ]
    assert [rebuilt.name for rebuilt in report.rebuilt] == ["0", "1", "2"]
    assert type(fused) is nn.Sequential
    left = {name for name in before.state_dict() if ".bn." not in name and "last_bn" not in name}
    norms = {"0.inner.0.1.", "0.inner.2."}
    expected = {name for name in left if not name.startswith(tuple(norms))}
    assert set(fused.state_dict()) == expected
    for copied in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        same(copied, before, picture())


def test_a_residual_from_a_module_of_which_the_graph_does_not_show_much():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
            self.f = nn.Sequential(nn.AvgPool2d(1), nn.Sigmoid())

        def forward(self, x):
            return F.relu(self.proj(x) + self.f(x))

    fused, report, before = fuse(nn.Sequential(Projected()).eval())
    assert parts(report) == ["0.proj.0 + 0.proj.1 + add + relu"]
    same(fused, before, picture())


def test_inner_modules_are_rebuilt_where_the_outer_one_cannot_be():
    model = nn.Sequential(Inverted(Once()), Block(3)).eval()
    model[0].register_forward_hook(lambda *_: None)
    fused, report, before = fuse(model)
    assert parts(report) == [
        "0.inner.conv + 0.inner.bn + relu",
        "0.inner.last + 0.inner.last_bn",
        "0.conv + 0.bn",
        "1.conv1 + 1.bn1 + 1.relu",
        "1.conv2 + 1.bn2 + add + 1.relu",
    ]
    assert [rebuilt.name for rebuilt in report.rebuilt] == ["0.inner", "1"]
    assert "0: its forward would have to be rebuilt, which cannot be: it has hooks" in reasons(report)
    same(fused, before, picture())


def test_a_block_with_optional_arguments_keeps_its_code():
    fused, report, before = fuse(nn.Sequential(Activated()).eval())
    assert parts(report) == ["0.conv + 0.bn", "0.last + 0.last_bn"]
    assert (
        "0: its forward would have to be rebuilt, which cannot be: its forward can be called with"
        in reasons(report)
    )
    same(fused, before, picture())
    same(fused[0], before[0], picture(), torch.tensor(2.0))


def test_lists_wrappers_and_compiled_models_are_left():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
    compiled = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)).eval()
    compiled.compile(backend="eager")
    for model in (
        nn.ModuleList([inner]),
        nn.DataParallel(inner),
        torch.compile(inner, backend="eager"),
        compiled,
    ):
        _, report = fastcnn.convert(model.eval(), fuse=True, report=True)
        assert report.fused == []
        assert len(report.unfused) > 0


class Sly(nn.Module):
    """Takes its layers one by one, where its source does not show it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
        if how == "list":
            self.plain = [list(self.inner)]
        elif how == "closure":
            layers = list(self.inner)
            self.plain = lambda x: layers[1](layers[0](x) * 2)
        self.how = how
        self.eval()

    def forward(self, x, *_):
        if self.how == "list":
            (layers,) = self.plain
            return layers[1](layers[0](x) * 2)
        return self.plain(x)


class OtherName(Sly):
    def forward(this, x, *_):
        return this.inner[1](this.inner[0](x) * 2)


@pytest.mark.parametrize("model", [Sly("list"), Sly("closure"), OtherName("")])
def test_what_the_source_does_not_show(model):
    fused, report, before = fuse(model)
    assert report.fused == []
    assert torch.equal(fused(picture() * 0 + 1), before(picture() * 0 + 1))


def test_a_wrapper_of_torchs_and_a_scripted_module_are_not_looked_into():
    model = nn.Sequential(
        nn.DataParallel(nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))),
        norm(3),
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)).eval()),
        norm(3),
        nn.Conv2d(3, 3, 1),
        norm(3),
    ).eval()
    fused, report, before = fuse(model)
    assert parts(report) == ["4 + 5"]
    assert reasons(report) == "0: its code is not looked into"
    assert "compiled code" in {left.name: left.reason for left in report.skipped}["2"]
    x = picture()
    torch.testing.assert_close(fused(x), before(x))


def test_lists_of_layers_that_the_model_does_not_know_as_its_own():
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return F.relu(x)

    model = Code(forward)
    model.layers = [model.conv, model.bn]
    fused, report, before = fuse(model)
    assert parts(report) == ["conv + bn + relu"]
    same(fused, before, picture())
    same(model, before, picture())  # what was rebuilt still computes what it did


# The model afterwards


def test_training_mode_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        fastcnn.convert(model, fuse=True)
    assert type(model[0]) is nn.Conv2d


def stacked() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        norm(4),
        nn.ReLU(),
        Block(),
        Block(stride=2),
        nn.Flatten(),
        nn.Linear(24, 2),
    ).eval()


def test_copies_and_state():
    fused, _, before = fuse(stacked())
    x = picture(1, 3, 4, 5)
    expected = fused(x)
    same(fused, before, x)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(copied(x), expected)
        assert type(copied[3].conv2) is ConvAddAct2d
    state = {key: value.clone() for key, value in fused.state_dict().items()}
    other, _, _ = fuse(stacked())
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert torch.equal(fused.train()(x), expected)  # folded norms are constants


def test_compile_and_export(operators_on_cpu):
    fused, _, before = fuse(stacked())
    x = picture(2, 3, 4, 5)
    with torch.no_grad():
        expected = fused(x)
        compiled = torch.compile(fused, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), expected)
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(fused, (x,), dynamic_shapes={"input": {0: batch}})
        assert torch.equal(
            program.module()(picture(3, 3, 4, 5)[:3] * 0 + x[:1]), fused(x[:1].expand(3, -1, -1, -1))
        )
    names = [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
    assert not any("batch_norm" in name or name.startswith(("add", "relu")) for name in names)
    same(compiled, before, x)


def test_gradients():
    fused, _, before = fuse(stacked())
    before.double()
    x = picture(1, 3, 4, 5).requires_grad_()
    y = x.detach().double().requires_grad_()
    fused(x).square().sum().backward()
    before(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad.float(), rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_report_filter_and_revert():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), Block(), nn.MaxPool2d(2), Deciding()).eval()
    asked = Counter()

    def allowed(name, module):
        asked[name] += 1
        return name != "3.conv1"

    model, report = fastcnn.convert(model, fuse=True, filter=allowed, report=True)
    assert max(asked.values()) == 1
    assert parts(report)[:2] == ["0 + 1 + 2", "3.conv2 + 3.bn2 + add + 3.relu"]
    assert type(model[3].conv1) is nn.Conv2d
    assert ("3.conv1", "the filter said so") in {(s.name, s.reason) for s in report.skipped}
    text = str(report)
    assert "fastcnn.nn.ConvAct2d (relu, residual)" in text
    assert "its forward as a graph" in text
    assert "not fused: its forward cannot be traced" in text
    assert text.splitlines()[0].startswith(f"{len(report.fused)} fused, {len(report.swapped)} swapped, ")
    _, again = fastcnn.convert(copy.deepcopy(model), fuse=True, filter=allowed, report=True)
    assert again.fused == []
    assert again.swapped == []
    _, back = fastcnn.revert(model, report=True)
    assert type(model[0]) is fnn.ConvAct2d
    assert ("0", "a BatchNorm is folded into its weights, and stays there") in {
        (s.name, s.reason) for s in back.skipped
    }


def test_without_fuse_nothing_is_fused():
    model = stacked()
    state = list(model.state_dict())
    _, report = fastcnn.convert(model, report=True)
    assert (report.fused, report.rebuilt, report.unfused) == ([], [], [])
    assert list(model.state_dict()) == state
    assert type(model[3]) is Block


def test_a_converted_model_can_be_fused():
    fused, report, before = fuse(fastcnn.convert(stacked()))
    assert len(report.fused) == 6
    same(fused, before, picture(1, 3, 4, 5))
    acts = nn.Sequential(
        fnn.ConvAct2d(3, 3, 1), norm(3), fnn.ConvAct2d(3, 3, 1, activation="none"), norm(3)
    ).eval()
    fused, report, before = fuse(acts)
    assert parts(report) == ["2 + 3"]
    assert reasons(report) == "0: an activation stands between it and what follows"
    same(fused, before, picture())
