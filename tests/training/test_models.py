import sys

import pytest
import torch

from fastcnn import models
from fastcnn import nn as fnn


def test_small_cnn_has_its_layers_and_parameters():
    model = models.small_cnn()
    assert sum(p.numel() for p in model.parameters()) == 60_554
    convolutions = [layer for layer in model if isinstance(layer, fnn.ConvActPool2d)]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [
        (32, 1, 3, 3),
        (64, 32, 3, 3),
        (64, 64, 3, 3),
    ]
    # The keys of weights in run folders.
    names = ("conv1", "conv2", "conv3", "dense1", "dense2")
    assert list(model.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("size", "features"), [(22, 64), (28, 64), (33, 256), (64, 64 * 36)])
def test_small_cnn_fits_other_sizes(size, features):
    model = models.small_cnn(num_classes=3, in_channels=3, image_size=size)
    assert model.dense1.in_features == features
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_small_cnn_equals_plain_torch():
    model = models.small_cnn()
    x = torch.randn(3, 1, 28, 28)
    expected = x
    for number in (1, 2, 3):
        layer = getattr(model, f"conv{number}")
        expected = torch.nn.functional.conv2d(expected, layer.weight, layer.bias).relu()
        expected = torch.nn.functional.max_pool2d(expected, 2)
    expected = model.dense2(model.dense1(expected.flatten(1)).relu())
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_size": 21}, "at least 22"),
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
    ],
)
def test_small_cnn_refuses_what_cannot_be(wrong, said):
    with pytest.raises(ValueError, match=said):
        models.small_cnn(**wrong)


@pytest.mark.parametrize("wrong", [{"num_classes": "10"}, {"in_channels": 1.0}, {"image_size": 28.0}])
def test_small_cnn_says_what_is_no_integer(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=rf"small_cnn\(\): argument '{name}' must be an int, not"):
        models.small_cnn(**wrong)


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "def net(num_classes, in_channels):\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(in_channels, 4, 3), torch.nn.AdaptiveAvgPool2d(1),\n"
        "                               torch.nn.Flatten(), torch.nn.Linear(4, num_classes))\n"
        "def wrong():\n"
        "    return 3\n"
        "def open_net(*, width=4, **settings):\n"
        "    assert list(settings) == ['num_classes']\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, width, 3), torch.nn.AdaptiveAvgPool2d(1),\n"
        "                               torch.nn.Flatten(),\n"
        "                               torch.nn.Linear(width, settings['num_classes']))\n"
        "def broken(num_classes):\n"
        "    return [][num_classes]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_users_own_model_is_found_and_converted(own_models):
    model = models.build("own_models:net", num_classes=5, in_channels=3, image_size=16)
    assert type(model[0]) is fnn.Conv2d
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_a_function_that_takes_any_keyword_is_given_the_classes(own_models):
    model = models.build("own_models:open_net", num_classes=5, in_channels=1, image_size=16)
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 5)


def test_a_model_of_torchvision_is_built():
    pytest.importorskip("torchvision")
    model = models.build("torchvision.models:squeezenet1_1", num_classes=4, in_channels=3, image_size=64)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_models:broken", "own_models:broken could not be built: IndexError: list index out of range"),
        ("large_cnn", "no model 'large_cnn'"),
        ("no_such_module:net", "no_such_module"),
        ("own_models:nothing", "no function 'nothing'"),
        ("own_models:wrong", "must return a torch.nn.Module"),
        ("own_models:torch", "not a function"),
    ],
)
def test_a_model_that_cannot_be_had_is_explained(own_models, name, said):
    with pytest.raises(models.ModelError, match=said):
        models.build(name, num_classes=2, in_channels=1, image_size=28)
