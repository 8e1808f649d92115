"""What a module can reach by other ways than the model's tree: plain lists, closures, objects, hooks."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module, Parameter

__all__ = ["reached"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: What `torch.nn.Module` itself keeps: the tree, and hooks that run elsewhere than in calls.
_TORCHS = frozenset(vars(Module()))
_COLLECTIONS = (list, tuple, set, frozenset, deque)
#: These lead to whole libraries, or to what no forward runs.
_DEAD_ENDS = (type, types.ModuleType, types.CodeType, types.FrameType, fx.Graph, torch.dtype, torch.device)


def reached(module: Module) -> tuple[set[Module | Parameter], set[Module | Parameter]]:
    """The modules (with all inside them) and parameters that the module reaches so; those its hooks do."""
    own: list[Any] = [value for name, value in vars(module).items() if name not in _TORCHS]
    for kind in type(module).__mro__:
        if kind is not object and not kind.__module__.startswith(("torch.", "fastcnn.")):
            own += vars(kind).values()
    return _found(module, own), _found(module, [vars(module).get(name) for name in _HOOKS])


def _found(holder: Module, values: list[Any]) -> set[Module | Parameter]:
    found: set[Module | Parameter] = set()
    seen: dict[int, Any] = {}  # keeps what it has seen, for ids to stay theirs
    left = list(values)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Parameter):
            found.add(value)
        elif isinstance(value, Module):
            for part in set(value.modules()) - found:
                found.add(part)
                found.update(parameter for parameter in part._parameters.values() if parameter is not None)
                left += [inner for name, inner in vars(part).items() if name not in _TORCHS]
        else:
            left += _inside(value, holder)
    return found


def _inside(value: Any, holder: Module) -> Iterator[Any]:
    if value is None or isinstance(value, (str, bytes, int, float, complex, Tensor, *_DEAD_ENDS)):
        return
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, _COLLECTIONS):
        yield from value
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, types.MethodType):
        yield value.__func__
        if value.__self__ is not holder:  # which a hook is given anyway
            yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, types.FunctionType):
        yield from (value.__defaults__, value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
    elif isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        yield value.__self__
    names = ["__dict__"]
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    for name in names:
        try:
            yield object.__getattribute__(value, name)
        except AttributeError:  # it has none, or the slot is empty
            continue
