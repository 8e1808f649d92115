"""Fusing BatchNorm, addition, activation and max pool into the convolutions before them, where proved right.

A module's forward is traced (`tracing`), chains are found in its graph and proved (`chains`, `aliasing`), and
made in place where only modules are involved, else by rebuilding the smallest module around them (`apply`).
What cannot be traced is left alone, and the modules that it calls whole (`wholes`) are looked into instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection

import torch
from torch.nn import Module

from fastcnn._fusion.apply import change_modules, layer_class, rebuilt
from fastcnn._fusion.chains import Chain, find
from fastcnn._fusion.model import Model
from fastcnn._fusion.tracing import Trace, Untraceable, diverted, entered, trace_around
from fastcnn._fusion.wholes import called_whole
from fastcnn._report import Fused, Report, Skipped, Swapped

__all__ = ["fuse"]


def fuse(root: Module, allowed: Callable[[str, Module], bool], report: Report) -> Module:
    """Fuses what it can in `root`, in evaluation mode, and writes down in `report` what it did.

    Returns `root`, or the module that takes its place where its own forward had to be rebuilt.
    """
    order = {name: place for place, (name, _) in enumerate(root.named_modules())}
    fusion = _Fusion(Model(root, allowed), report)
    fusion.look_into(root)
    report.fused.sort(key=lambda fused: order[fused.name])
    report.rebuilt.sort(key=lambda swapped: order[swapped.name])
    report.unfused.sort(key=lambda skipped: order[skipped.name])
    return fusion.model.root


class _Fusion:
    def __init__(self, model: Model, report: Report) -> None:
        self.model = model
        self._report = report
        self._seen: set[Module] = set()

    def look_into(self, module: Module) -> None:
        """Fuses in one module, which its callers use as a whole."""
        if module in self._seen or not _has_convolutions(module):
            return
        self._seen.add(module)
        if diverted(module) is not None:
            self._leave(module, diverted(module))
            return
        try:
            traced = trace_around(module)
        except Untraceable as error:
            self._leave(module, error.reason)
            for child, whole in called_whole(module).items():
                if whole:
                    self.look_into(child)
                elif _has_convolutions(child):
                    self._leave(child, "the code around it may use its parts one by one")
            return
        found = find(traced, self.model)
        for conv, reason in found.refused.items():
            self._leave(conv, reason)
        self._make(traced, found.chains)
        for opaque, reason in traced.opaque.items():
            self._look_around(traced, opaque, reason)

    def _look_around(self, traced: Trace, module: Module, reason: str) -> None:
        """A module that a graph calls without showing what is in it."""
        if isinstance(module, torch.jit.ScriptModule) or not _has_convolutions(module):
            return
        inside = set(module.modules()) - {module}
        if not entered(module):
            self._leave(module, reason)
        elif inside & (traced.read() | {traced.module(node) for node in traced.graph.nodes}):
            self._leave(module, "parts of it are used from outside it")
        else:
            self.look_into(module)

    def _leave(self, module: Module, reason: str) -> None:
        self._report.unfused.append(Skipped(self.model.name(module), type(module), reason))

    def _note(self, traced: Trace, chain: Chain) -> None:
        parts = []
        for node in chain.nodes:
            module = traced.module(node)
            if module is not None:
                parts.append(self.model.name(module))
            else:
                calls = {chain.addition: "add", chain.pool: "max_pool2d"}
                parts.append(calls.get(node, chain.function.name))
        self._report.fused.append(
            Fused(tuple(parts), layer_class(chain), chain.function.name, chain.addition is not None)
        )

    def _make(self, traced: Trace, chains: list[Chain]) -> None:
        """Makes the chains: rebuilds modules where code has to change, and changes modules elsewhere."""
        made: dict[Module, tuple[Module, list[Chain]]] = {}
        left = self._rebuild(traced, chains, made)
        if made and traced.root not in made and not self._unnoticed(traced, made):
            self._leave(
                traced.root, "its forward asks modules that would be rebuilt for more than their results"
            )
            made, left = {}, _for_modules(chains)
        for owner, (_, owned) in made.items():
            for chain in owned:
                self._note(traced, chain)
            self._report.rebuilt.append(Swapped(self.model.name(owner), type(owner), torch.fx.GraphModule))
        self._change_modules(traced, left)

    def _rebuild(
        self, traced: Trace, chains: list[Chain], made: dict[Module, tuple[Module, list[Chain]]]
    ) -> list[Chain]:
        """Makes what asks for other code, and gives the chains that are left for modules to compute.

        `made` gets each module that was replaced, what has its place now, and the chains in that.
        """
        groups = _by_owner(chains)
        taken = {chain for owned in groups.values() for chain in owned}
        left = [chain for chain in chains if chain not in taken]
        for owner, owned in groups.items():
            module = rebuilt(owner, [(traced, chain) for chain in owned], self.model)
            if isinstance(module, str):
                self._leave(owner, f"its forward would have to be rebuilt, which cannot be: {module}")
                its = [chain for chain in owned if chain.owner[-1] is owner]
                left += _for_modules(its)
                left += self._rebuild(traced, [chain for chain in owned if chain not in its], made)
            else:
                made[owner] = (module, owned)
                self.model.replace(owner, module)
        return left

    def _unnoticed(self, traced: Trace, made: dict[Module, tuple[Module, list[Chain]]]) -> bool:
        """Whether the code around the rebuilt modules calls them as the old ones; if not, those are back."""
        after = _code(traced.root, {module for module, _ in made.values()})
        for owner, (module, _) in reversed(made.items()):
            self.model.replace(module, owner)
        if after is None or after != _code(traced.root, set(made)):
            return False
        for owner, (module, _) in made.items():
            self.model.replace(owner, module)
        return True

    def _change_modules(self, traced: Trace, chains: list[Chain]) -> None:
        """Makes chains in the modules that are there; the code around them must not notice."""
        if not chains or self._changed_unnoticed(traced, chains):
            return
        # Somebody's code did: find out whose, one class of modules at a time.
        alike: dict[type, list[Chain]] = defaultdict(list)
        for chain in chains:
            alike[type(chain.owner[-1])].append(chain)
        for some in alike.values():
            if len(alike) == 1 or not self._changed_unnoticed(traced, some):
                self._leave(some[0].owner[-1], "its forward asks layers for more than their results")

    def _changed_unnoticed(self, traced: Trace, chains: list[Chain]) -> bool:
        root = self.model.current(traced.root)
        before = _code(root)
        undoes = [change_modules(traced, chain, self.model) for chain in chains]
        if before is None or _code(root) != before:
            for undo in undoes:
                undo()
            return False
        for chain in chains:
            self._note(traced, chain)
        return True


def _code(root: Module, whole: Collection[Module] = ()) -> str | None:
    """What `root` does, as text; None where that cannot be told."""
    try:
        return str(trace_around(root, whole).graph)
    except Untraceable:
        return None


def _for_modules(chains: list[Chain]) -> list[Chain]:
    return [kept for chain in chains if (kept := chain.for_modules()) is not None]


def _by_owner(chains: list[Chain]) -> dict[Module, list[Chain]]:
    """The modules to rebuild, those inside others first, each with the chains that are made in it."""
    owned: dict[tuple[Module, ...], list[Chain]] = defaultdict(list)
    for chain in chains:
        owned[chain.owner].append(chain)
    needed = {owner for owner, its in owned.items() if any(not chain.by_modules for chain in its)}
    groups: dict[Module, list[Chain]] = {}
    taken: set[tuple[Module, ...]] = set()
    for owner in sorted(needed, key=len):
        if owner in taken:
            continue
        group = list(owned[owner])
        for chain in group:
            # A module that becomes part of the graph has its own chains made there.
            for node in chain.nodes:
                callers = node.meta["callers"]
                for inner in (callers[:i] for i in range(len(owner) + 1, len(callers) + 1)):
                    if inner in needed and inner not in taken:
                        taken.add(inner)
                        group += owned[inner]
        groups[owner[-1]] = group
    return dict(reversed(groups.items()))


def _has_convolutions(module: Module) -> bool:
    return any(isinstance(part, torch.nn.Conv2d) for part in module.modules())
