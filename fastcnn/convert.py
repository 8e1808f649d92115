"""Changing a model's layers to this package's, and back, without touching what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar, overload

import torch
from torch.nn.utils import parametrize

from fastcnn import nn

__all__ = ["Report", "Skipped", "Swapped", "convert", "revert"]

M = TypeVar("M", bound=torch.nn.Module)

_OURS: dict[type, type] = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    torch.nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool2d,
}
_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _OURS.items()}
_KINDRED = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
    torch.nn.modules.pooling._AdaptiveAvgPoolNd,
    torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    torch.nn.LPPool2d,
    torch.nn.FractionalMaxPool2d,
)


@dataclass(frozen=True)
class Swapped:
    """One module whose class was changed: its name in the model, its class before and after."""

    name: str
    before: type
    after: type


@dataclass(frozen=True)
class Skipped:
    """One convolution or pool that was left as it is, and why."""

    name: str
    kind: type
    reason: str


@dataclass
class Report:
    """What `convert` or `revert` did: printed, a table with one line for each module."""

    swapped: list[Swapped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(_shown(s.name), _class_name(s.before), f"-> {_class_name(s.after)}") for s in self.swapped]
        rows += [(_shown(s.name), _class_name(s.kind), f"left as it is: {s.reason}") for s in self.skipped]
        name_width = max((len(name) for name, _, _ in rows), default=0)
        kind_width = max((len(kind) for _, kind, _ in rows), default=0)
        lines = [f"{len(self.swapped)} swapped, {len(self.skipped)} left as they are"]
        lines += [f"  {name:<{name_width}}  {kind:<{kind_width}}  {what}" for name, kind, what in rows]
        return "\n".join(lines)


def _shown(name: str) -> str:
    return name or "(the model itself)"


def _class_name(kind: type) -> str:
    module = kind.__module__
    for long, short in (("torch.nn.modules.", "torch.nn"), ("fastcnn.nn", "fastcnn.nn")):
        if module.startswith(long):
            module = short
    return f"{module}.{kind.__qualname__}"


@overload
def convert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = ..., report: Literal[False] = ...
) -> M: ...
@overload
def convert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = ..., report: Literal[True]
) -> tuple[M, Report]: ...
def convert(
    model: M, *, filter: Callable[[str, torch.nn.Module], bool] | None = None, report: bool = False
) -> M | tuple[M, Report]:
    """Make every torch Conv2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d and AdaptiveMaxPool2d in `model` ours.

    Only the class of each module changes, in place: parameters, buffers, hooks, state_dict keys, training
    mode and whatever else it holds stay the same objects, so optimisers and saved weights keep working.
    `revert` undoes it. A module in `torch.nn.utils.parametrize` (weight_norm, for one) is converted too.
    Subclasses of torch's layers are somebody's own code: they are left alone, as is anything scripted or
    quantised; the report names them.

    Args:
        model: any module; it may itself be one of the layers.
        filter: called with each candidate's name and module; False leaves that one alone.
        report: also return the `Report`.

    Returns:
        `model` itself, or ``(model, Report)``.
    """
    return _exchange(model, _OURS, filter, report)


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
    """
    return _exchange(model, _TORCHS, filter, report)


def _exchange(model, classes, filter, report):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    done = Report()
    if isinstance(model, torch.jit.ScriptModule):
        done.skipped.append(Skipped("", type(model), "a scripted module runs its own compiled code"))
    else:
        for name, module in _modules(model, done):
            _exchange_one(name, module, classes, filter, done)
    return (model, done) if report else model


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
        if kind in (nn.ConvAct2d, nn.ConvActPool2d):
            return "torch has no layer that applies the activation too; it runs without our kernels as well"
        base = next((ours for ours in _TORCHS if issubclass(kind, ours)), None)
        return base and f"a subclass of {_class_name(base)}, with code of its own"
    if kind in _TORCHS or kind in (nn.ConvAct2d, nn.ConvActPool2d):
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
