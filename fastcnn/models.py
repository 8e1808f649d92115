"""Models made of fastcnn layers, and the lookup of models by name."""

import importlib
import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from . import nn as fnn
from ._arguments import single


class ModelError(ValueError):
    """A model could not be found or built from what the user gave."""


def small_cnn(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """The classic small CNN: three 3x3 convolutions (32, 64, 64) each with ReLU and 2x2 max pooling, then
    a dense layer of 64 with ReLU and one of `num_classes`. No padding; 60,554 parameters at the defaults.

    Takes float images of shape (N, in_channels, image_size, image_size), gives logits (N, num_classes).
    Every convolution, its bias, its ReLU and its pooling are one kernel. Raises ValueError where a size is
    not positive or `image_size` is too small for three convolutions and poolings (the smallest is 22),
    TypeError where one is no integer.
    """
    num_classes = single("small_cnn", "num_classes", num_classes)
    in_channels = single("small_cnn", "in_channels", in_channels)
    image_size = single("small_cnn", "image_size", image_size)
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"small_cnn: {name} must be at least 1, got {value}")
    size = image_size
    for _ in range(3):
        size = (size - 2) // 2
    if size < 1:
        raise ValueError(
            f"small_cnn: image_size must be at least 22 (three 3x3 convolutions, each halved by pooling), "
            f"got {image_size}"
        )
    return nn.Sequential(
        OrderedDict(
            conv1=fnn.ConvActPool2d(in_channels, 32, 3, activation="relu"),
            conv2=fnn.ConvActPool2d(32, 64, 3, activation="relu"),
            conv3=fnn.ConvActPool2d(64, 64, 3, activation="relu"),
            flatten=nn.Flatten(),
            dense1=nn.Linear(64 * size * size, 64),
            relu=nn.ReLU(),
            dense2=nn.Linear(64, num_classes),
        )
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"small_cnn": small_cnn}


def build(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build the model called `name`: one of `MODELS`, or "module:function" for a function of the user's.

    A user's function is called with those of the keywords num_classes, in_channels and image_size that it
    names, and with num_classes where it takes any (**kwargs, as torchvision's models do); its module is
    looked up from the current folder too; torch's convolution and pooling layers in what it returns are
    swapped for fastcnn's by `fastcnn.convert`. That runs the code of the module, so `name` must come from
    somebody trusted. Raises `ModelError` where the name leads nowhere, the sizes don't fit the model or the
    function fails.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if name in MODELS:
        try:
            return MODELS[name](**sizes)
        except ValueError as error:
            raise ModelError(str(error)) from error
    from .convert import convert

    factory = _find(name)
    try:
        model = factory(**_those_taken(factory, sizes))
    except Exception as error:  # a user's code can raise anything
        raise ModelError(f"the model {name} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} must return a torch.nn.Module, it returned a {type(model).__name__}")
    return convert(model)


def _those_taken(factory: Callable[..., nn.Module], sizes: dict[str, int]) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    names = {p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names.add("num_classes")
    return {name: value for name, value in sizes.items() if name in names}


def _find(name: str) -> Callable[..., nn.Module]:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ModelError(
            f"there is no model {name!r}: expected one of {', '.join(MODELS)} or module:function"
        )
    # A console script, unlike `python -m`, does not look in the current folder.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(f"the model {name!r} could not be imported: {error}") from error
    try:
        factory = getattr(module, attribute)
    except AttributeError:
        raise ModelError(f"the module {module_name!r} has no function {attribute!r}") from None
    if not callable(factory):
        raise ModelError(f"{name!r} is not a function, it is a {type(factory).__name__}")
    return factory
