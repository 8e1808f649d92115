"""convert and revert: the class changes, nothing else does, and real models compute what they computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import fastcnn
from fastcnn import nn as fnn


class OwnConv(nn.Conv2d):
    """Somebody's own code."""

    def forward(self, input):
        return super().forward(input) * 2


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Sequential(nn.MaxPool2d(2), OwnConv(4, 4, 1), nn.AvgPool2d(2, 1)),
        nn.AdaptiveMaxPool2d(3),
        nn.ConvTranspose2d(4, 4, 2),
        nn.AdaptiveAvgPool2d(1),
    )


def test_only_the_class_changes():
    model = small_model().eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    model[0].extra = object()
    before = {name: (module, dict(module.__dict__)) for name, module in model.named_modules()}
    parameters, state = dict(model.named_parameters()), list(model.state_dict())
    input = torch.randn(1, 3, 12, 12)
    expected = model(input)

    assert fastcnn.convert(model) is model
    assert type(model[0]) is fnn.Conv2d
    assert type(model[2][0]) is fnn.MaxPool2d
    assert list(model.state_dict()) == state
    for name, module in model.named_modules():
        assert module is before[name][0]
        assert module.__dict__ == before[name][1]
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    torch.testing.assert_close(model(input), expected)
    assert calls == ["hook", "hook"]
    assert not model[0].training

    assert fastcnn.revert(model) is model
    assert type(model[0]) is nn.Conv2d
    assert {type(m) for m in model.modules()} == {type(m) for m in small_model().modules()}


def test_report():
    model, report = fastcnn.convert(small_model(), report=True)
    assert [s.name for s in report.swapped] == ["0", "2.0", "2.2", "3", "5"]
    assert {(s.name, s.kind) for s in report.skipped} == {("2.1", OwnConv), ("4", nn.ConvTranspose2d)}
    text = str(report)
    assert text.startswith("5 swapped, 2 left as they are\n")
    assert "a subclass of torch.nn.Conv2d, with code of its own" in text
    assert "OwnConv" in text
    _, again = fastcnn.convert(model, report=True)
    assert again.swapped == []
    _, back = fastcnn.revert(model, report=True)
    assert (back.swapped[0].name, back.swapped[0].after) == ("0", nn.Conv2d)
    assert len(back.swapped) == 5


def test_the_model_may_be_the_layer():
    layer = nn.Conv2d(1, 1, 1)
    converted, report = fastcnn.convert(layer, report=True)
    assert converted is layer
    assert type(layer) is fnn.Conv2d
    assert "(the model itself)" in str(report)
    assert type(fastcnn.revert(layer)) is nn.Conv2d


def test_filter():
    def first_only(name, module):
        assert isinstance(module, nn.Module)
        return name == "0"

    model, report = fastcnn.convert(small_model(), filter=first_only, report=True)
    assert [s.name for s in report.swapped] == ["0"]
    assert type(model[3]) is nn.AdaptiveMaxPool2d
    assert ("3", "the filter said so") in {(s.name, s.reason) for s in report.skipped}


def test_shared_layers_are_swapped_once():
    layer = nn.Conv2d(2, 2, 1)
    model, report = fastcnn.convert(nn.Sequential(layer, nn.ReLU(), layer), report=True)
    assert model[0] is model[2]
    assert [s.name for s in report.swapped] == ["0"]


def test_what_is_left_alone_says_why():
    model = nn.ModuleDict(
        {
            "lazy": nn.LazyConv2d(4, 3),
            "one": nn.Conv1d(1, 1, 1),
            "three": nn.MaxPool3d(2),
            "power": nn.LPPool2d(2, 2),
            "quantised": torch.ao.nn.quantized.Conv2d(1, 1, 1),
            "scripted": torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))),
            "linear": nn.Linear(1, 1),
        }
    )
    _, report = fastcnn.convert(model, report=True)
    assert report.swapped == []
    reasons = {s.name: s.reason for s in report.skipped}
    assert set(reasons) == {"lazy", "one", "three", "power", "quantised", "scripted"}
    assert "run the model once" in reasons["lazy"]
    assert "compiled code" in reasons["scripted"]
    assert "quantised" in reasons["quantised"]
    assert reasons["one"] == reasons["power"] == "fastcnn has no such layer"
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1)))
    assert "compiled code" in fastcnn.convert(scripted, report=True)[1].skipped[0].reason
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, but is dict"):
        fastcnn.convert({})


def test_a_lazy_layer_can_be_converted_after_its_first_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    model(torch.randn(1, 2, 5, 5))
    assert type(fastcnn.convert(model)[0]) is fnn.Conv2d


def test_conv_act_stays_on_revert():
    model = nn.Sequential(
        fnn.ConvAct2d(1, 2, 3),
        fnn.ConvAct2d(2, 2, 1, activation="none"),
        fnn.Conv2d(2, 1, 1),
        fnn.ConvActPool2d(1, 2, 3),
    )
    assert fastcnn.convert(model, report=True)[1].skipped == []
    _, report = fastcnn.revert(model, report=True)
    assert [type(m) for m in model] == [fnn.ConvAct2d, nn.Conv2d, nn.Conv2d, fnn.ConvActPool2d]
    assert {s.name: s.reason.partition(" ")[0] for s in report.skipped} == {"0": "torch", "3": "torch"}


def test_parametrized_layers(operators_on_cpu):
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Conv2d(2, 3, 3)))
    other = copy.deepcopy(model)
    keys, input = list(model.state_dict()), torch.randn(1, 2, 5, 5)
    expected = model(input)
    fastcnn.convert(model)
    assert isinstance(model[0], fnn.Conv2d)
    assert not isinstance(other[0], fnn.Conv2d)  # a copy made before keeps its class
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(input), expected)
    model(input).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not isinstance(fastcnn.revert(copy.deepcopy(model))[0], fnn.Conv2d)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is fnn.Conv2d


def test_pickling_a_converted_model():
    model = fastcnn.convert(small_model())
    input = torch.randn(1, 3, 12, 12)
    restored = pickle.loads(pickle.dumps(model))
    assert type(restored[0]) is fnn.Conv2d
    assert torch.equal(restored(input), model(input))


def run(model, input):
    model.zero_grad()
    output = model(input)
    output = output.logits if hasattr(output, "logits") else output
    output.square().sum().backward()
    return output.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


# The side of the picture on the emulator, where a multiplication costs a thousand times more.
MODELS = {"resnet18": 16, "mobilenet_v2": 16, "googlenet": 16, "densenet121": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_torchvision_models(backend, name):
    models = pytest.importorskip("torchvision.models")
    side = MODELS[name] if backend.name == "emulated" else 32
    if side is None:
        pytest.skip("densenet121 shrinks its picture so often that it needs one too large for the emulator")
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    if name == "resnet18" and backend.name == "emulated":  # one block of each kind, not two
        model = models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    else:
        model = getattr(models, name)(num_classes=5, **options).to(backend.device)
    model.eval()  # batch statistics of a few pixels would blow rounding up
    input = torch.randn(1, 3, side, side, device=backend.device)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    expected, expected_grads = run(model, input)
    _, report = fastcnn.convert(model, report=True)
    assert len(report.swapped) > 10
    assert report.skipped == []
    model.load_state_dict(state)
    got, grads = run(model, input)
    assert_close(got, expected)
    assert len(grads) == len(expected_grads)
    for one, other in zip(grads, expected_grads, strict=True):
        assert_close(one, other)

    fastcnn.revert(model)
    assert not any(type(m).__module__.startswith("fastcnn") for m in model.modules())
    again, _ = run(model, input)
    assert torch.equal(again, expected)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the rounding that a deep network adds up, relative to the largest value."""
    error = (got - expected).abs().max()
    assert error <= 1e-4 * expected.abs().max() + 1e-12, f"off by {error} of {expected.abs().max()}"
