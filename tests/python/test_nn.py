"""The layers are torch's own in everything but the computation."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastcnn import functional
from fastcnn import nn as fnn
from fastcnn.testing import assert_exact

LAYERS = [
    ("Conv2d", (4, 6, 3), {}),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": 1, "dilation": 2, "groups": 2, "bias": False}),
    ("Conv2d", (4, 6, 3), {"padding": "same"}),
    ("Conv2d", (4, 6, 3), {"padding": "valid", "dtype": torch.float64}),
    ("Conv2d", (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}),
    ("Conv2d", (4, 6, 3), {"padding": (2, 1), "padding_mode": "replicate", "stride": 2}),
    ("Conv2d", (4, 6, 3), {"padding": "same", "padding_mode": "circular"}),
    ("MaxPool2d", (2,), {}),
    ("MaxPool2d", (3, 2, 1), {"dilation": 2, "ceil_mode": True}),
    ("MaxPool2d", (3,), {"return_indices": True}),
    ("AvgPool2d", (2,), {}),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False, "divisor_override": 4}),
    ("AdaptiveAvgPool2d", ((3, None),), {}),
    ("AdaptiveMaxPool2d", (2,), {}),
    ("AdaptiveMaxPool2d", (2,), {"return_indices": True}),
]


def pair_of_layers(name, arguments, options):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*arguments, **options)
    torch.manual_seed(0)
    return theirs, getattr(fnn, name)(*arguments, **options)


@pytest.mark.parametrize(("name", "arguments", "options"), LAYERS)
def test_same_layer(backend, name, arguments, options):
    theirs, ours = pair_of_layers(name, arguments, options)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)  # the same random initialisation
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())

    dtype = options.get("dtype", torch.float32)
    input = torch.randint(-3, 4, (2, 4, 9, 8)).to(backend.device, dtype)
    for parameter in (*theirs.parameters(), *ours.parameters()):
        parameter.data = (parameter.data * 16).round()
    theirs, ours = theirs.to(backend.device), ours.to(backend.device)
    for image in (input, input[0]):
        got, expected = ours(image), theirs(image)
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else ((got, expected),)
        for one, other in pairs:
            if "Avg" in name:
                torch.testing.assert_close(one, other)
            else:
                assert_exact(one.detach(), other.detach())


@pytest.mark.parametrize(("name", "arguments", "options"), LAYERS)
def test_copies(name, arguments, options):
    layer = getattr(fnn, name)(*arguments, **options)
    input = torch.randn(1, 4, 9, 8, dtype=options.get("dtype"))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(copied) is type(layer)
        for one, other in zip(_parts(copied(input)), _parts(layer(input)), strict=True):
            assert torch.equal(one, other)


def _parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid", "tanh"])
def test_conv_act(backend, activation):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect").to(backend.device)
    fused = fnn.ConvAct2d(3, 5, 3, padding=1, padding_mode="reflect", activation=activation).to(
        backend.device
    )
    fused.load_state_dict(plain.state_dict())
    assert f"activation={activation!r}" in repr(fused)
    assert pickle.loads(pickle.dumps(fused)).activation == activation
    input = torch.randn(2, 3, 6, 5, device=backend.device)
    expected = plain(input) if activation == "none" else getattr(torch, activation)(plain(input))
    torch.testing.assert_close(fused(input), expected)
    fused(input).sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(fused.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "leaky_relu"])
def test_conv_act_pool(backend, activation):
    torch.manual_seed(0)
    options = {"padding": 1, "padding_mode": "reflect", "activation": activation, "negative_slope": 0.2}
    apart = fnn.ConvAct2d(3, 5, 3, **options).to(backend.device)
    fused = fnn.ConvActPool2d(3, 5, 3, **options).to(backend.device)
    fused.load_state_dict(apart.state_dict())
    assert isinstance(fused, fnn.ConvAct2d)
    assert f"activation={activation!r}" in repr(fused)
    copied = pickle.loads(pickle.dumps(fused))
    assert (copied.activation, copied.negative_slope) == (activation, 0.2)
    for shape in ((2, 3, 7, 6), (3, 7, 6)):
        input = torch.randn(shape, device=backend.device)
        expected = torch.nn.functional.max_pool2d(apart(input), 2)
        torch.testing.assert_close(fused(input), expected)
        apart.zero_grad()
        fused.zero_grad()
        fused(input).square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(fused.weight.grad, apart.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused.bias.grad, apart.bias.grad, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(fused(input), expected)


@pytest.mark.parametrize("layer", [fnn.ConvAct2d, fnn.ConvActPool2d])
@pytest.mark.parametrize("slope", [np.float32(0.5), torch.tensor(0.5), Fraction(1, 2), 1, True])
def test_slopes_of_any_number(backend, layer, slope):
    made = layer(1, 2, 3, activation="leaky_relu", negative_slope=slope).to(backend.device)
    assert type(made.negative_slope) is float
    input = torch.randn(1, 1, 6, 6, device=backend.device)
    expected = made(input)
    made.negative_slope = slope
    assert torch.equal(made(input), expected)


@pytest.mark.parametrize("slope", ["0.1", None, 1j, torch.ones(2), [0.1]])
def test_slopes_that_are_no_number(backend, slope):
    says = "negative_slope must be a real number, such as 0.01, not "
    with pytest.raises(TypeError, match=f"^{says}"):
        fnn.ConvAct2d(1, 2, 3, negative_slope=slope)
    tensors = torch.randn(1, 1, 6, 6, device=backend.device), torch.randn(2, 1, 3, 3, device=backend.device)
    for call in (functional.conv2d_act, functional.conv2d_act_max_pool2d):
        with pytest.raises(TypeError, match=rf"^{call.__name__}\(\): {says}"):
            call(*tensors, activation="leaky_relu", negative_slope=slope)


def test_layers_from_before_there_was_a_slope(backend):
    layer = fnn.ConvAct2d(1, 2, 3, activation="leaky_relu").to(backend.device)
    input = torch.randn(1, 1, 6, 6, device=backend.device)
    expected = layer(input)
    del layer.__dict__["negative_slope"]
    assert torch.equal(pickle.loads(pickle.dumps(layer))(input), expected)
    assert "negative_slope=0.01" in repr(layer)


def test_without_kernels_it_is_torchs_call(aten_on_cpu):
    input, weight = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(3, 4, 3, 3)
    assert functional.conv2d(input, weight).grad_fn.name() == "ConvolutionBackward0"
    assert functional.max_pool2d(input, 2).grad_fn.name() == "MaxPool2DWithIndicesBackward0"
    # Dtypes without a kernel, on a device with kernels, too.
    assert functional.conv2d(input.detach().int(), weight.int()).dtype == torch.int32


def test_dtypes_without_kernels_go_to_torch(backend):
    if backend.device == "cuda":
        pytest.skip("torch has no integer convolution on a GPU either")
    integers = torch.arange(32).reshape(1, 2, 4, 4)
    weight = torch.ones(1, 2, 3, 3, dtype=torch.int64)
    assert torch.equal(functional.conv2d(integers, weight), torch.nn.functional.conv2d(integers, weight))
    assert torch.equal(functional.max_pool2d(integers, 2), torch.nn.functional.max_pool2d(integers, 2))
    assert functional.conv2d(integers + 1j, weight + 0j).is_complex()


def test_subclasses_and_modes_of_torch_function(backend):
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    image = torch.randn(1, 2, 5, 5, device=backend.device).as_subclass(Watched)
    weight = torch.randn(3, 2, 3, 3, device=backend.device)
    output = functional.conv2d(image, weight, activation="relu")
    assert functional.conv2d in seen
    assert isinstance(output, Watched)
    assert isinstance(functional.avg_pool2d(image, 2), Watched)
    with torch.device(backend.device):
        plain = functional.conv2d(image.as_subclass(torch.Tensor), weight, activation="relu")
    assert torch.equal(plain, output.as_subclass(torch.Tensor))
