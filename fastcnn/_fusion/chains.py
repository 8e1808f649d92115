"""The sequences that one fused layer computes, found in a module's graph and proved.

A chain starts at a convolution and grows step by step: the BatchNorm after it, an addition, an activation,
and where nothing is added a 2x2 max pool. Each step asks that nobody else sees the value so far. Another
fusion is another step, after these.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.nn import Module
from torch.nn.utils import parametrize

from fastcnn import functional, nn
from fastcnn._checks import activation_problem
from fastcnn._fusion.aliasing import Memory, in_place_operand
from fastcnn._fusion.in_place import iadd
from fastcnn._fusion.model import Model
from fastcnn._fusion.tracing import Trace, watched

__all__ = ["Chain", "find"]

_ACTIVATIONS: dict[type, str] = {
    torch.nn.ReLU: "relu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.SiLU: "silu",
    torch.nn.GELU: "gelu",
    torch.nn.Hardswish: "hardswish",
    torch.nn.LeakyReLU: "leaky_relu",
}
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid, torch.special.expit), "sigmoid"),
    **dict.fromkeys(("sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"), "tanh"),
    F.silu: "silu",
    F.gelu: "gelu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
}
_ADDITIONS = (operator.add, iadd, torch.add, "add", "add_")
_MAX_POOLS = (torch.nn.MaxPool2d, nn.MaxPool2d)
_MAX_POOL_FUNCTIONS = (F.max_pool2d, torch.max_pool2d, functional.max_pool2d)
#: The options of a max pool in the order of the functions' arguments, and what they are of the fused one.
_HALVING = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}
_FLAGS = ("ceil_mode", "return_indices")

_MOST_TAPS = 25
_MOST_PRODUCTS = 150


@dataclass(frozen=True)
class Activation:
    name: str
    negative_slope: float = 0.01


@dataclass(eq=False)
class Chain:
    """A convolution and what is fused into it, each a node of one graph; at most one of each kind."""

    conv: fx.Node
    norm: fx.Node | None = None
    addition: fx.Node | None = None
    adds_in_place: bool = False
    activation: fx.Node | None = None
    function: Activation = Activation("none")
    pool: fx.Node | None = None
    #: The nodes that no module called only here computes: the code around them has to change.
    in_code: frozenset[fx.Node] = frozenset()

    @property
    def nodes(self) -> list[fx.Node]:
        nodes = (self.conv, self.norm, self.addition, self.activation, self.pool)
        return [node for node in nodes if node is not None]

    @property
    def by_modules(self) -> bool:
        """Whether modules that are called only here can do it all, with the code around them as it is."""
        return not self.in_code

    @property
    def residual(self) -> fx.Node:
        """What the addition adds, as its operands are now: rewriting another chain may change them."""
        own = self.norm or self.conv
        (other,) = (value for value in self.addition.args if value is not own)
        return other

    @property
    def end(self) -> fx.Node:
        """The node whose value the fused layer gives."""
        return self.nodes[-1]

    @property
    def owner(self) -> tuple[Module, ...]:
        """The forwards, outermost first, that all nodes are in: the last is what a rebuilding starts from."""
        shortest, *others = sorted((node.meta["callers"] for node in self.nodes), key=len)
        return next(
            callers
            for length in range(len(shortest), 0, -1)
            if all(other[:length] == (callers := shortest[:length]) for other in (shortest, *others))
        )

    def for_modules(self) -> Chain | None:
        """The part of it that can do without changing the code around it, if there is any."""
        if self.by_modules:
            return self
        part = Chain(self.conv, self.norm)
        if self.addition is None and self.activation not in self.in_code:
            part.activation, part.function = self.activation, self.function
        return part if len(part.nodes) > 1 else None


@dataclass
class Found:
    """The chains of a graph, and for convolutions that looked like the start of one why they are none."""

    chains: list[Chain]
    refused: dict[Module, str]


def find(trace: Trace, model: Model, additions: Container[Module] | None = None) -> Found:
    """All chains in the graph. No node is in two of them.

    `additions` are the convolutions that are known to have one, from a graph that showed more.
    """
    return _Finder(trace, model, additions).find()


class _Finder:
    def __init__(self, trace: Trace, model: Model, additions: Container[Module] | None) -> None:
        self._additions = additions
        self._trace = trace
        self._model = model
        self._memory = Memory(trace)
        self._calls = Counter(trace.module(node) for node in trace.graph.nodes if node.op == "call_module")
        self._read = trace.read()
        self._refused: dict[Module, str] = {}

    def find(self) -> Found:
        convs = [node for node in self._trace.graph.nodes if self._starts(node)]
        chains = [chain for node in convs if (chain := self._with_norm(Chain(node))) is not None]
        self._add_additions(chains)
        for chain in chains:
            self._add_activation(chain)
            self._add_pool(chain)
            others = (chain.addition, chain.activation, chain.pool)
            chain.in_code = frozenset(
                node for node in others if node is not None and not self._by_module(node)
            )
        return Found([chain for chain in chains if len(chain.nodes) > 1], self._refused)

    def _starts(self, node: fx.Node) -> bool:
        """Whether the node is a convolution that can become a fused layer."""
        module = self._trace.module(node)
        if not isinstance(module, torch.nn.Conv2d):
            return False
        reason = self._conv_problem(node, module)
        if reason is None:
            return self._model.allows(module)
        if any(self._norm(user) or self._activation_of(user) for user in node.users):
            self._refused[module] = reason
        return False

    def _conv_problem(self, node: fx.Node, module: torch.nn.Conv2d) -> str | None:
        if parametrize.is_parametrized(module):
            return "its parameters are computed (torch.nn.utils.parametrize)"
        if type(module) is nn.ConvAct2d and module.activation != "none":
            return "an activation stands between it and what follows"
        if type(module) not in (torch.nn.Conv2d, nn.Conv2d, nn.ConvAct2d):
            return f"{type(module).__name__} is a subclass of torch.nn.Conv2d, with code of its own"
        if not _of_one_value(node):
            return "it is called with more than its input"
        if not module.weight.is_floating_point():
            return f"it computes in {module.weight.dtype}"
        return self._problem(node, module)

    def _problem(self, node: fx.Node, module: Module) -> str | None:
        """Why a called module cannot be made another."""
        if self._calls[module] != 1:
            return f"it is called {self._calls[module]} times"
        if module in self._read:
            return "its parameters are used outside it"
        names = node.target.split(".")
        around = [self._trace.root.get_submodule(".".join(names[:i])) for i in range(1, len(names))]
        if any(holder in self._calls for holder in around):
            return "it is in a module that is called as a whole, too"
        return self._model.problem(module) or self._model.holders_problem(around)

    def _norm(self, node: fx.Node) -> torch.nn.BatchNorm2d | None:
        module = self._trace.module(node)
        return module if type(module) is torch.nn.BatchNorm2d and _of_one_value(node) else None

    def _with_norm(self, chain: Chain) -> Chain | None:
        """The chain with the norm after it, if there is one; None if one is there and cannot be folded."""
        conv = self._trace.module(chain.conv)
        norms = [user for user in chain.conv.users if self._norm(user)]
        if not norms:
            return chain
        if len(chain.conv.users) > 1:
            self._refused[conv] = "what it gives is used more than once"
            return None
        module = self._norm(norms[0])
        reason = self._problem(norms[0], module)
        if reason is not None:
            self._refused[conv] = f"of its BatchNorm: {reason}"
            return None
        folded = self._model.fold(conv, module)
        if isinstance(folded, str):
            self._refused[conv] = folded
            return None
        chain.norm = norms[0]
        return chain

    def _add_additions(self, chains: list[Chain]) -> None:
        ends = {chain.end: chain for chain in chains}
        for node in self._trace.graph.nodes:
            operands = _addends(node)
            if operands is None:
                continue
            in_place = in_place_operand(self._trace, node)
            # Written to, the first operand may be seen changed by others: it must be the chain's own.
            hosts = [
                ends[value]
                for value in operands
                if value in ends
                and len(value.users) == 1
                and not (in_place and value is not operands[0])
                and self._may_wait(ends[value], node)
            ]
            if hosts:
                # The one that runs last waits least.
                chain = max(hosts, key=lambda host: self._memory.place(host.conv))
                chain.addition, chain.adds_in_place = node, in_place

    def _may_wait(self, chain: Chain, node: fx.Node) -> bool:
        """Whether the convolution would read the same input if it ran in the place of `node`."""
        if self._additions is not None:
            return self._trace.module(chain.conv) in self._additions
        return not self._memory.written_between(
            chain.conv.all_input_nodes[0], chain.conv, node, set(chain.nodes)
        )

    def _add_activation(self, chain: Chain) -> None:
        if len(chain.end.users) != 1:
            return
        (user,) = chain.end.users
        activation = self._activation_of(user)
        if activation is not None:
            chain.activation, chain.function = user, activation

    def _add_pool(self, chain: Chain) -> None:
        if chain.addition is not None or len(chain.end.users) != 1:
            return
        (user,) = chain.end.users
        if _pooled_well(self._trace.module(chain.conv)) and self._is_pool(user):
            chain.pool = user

    def _by_module(self, node: fx.Node) -> bool:
        module = self._trace.module(node)
        return module is not None and self._problem(node, module) is None

    def _is_pool(self, node: fx.Node) -> bool:
        """Whether the node is the max pool that our kernels have behind a convolution."""
        if node.op == "call_module":
            module = self._trace.module(node)
            return (
                type(module) in _MAX_POOLS
                and _of_one_value(node)
                and watched(module) is None
                and _halves({name: getattr(module, name) for name in (*_HALVING, *_FLAGS)})
                and self._model.allows(module)
            )
        if node.op != "call_function" or node.target not in _MAX_POOL_FUNCTIONS or not node.args:
            return False
        options = dict(zip((*_HALVING, *_FLAGS), node.args[1:], strict=False))
        return _halves({**options, **node.kwargs})

    def _activation_of(self, node: fx.Node) -> Activation | None:
        """The activation that this node applies to its first operand, if our kernels have it."""
        if node.op == "call_module":
            module = self._trace.module(node)
            name = _ACTIVATIONS.get(type(module))
            if name is None or not _of_one_value(node) or watched(module) is not None:
                return None
            if name == "gelu" and module.approximate != "none":
                return None
            return _activation(name, getattr(module, "negative_slope", 0.01))
        name = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
        if name is None or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        options = dict(node.kwargs)
        names = {"gelu": ["approximate"], "leaky_relu": ["negative_slope", "inplace"]}.get(name, ["inplace"])
        options.update(zip(names, node.args[1:], strict=False))
        if len(node.args) > 1 + len(names) or not options.keys() <= set(names):
            return None
        if (
            not isinstance(options.get("inplace", False), bool)
            or options.get("approximate", "none") != "none"
        ):
            return None
        return _activation(name, options.get("negative_slope", 0.01))


def _activation(name: str, negative_slope: Any) -> Activation | None:
    if name != "leaky_relu":
        return Activation(name)
    if not isinstance(negative_slope, (int, float)) or activation_problem(name, negative_slope) is not None:
        return None
    return Activation(name, float(negative_slope))


def _pooled_well(conv: torch.nn.Conv2d) -> bool:
    """Whether the kernels that also pool are a good choice for the convolution itself.

    They unroll 3x3 windows of stride 1, with less traffic a product than the generic tile, and use tensor
    cores in half precision. Other windows cost a third more arithmetic in float32, by their planner's
    estimate; a write and a read of the convolution's output take an H200 as long as some 50 products a pixel
    (by its data sheet): a third of 150. Large windows over few channels have kernels of their own. The layer
    leaves the choice open all the same: a planner that knows better runs a convolution, then a pool.
    """
    if conv.groups != 1:
        return False
    if conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1):
        return True
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return taps <= _MOST_TAPS and taps * conv.in_channels <= _MOST_PRODUCTS


def _halves(options: dict[str, Any]) -> bool:
    """Whether these are a max pool's options of a 2x2 window, stride 2 and nothing else."""
    if not options.keys() <= {*_HALVING, *_FLAGS} or any(options.get(flag, False) for flag in _FLAGS):
        return False
    if options.get("stride") in (None, (), []):  # the kernel's
        options = {**options, "stride": options.get("kernel_size")}
    return all(
        type(value) in (int, tuple, list, fx.immutable_collections.immutable_list)
        and value in (expected, (expected, expected), [expected, expected])
        for name, expected in _HALVING.items()
        for value in (options.get(name, 0 if name == "padding" else 1),)
    )


def _of_one_value(node: fx.Node) -> bool:
    return len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs


def _addends(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that this node adds, if it adds two, unscaled, and they are not the same."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1 or not node.kwargs.keys() <= {"alpha"}:
        return None
    if not all(isinstance(value, fx.Node) for value in node.args) or node.args[0] is node.args[1]:
        return None
    return node.args
