"""Making the layers: in the modules that are there, or in a module whose forward is a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import Module

from fastcnn import nn
from fastcnn._fusion.chains import Chain, find
from fastcnn._fusion.layers import ConvAddAct2d
from fastcnn._fusion.model import Model
from fastcnn._fusion.tracing import Trace, Untraceable, entered, trace, watched

__all__ = ["Undo", "change_modules", "layer_class", "rebuilt"]

#: Puts the modules back as they were.
Undo = Callable[[], None]


def layer_class(chain: Chain) -> type[nn.Conv2d]:
    """The class of the layer that computes the chain."""
    if chain.addition is not None:
        return ConvAddAct2d
    if chain.pool is not None:
        return nn.ConvActPool2d
    return nn.ConvAct2d if chain.activation is not None else nn.Conv2d


def change_modules(traced: Trace, chain: Chain, model: Model) -> Undo:
    """Makes the chain's convolution the fused layer, and its other modules ones that do nothing."""
    modules = [module for node in chain.nodes if (module := traced.module(node)) is not None]
    before = [(module, type(module), dict(module.__dict__)) for module in modules]
    conv, *others = modules
    _become_layer(conv, traced, chain, model)
    for module in others:
        module.__class__ = torch.nn.Identity
        module.__dict__.update(_parameters={}, _buffers={}, _non_persistent_buffers_set=set())

    def undo() -> None:
        for module, kind, attributes in before:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)

    return undo


def _become_layer(layer: torch.nn.Conv2d, traced: Trace, chain: Chain, model: Model) -> None:
    conv = traced.module(chain.conv)
    if chain.norm is not None:
        weight, bias = model.fold(conv, traced.module(chain.norm))
        layer.__dict__.update(_parameters={**layer._parameters, "weight": weight, "bias": bias}, folded=True)
    layer.__class__ = layer_class(chain)
    if isinstance(layer, nn.ConvAct2d):
        layer.activation, layer.negative_slope = chain.function.name, chain.function.negative_slope
    if chain.addition is not None:
        layer.in_place = chain.adds_in_place


def _copied(module: Module) -> dict[str, Any]:
    """What the module holds, in containers of their own."""
    return {
        name: value.copy() if isinstance(value, (dict, set)) else value
        for name, value in module.__dict__.items()
    }


def rebuilt(owner: Module, chains: list[tuple[Trace, Chain]], model: Model) -> fx.GraphModule | str:
    """`owner` with these chains fused, as a module whose forward is a graph; or why there is none.

    The modules inside stay the same objects, except the chains' convolutions, which are new; `owner` itself
    goes on computing what it did. Modules around the chains' nodes become part of the graph.
    """
    if watched(owner) is not None:
        return watched(owner)
    within = {
        module
        for _, chain in chains
        for node in chain.nodes
        for module in node.meta["callers"][node.meta["callers"].index(owner) + 1 :]
    }
    try:
        own = trace(owner, lambda m: not entered(m) or watched(m) is not None or m not in within)
    except Untraceable as error:
        return error.reason
    wanted = {_key(traced, chain) for traced, chain in chains}
    additions = {traced.module(chain.conv) for traced, chain in chains if chain.addition is not None}
    again = [chain for chain in find(own, model, additions).chains if _key(own, chain) in wanted]
    if len(again) != len(wanted):
        return "its forward, on its own, does something else"
    layers = {}
    for chain in again:
        conv = own.module(chain.conv)
        layer = object.__new__(type(conv))
        layer.__dict__.update(_copied(conv))
        _become_layer(layer, own, chain, model)
        layers[chain.conv.target] = layer
    for chain in again:
        _rewrite(own.graph, chain)
    own.graph.lint()
    return _graph_module(own, layers)


def _key(traced: Trace, chain: Chain) -> tuple[Any, ...]:
    norm = None if chain.norm is None else traced.module(chain.norm)
    added, pooled = chain.addition is not None, chain.pool is not None
    return traced.module(chain.conv), norm, added, chain.adds_in_place, chain.function, pooled


def _rewrite(graph: fx.Graph, chain: Chain) -> None:
    # With an addition the layer runs in its place, where the residual is known; else in the convolution's.
    inputs = (chain.conv.args[0],) if chain.addition is None else (chain.conv.args[0], chain.residual)
    with graph.inserting_before(chain.addition or chain.conv):
        layer = graph.call_module(chain.conv.target, inputs)
    chain.end.replace_all_uses_with(layer)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _graph_module(own: Trace, layers: dict[str, Module]) -> fx.GraphModule:
    held: dict[str, Any] = {}
    for node in own.graph.nodes:
        # "is_wrapped" keeps a function whole when a pickle is loaded; the rest is about the old module.
        node.meta = {key: value for key, value in node.meta.items() if key == "is_wrapped"}
        if node.op == "call_module":
            held[node.target] = layers.get(node.target) or own.module(node)
        elif node.op == "get_attr":
            held[node.target] = own.constants.get(node.target, _attribute(own.root, node.target))
    # The tracer's class would be pickled, and asked for by name when the module is loaded.
    own.graph._tracer_cls = None
    module = fx.GraphModule(held, own.graph, class_name=type(own.root).__name__)
    for name, part in module.named_modules():
        if type(part) is Module or part is module:
            part.training = own.root.get_submodule(name).training
    return module


def _attribute(root: Module, target: str) -> Any:
    value: Any = root
    for name in target.split("."):
        value = getattr(value, name, None)
    return value
