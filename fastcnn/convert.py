"""Changing a model's layers to this package's, and back, without touching what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, overload

import torch
from torch.nn.utils import parametrize

from fastcnn import nn
from fastcnn._fusion import fuse as _fuse
from fastcnn._fusion.layers import ConvAddAct2d
from fastcnn._report import Fused, Report, Skipped, Swapped
from fastcnn._report import class_name as _class_name

__all__ = ["Fused", "Report", "Skipped", "Swapped", "convert", "revert"]

M = TypeVar("M", bound=torch.nn.Module)

_OURS: dict[type, type] = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    torch.nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool2d,
}
_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _OURS.items()}
_FUSED = (nn.ConvAct2d, nn.ConvActPool2d, ConvAddAct2d)
_KINDRED = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
    torch.nn.modules.pooling._AdaptiveAvgPoolNd,
    torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    torch.nn.LPPool2d,
    torch.nn.FractionalMaxPool2d,
)


@overload
def convert(
    model: M,
    *,
    fuse: Literal[False] = ...,
    filter: Callable[[str, torch.nn.Module], bool] | None = ...,
    report: Literal[False] = ...,
) -> M: ...
@overload
def convert(
    model: M,
    *,
    fuse: Literal[False] = ...,
    filter: Callable[[str, torch.nn.Module], bool] | None = ...,
    report: Literal[True],
) -> tuple[M, Report]: ...
@overload
def convert(
    model: torch.nn.Module,
    *,
    fuse: bool,
    filter: Callable[[str, torch.nn.Module], bool] | None = ...,
    report: Literal[False] = ...,
) -> torch.nn.Module: ...
@overload
def convert(
    model: torch.nn.Module,
    *,
    fuse: bool,
    filter: Callable[[str, torch.nn.Module], bool] | None = ...,
    report: Literal[True],
) -> tuple[torch.nn.Module, Report]: ...
def convert(
    model: torch.nn.Module,
    *,
    fuse: bool = False,
    filter: Callable[[str, torch.nn.Module], bool] | None = None,
    report: bool = False,
) -> torch.nn.Module | tuple[torch.nn.Module, Report]:
    """Make every torch Conv2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d and AdaptiveMaxPool2d in `model` ours.

    Only the class of each module changes, in place: parameters, buffers, hooks, state_dict keys, training
    mode and whatever else it holds stay the same objects, so optimisers and saved weights keep working.
    `revert` undoes it. A module in `torch.nn.utils.parametrize` (weight_norm, for one) is converted too.
    Subclasses of torch's layers are somebody's own code: they are left alone, as is anything scripted or
    quantised; the report names them.

    `fuse` makes a model for inference of one in evaluation mode: a BatchNorm2d after a convolution is folded
    into its weights (in float64, rounded once), and an addition and an activation after it, or an activation
    and a 2x2 max pool, become part of its kernel. That is done where it can be proved to change nothing but
    rounding: every module is called once, nobody else sees the values between, no hooks, no shared
    parameters. The forwards are traced with `torch.fx` for it, on no data; where one cannot be traced, what
    it calls is looked into instead. A fused convolution is a `ConvAct2d` (a `Conv2d` if only a BatchNorm went
    into it, a `ConvActPool2d` with a pool) with new parameters where a BatchNorm was folded; the modules that
    it makes up for become `torch.nn.Identity`. Where the code itself has to change (it calls ``F.relu`` or
    adds, or calls one ReLU or pool twice), the smallest module around it is replaced by a
    `torch.fx.GraphModule` of the same layers, whose way through its code is what it was in evaluation mode;
    other methods and attributes of that module are gone.

    It cannot be undone, and state_dict keys change: save before it. Gradients flow through a fused model, and
    ``train()`` leaves the folded BatchNorms the constants they are.

    Args:
        model: any module; it may itself be one of the layers.
        fuse: also fold BatchNorms, and fuse additions, activations and max pools.
        filter: called with each candidate's name and module; False leaves that one alone, and a convolution
            or a pool unfused.
        report: also return the `Report`.

    Returns:
        `model` itself, or ``(model, Report)``. With `fuse`, use what is returned: if the model's own forward
        had to change, that is a GraphModule that takes its place.

    Raises:
        TypeError: `model` is no module.
        ValueError: `fuse`, and `model` is in training mode.
    """
    _check_module(model)
    done = Report()
    if filter is not None:
        filter = _asked_once(filter)
    if fuse and model.training:
        raise ValueError(
            "convert(fuse=True) folds BatchNorms as they are in evaluation mode, but the model is in "
            "training mode: call model.eval() first"
        )
    if fuse and not isinstance(model, torch.jit.ScriptModule):
        model = _fuse(model, filter or (lambda name, module: True), done)
    _exchange(model, _OURS, filter, done)
    return (model, done) if report else model


def _asked_once(filter: Callable[[str, torch.nn.Module], bool]) -> Callable[[str, torch.nn.Module], bool]:
    answers: dict[torch.nn.Module, bool] = {}

    def remembered(name: str, module: torch.nn.Module) -> bool:
        if module not in answers:
            answers[module] = bool(filter(name, module))
        return answers[module]

    return remembered


@overload
def revert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = ..., report: Literal[False] = ...
) -> M: ...
@overload
def revert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = ..., report: Literal[True]
) -> tuple[M, Report]: ...
def revert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = None, report: bool = False
) -> M | tuple[M, Report]:
    """Make every layer of ours in `model` torch's own again; the opposite of `convert`, with its arguments.

    A `ConvAct2d` stays (torch has no layer that also applies the activation), unless its activation is
    "none", and so does a `ConvActPool2d`; the report names them. They work without our kernels all the same.
    What ``convert(fuse=True)`` folded stays folded; the report says so.
    """
    _check_module(model)
    done = Report()
    _exchange(model, _TORCHS, filter, done)
    return (model, done) if report else model


def _check_module(model) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")


def _exchange(model, classes, filter, done) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        done.skipped.append(Skipped("", type(model), "a scripted module runs its own compiled code"))
    else:
        for name, module in _modules(model, done):
            _exchange_one(name, module, classes, filter, done)


def _modules(model: torch.nn.Module, done: Report) -> list[tuple[str, torch.nn.Module]]:
    """Every module once, with its first name; scripted ones are reported and not entered."""
    found: dict[torch.nn.Module, str] = {}

    def walk(name: str, module: torch.nn.Module) -> None:
        if module in found:
            return
        found[module] = name
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if isinstance(child, torch.jit.ScriptModule):
                done.skipped.append(
                    Skipped(full, type(child), "a scripted module runs its own compiled code")
                )
            else:
                walk(full, child)

    walk("", model)
    return [(name, module) for module, name in found.items()]


def _exchange_one(name, module, classes, filter, done) -> None:
    kind = type(module)
    parametrized = parametrize.is_parametrized(module)
    # parametrize gives a module a class of its own, derived from the real one.
    plain = kind.__bases__[0] if parametrized else kind
    if type(module) is nn.ConvAct2d and classes is _TORCHS and module.activation == "none":
        target = torch.nn.Conv2d
    else:
        target = classes.get(plain)
    if classes is _TORCHS and getattr(module, "folded", False):
        done.skipped.append(Skipped(name, plain, "a BatchNorm is folded into its weights, and stays there"))
    if target is None:
        reason = _reason(plain, classes)
        if reason is not None:
            done.skipped.append(Skipped(name, plain, reason))
        return
    if filter is not None and not filter(name, module):
        done.skipped.append(Skipped(name, plain, "the filter said so"))
        return
    # A new class, not new bases for the old one: copies of the module may share that.
    module.__class__ = type(kind.__name__, (target,), _namespace(kind)) if parametrized else target
    done.swapped.append(Swapped(name, plain, target))


def _namespace(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}


def _reason(kind: type, classes: dict[type, type]) -> str | None:
    """Why a convolution or pool cannot change; None for modules that this is not about."""
    if classes is _TORCHS:
        if kind in _FUSED:
            return "torch has no layer that applies the activation too; it runs without our kernels as well"
        base = next((ours for ours in _TORCHS if issubclass(kind, ours)), None)
        return base and f"a subclass of {_class_name(base)}, with code of its own"
    if kind in _TORCHS or kind in _FUSED:
        return None
    if kind.__module__.startswith("torch.ao.") and ("Conv" in kind.__name__ or "Pool" in kind.__name__):
        return "quantised layers have kernels of their own"
    if issubclass(kind, torch.nn.modules.lazy.LazyModuleMixin) and issubclass(kind, _KINDRED):
        return "a lazy layer has no sizes yet: run the model once, then convert"
    base = next((torchs for torchs in _OURS if issubclass(kind, torchs)), None)
    if base is not None:
        return f"a subclass of {_class_name(base)}, with code of its own"
    if issubclass(kind, _KINDRED):
        return "fastcnn has no such layer"
    return None
