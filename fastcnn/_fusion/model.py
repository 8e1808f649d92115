"""The model as a whole: its modules' names, who else holds them, and what was folded already."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection

import torch
from torch.nn import Module, Parameter

from fastcnn._fusion import folding
from fastcnn._fusion.reached import reached
from fastcnn._fusion.tracing import watched

__all__ = ["Model"]


class Model:
    """What one call of `convert` knows of the model, whichever part of it is being looked at."""

    def __init__(self, root: Module, allowed: Callable[[str, Module], bool]) -> None:
        self.root = root
        self._names = {module: name for name, module in root.named_modules()}
        self._held = Counter(
            child for module in root.modules() for child in module._modules.values() if child is not None
        )
        self._parameters = Counter(
            parameter for module in root.modules() for parameter in module._parameters.values()
        )
        self._several = {
            part for module, places in self._held.items() if places > 1 for part in module.modules()
        }
        #: Who reaches a module or parameter by other ways than the model's tree, and who does in a hook.
        self._reached_by: dict[Module | Parameter, set[Module]] = defaultdict(set)
        self._hooked_by: dict[Module | Parameter, set[Module]] = defaultdict(set)
        for holder in root.modules():
            for by, found in zip((self._reached_by, self._hooked_by), reached(holder), strict=True):
                for part in found:
                    by[part].add(holder)
        self._allowed = allowed
        self._replaced: dict[Module, Module] = {}
        self._folded: dict[tuple[Module, Module], tuple[Parameter, Parameter] | str] = {}

    def name(self, module: Module) -> str:
        """The module's first name in the model."""
        return self._names[module]

    def allows(self, conv: Module) -> bool:
        """Whether the caller's filter lets this convolution change."""
        return self._allowed(self.name(conv), conv)

    def problem(self, module: Module) -> str | None:
        """Why this module cannot be made another, whatever calls it; in words."""
        reason = watched(module)
        if reason is not None:
            return reason
        if self._held[module] > 1:
            return "it has several places in the model"
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            if self._parameters[parameter] > 1:
                return "it shares a parameter with another module"
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
                return "a parameter of it has hooks"
        return None

    def reach_problem(self, module: Module, seen: Collection[Module]) -> str | None:
        """Why others may see it change, beside its callers in the tree. What the forwards of the modules in
        `seen` do with what they hold, a graph shows; hooks, and whoever else holds it, are in none.
        """
        known: set[Module] = set()
        left: list[Module | Parameter] = [module, *(p for p in module._parameters.values() if p is not None)]
        while left:
            part = left.pop()
            for holder in self._hooked_by.get(part, ()):
                return f"a hook of {self._words(holder)} may use it, too"
            for holder in self._reached_by.get(part, ()):
                if holder not in seen or holder in self._several:
                    return f"{self._words(holder)} may use it, too: it holds it other than as its submodule"
                if holder not in known:
                    known.add(holder)
                    left.append(holder)
        return None

    def _words(self, module: Module) -> str:
        return f"{self._names[module]!r}" if self._names.get(module) else "the model itself"

    def holders_problem(self, path: list[Module]) -> str | None:
        """Why a module cannot be changed for its place in the model: the modules on the way to it."""
        if any(self._held[module] > 1 for module in path):
            return "a module around it has several places in the model"
        return None

    def fold(self, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> tuple[Parameter, Parameter] | str:
        """Weight and bias with the norm folded into them, or why there are none."""
        key = (conv, norm)
        if key not in self._folded:
            self._folded[key] = folding.problem(conv, norm) or folding.fold(conv, norm)
        return self._folded[key]

    def current(self, module: Module) -> Module:
        """The module that is in the place of this one now."""
        return self._replaced.get(module, module)

    def replace(self, old: Module, new: Module) -> None:
        """Puts `new` wherever `old` is; the other way round, that is undone."""
        if self._replaced.get(new) is old:
            del self._replaced[new]
        else:
            self._replaced[old] = new
        self._names[new] = self._names[old]
        self._held[new] = self._held[old]
        if self.root is old:
            self.root = new
        for module in list(self.root.modules()):
            for name, child in module._modules.items():
                if child is old:
                    module._modules[name] = new
