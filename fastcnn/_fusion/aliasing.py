"""Which nodes of a graph may share memory, and which write to memory that is there already."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fastcnn._fusion.in_place import iadd, imul, isub, itruediv
from fastcnn._fusion.tracing import Trace, watched

__all__ = ["Memory", "in_place_operand"]

_WRITING = (iadd, isub, imul, itruediv)
_HARMLESS = ("_operator", "builtins", "math")
_OUTSIDE = "what the module is given or holds"


class Memory:
    """The memory of a traced module's values, as far as the graph tells; in doubt two values share it."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._origins: dict[fx.Node, frozenset[Any]] = {}
        self._places = {node: place for place, node in enumerate(trace.graph.nodes)}
        self._writes: list[tuple[int, fx.Node, frozenset[Any]]] = []
        for node in trace.graph.nodes:
            written = [self._origins[operand] for operand in _written(trace, node)]
            if written:
                self._writes.append((self._places[node], node, frozenset().union(*written)))
            self._origins[node] = self._origin(node)

    def place(self, node: fx.Node) -> int:
        """When the node runs."""
        return self._places[node]

    def written_between(self, value: fx.Node, first: fx.Node, last: fx.Node, but: set[fx.Node]) -> bool:
        """Whether a node between the two, other than `but`, may write to the memory of `value`."""
        origin = self._origins[value]
        return any(
            self._places[first] < place < self._places[last] and node not in but and written & origin
            for place, node, written in self._writes
        )

    def _origin(self, node: fx.Node) -> frozenset[Any]:
        if node.op in ("placeholder", "get_attr"):
            return frozenset((_OUTSIDE,))
        module = self._trace.module(node)
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)) and watched(module) is None:
            return frozenset((node,))
        return frozenset((node,)).union(*(self._origins[operand] for operand in node.all_input_nodes))


def in_place_operand(trace: Trace, node: fx.Node) -> bool:
    """Whether the node writes to one of its operands, as far as its kind tells."""
    return any(True for _ in _written(trace, node))


def _written(trace: Trace, node: fx.Node) -> Iterator[fx.Node]:
    """The operands that the node may write to."""
    if node.op == "call_module":
        module = trace.module(node)
        known = type(module).__module__.startswith(("torch.nn.", "fastcnn.")) and not any(
            True for _ in module.children()
        )
        if not known or getattr(module, "inplace", False) or watched(module) is not None:
            yield from node.all_input_nodes
    elif node.op == "call_method":
        name = node.target
        if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name[:3] == "__i":
            yield from _first(node)
    elif node.op == "call_function":
        yield from _written_by_function(node)


def _first(node: fx.Node) -> list[fx.Node]:
    return [node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else node.all_input_nodes


def _written_by_function(node: fx.Node) -> Iterator[fx.Node]:
    function = node.target
    home = getattr(function, "__module__", None) or ""
    name = getattr(function, "__name__", "")
    torchs = isinstance(function, (types.BuiltinFunctionType, types.FunctionType)) and (
        home.partition(".")[0] in ("", "torch", *_HARMLESS)
    )
    if not torchs:
        # Somebody's own function, kept whole; of ours, those that write to their first operand.
        yield from _first(node) if function in _WRITING else node.all_input_nodes
    elif name.endswith("_") and not name.endswith("__"):
        yield from node.all_input_nodes
    elif home == "_operator" and (name == "setitem" or (name[0] == "i" and name not in _READING)):
        yield from _first(node)
    elif node.kwargs.get("out") is not None or _inplace(node):
        yield from node.all_input_nodes


_READING = ("index", "indexOf", "inv", "invert", "is_", "is_not", "itemgetter")


def _inplace(node: fx.Node) -> bool:
    """Whether the function is called with ``inplace=True``, by name or by position."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):
        return False
    return "inplace" in names and bool(dict(zip(names, node.args, strict=False)).get("inplace", False))
