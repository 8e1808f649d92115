"""A module's forward as a `torch.fx` graph, without running it on data and without leaving marks in it.

What plain symbolic tracing records wrongly is refused here instead: a test of a value's class (a proxy is no
tensor, whatever it stands for), in-place operators, random numbers drawn, attributes set by the forward.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.nn import Module

from fastcnn._fusion.in_place import iadd, imul, isub, itruediv

__all__ = ["Trace", "Untraceable", "diverted", "entered", "trace", "trace_around", "watched"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")  # fmt: skip

_CALLS = ("__call__", "_wrapped_call_impl", "_call_impl")


class Untraceable(Exception):
    """The forward cannot be written down as a graph; `module` is the one whose code is in the way."""

    def __init__(self, module: Module, reason: str) -> None:
        super().__init__(reason)
        self.module = module
        self.reason = reason


@dataclass
class Trace:
    """A module's graph. Nodes tell in ``meta["callers"]`` whose forwards they are in, outermost first.

    `constants` are tensors that the graph names and the module does not have. `opaque` are the modules that
    the graph calls without showing what they do, though there is something in them, and the reason.
    """

    root: Module
    graph: fx.Graph
    constants: dict[str, Tensor]
    opaque: dict[Module, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._called = {
            node: self.root.get_submodule(node.target)
            for node in self.graph.nodes
            if node.op == "call_module"
        }

    def module(self, node: fx.Node) -> Module | None:
        """The module that a node calls; None where it calls something else."""
        return self._called.get(node)

    def read(self) -> set[Module]:
        """The modules whose parameters or buffers, or which themselves, the graph takes as values."""
        found: set[Module] = set()
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target not in self.constants:
                holder, _, name = node.target.rpartition(".")
                holder = self.root.get_submodule(holder)
                found.add(holder)
                if holder._modules.get(name) is not None:
                    found.update(holder._modules[name].modules())
        return found


def watched(module: Module) -> str | None:
    """Why a call of this module does more than its class says, in words."""
    if any(getattr(torch.nn.modules.module, name) for name in _GLOBAL_HOOKS):
        return "hooks are registered for all modules"
    if any(module.__dict__.get(name) for name in _HOOKS):
        return "it has hooks"
    return diverted(module)


def diverted(module: Module) -> str | None:
    """Why a call of this module does not run its class's forward, in words."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the object"
    if module.__dict__.get("_compiled_call_impl") is not None:
        return "it was compiled by its compile()"
    for name in _CALLS:
        # A GraphModule's own, which is torch's, calls the forward.
        call = getattr(type(module), name)
        if call is not getattr(Module, name) and not str(getattr(call, "__module__", "")).startswith(
            "torch."
        ):
            return "its class has a __call__ of its own"
    return None


def entered(module: Module) -> bool:
    """Whether the forward of this class of module is looked into, rather than known."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if type(module) is torch.nn.Sequential or isinstance(module, fx.GraphModule):
        return True
    return not type(module).__module__.startswith(("torch.", "fastcnn."))


def trace_around(root: Module, whole: Collection[Module] = ()) -> Trace:
    """The graph of `root`, with a call in place of what cannot be traced inside it and of what is in `whole`.

    Raises:
        Untraceable: the forward of `root` itself is in the way.
    """
    obstacles: dict[Module, str] = {}
    while True:
        stops = {*whole, *obstacles}

        def leaf(module: Module, stops: set[Module] = stops) -> bool:
            return not entered(module) or watched(module) is not None or module in stops

        try:
            found = trace(root, leaf)
        except Untraceable as error:
            if error.module is root:
                raise
            # The others of its class are the same code; what can be traced of them is, on its own.
            alike = [m for m in root.modules() if type(m) is type(error.module) and m is not root]
            obstacles.update(dict.fromkeys(alike, error.reason))
            continue
        for node in found.graph.nodes:
            module = found.module(node)
            if module is not None and any(True for _ in module.children()):
                reason = watched(module) or obstacles.get(module) or "its code is not looked into"
                found.opaque[module] = reason
        return found


def trace(root: Module, leaf: Callable[[Module], bool]) -> Trace:
    """The graph of `root`, which calls the modules that `leaf` names and shows what the others do.

    Raises:
        Untraceable: some forward cannot be traced, or what it does may depend on more than its tensors.
    """
    _one_way(root)
    state = _State(root)
    tracer = _Tracer(leaf, state)
    generators = random.getstate(), torch.get_rng_state()
    graph = None
    try:
        graph = tracer.trace(root)
    except Exception as error:  # a user's code can raise anything
        text = tracer.refusal or str(error).strip() or type(error).__name__
        raise Untraceable(
            tracer.failed or root, f"its forward cannot be traced: {text.splitlines()[0]}"
        ) from error
    finally:
        constants = state.take_new(graph)
        changed = state.restore()
        drawn = random.getstate() != generators[0] or not torch.equal(torch.get_rng_state(), generators[1])
        random.setstate(generators[0])
        torch.set_rng_state(generators[1])
    if tracer.refusal is not None:  # and somebody's code has caught it
        raise Untraceable(tracer.failed or root, f"its forward cannot be traced: {tracer.refusal}")
    if changed is not None:
        raise Untraceable(changed, "its forward changes the module")
    if drawn:
        raise Untraceable(root, "its forward draws random numbers")
    return Trace(root, graph, constants)


def _one_way(root: Module) -> None:
    """Refuses a forward that may be called in several ways: one graph is only one of them."""
    for parameter in list(inspect.signature(type(root).forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Untraceable(root, "its forward takes any number of arguments")
        if parameter.default is not parameter.empty:
            raise Untraceable(root, f"its forward can be called with and without {parameter.name!r}")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, leaf: Callable[[Module], bool], state: _State) -> None:
        super().__init__()
        self._leaf = leaf
        self._state = state
        self._modes = _modes()
        self._callers: list[Module] = []
        #: The innermost module that was being traced when something was raised.
        self.failed: Module | None = None
        #: Why the tracer itself gave up.
        self.refusal: str | None = None

    def refuse(self, reason: str) -> NoReturn:
        """Gives up, even if the traced code catches what is raised."""
        if self.refusal is None:
            self.refusal = reason
            known = [module for module in self._callers if module in self.submodule_paths]
            self.failed = self.failed or (known[-1] if known else None)
        raise fx.proxy.TraceError(reason)

    def to_bool(self, value: fx.Proxy) -> NoReturn:
        self.refuse("it looks at values to know what to do")

    def iter(self, value: fx.Proxy) -> NoReturn:
        self.refuse("it iterates over a value of unknown length")

    def is_leaf_module(self, module: Module, qualified_name: str) -> bool:
        return self._leaf(module)

    def call_module(self, module: Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._leaf(module):
            if self._state.changed(module):
                self.refuse("it changes a module before it calls it")
            return super().call_module(module, forward, args, kwargs)
        self._callers.append(module)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            if self.failed is None and module in self.submodule_paths:
                self.failed = module
            raise
        finally:
            self._callers.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            self.refuse("it sets the grad mode or autocast for a part of what it does")
        node = super().create_node(*args, **kwargs)
        node.meta["callers"] = (self.root, *self._callers)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


def _modes() -> tuple[Any, ...]:
    """What a graph would not remember of the surroundings in which a call was made."""
    casts = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *casts


class _Careful:
    """What a proxy must not let pass: it would be recorded as something else."""

    def __iadd__(self, other: Any) -> Any:
        return self._change(iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._change(isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._change(imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._change(itruediv, other)

    def _change(self, function: Callable[[Any, Any], Any], other: Any) -> Any:
        result = self.tracer.create_proxy("call_function", function, (self, other), {})
        result.node.meta["is_wrapped"] = True
        return result

    def _refuse_operator(self, other: Any) -> Any:
        self.tracer.refuse("it uses an in-place operator other than +=, -=, *= and /=")

    __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = _refuse_operator
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _refuse_operator

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            self.tracer.refuse(f"it sets the attribute {name!r} of a tensor")
        super().__setattr__(name, value)

    @property
    def __class__(self) -> type:
        # isinstance() of another class than the proxy's own arrives here.
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if not asking.startswith(("torch.", "fastcnn.")):
            self.tracer.refuse("it asks for the class of a value")
        return type(self)


class _Value(_Careful, fx.Proxy):
    pass


class _Attribute(_Careful, fx.proxy.Attribute):
    pass


class _State:
    """What the modules hold, to be put back after their forwards ran on proxies."""

    def __init__(self, root: Module) -> None:
        self._root = root
        self._held = {
            module: (
                dict(module.__dict__),
                [(held, _contents(held)) for held in module.__dict__.values() if _is_container(held)],
            )
            for module in root.modules()
        }

    def changed(self, module: Module) -> bool:
        """Whether the module does not hold what it held."""
        if module not in self._held:
            return True
        attributes, containers = self._held[module]
        return not _alike(_contents(module.__dict__), _contents(attributes)) or any(
            not _alike(_contents(held), contents) for held, contents in containers
        )

    def take_new(self, graph: fx.Graph | None) -> dict[str, Tensor]:
        """The constants that tracing set on the root, which are no change of its own."""
        held, (before, _) = self._root.__dict__, self._held[self._root]
        named = {node.target for node in graph.nodes if node.op == "get_attr"} if graph is not None else ()
        return {name: held.pop(name) for name in named if name in held and name not in before}

    def restore(self) -> Module | None:
        """Puts everything back; the first module that had changed."""
        changed = [module for module in self._held if self.changed(module)]
        for module in changed:
            attributes, containers = self._held[module]
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for held, contents in containers:
                _refill(held, contents)
        return changed[0] if changed else None


def _is_container(value: Any) -> bool:
    return type(value) in (list, dict, set, OrderedDict, deque)


def _contents(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _alike(some: list[Any], others: list[Any]) -> bool:
    def same(one: Any, other: Any) -> bool:
        if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
            return one[0] is other[0] and one[1] is other[1]
        return one is other

    return len(some) == len(others) and all(map(same, some, others))


def _refill(container: Any, contents: list[Any]) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(contents)
    else:
        container.update(contents)
