"""Which modules a forward that cannot be traced calls as they are, and nothing else: read in its source.

Such a module may be changed inside, as long as it gives what it gave. One whose own parts the code takes out
(``self.features[3]``, ``for layer in self.features``, ``self.block.conv.weight``) may not.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator

from torch.nn import Module, ModuleDict, ModuleList

__all__ = ["called_whole"]

_LISTS = (ModuleList, ModuleDict)
#: What a call through super() may name: these give nothing of the module away, or are read themselves.
_ABOVE = ("__init__", "eval", "extra_repr", "forward", "train")
_UNBOUND = (staticmethod, classmethod, types.MemberDescriptorType, types.GetSetDescriptorType)
_CONSTRUCTION = ("__init__", "__repr__", "extra_repr", "_init_weights", "init_weights", "reset_parameters")


def called_whole(module: Module) -> dict[Module, bool]:
    """The modules next inside `module` (through lists and dicts of modules), and whether its code only ever
    calls them whole; False where the code cannot be read or keeps its intentions from us.
    """
    inside = list(_next_inside(module))
    reading = _Reading(module)
    try:
        if type(module).__module__.startswith("torch."):
            raise _Unclear  # a list has no forward, a wrapper does more than call
        reading.held_otherwise()
        for function in _functions(type(module)):
            reading.read(function)
    except (OSError, TypeError, SyntaxError, _Unclear):
        return dict.fromkeys(inside, False)
    return {child: not any(part in reading.opened for part in child.modules()) for child in inside}


def _next_inside(module: Module) -> Iterator[Module]:
    for child in module.children():
        if type(child) in _LISTS:
            yield from _next_inside(child)
        else:
            yield child


def _functions(kind: type) -> Iterator[types.FunctionType]:
    """Every function of the class and its bases that is given the module and is not torch's own.

    Raises:
        _Unclear: an attribute of the class does something else, when the module is asked for it.
    """
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, value in vars(base).items():
            if isinstance(value, property):
                yield from (f for f in (value.fget, value.fset, value.fdel) if f is not None)
            elif isinstance(value, types.FunctionType):
                if name not in _CONSTRUCTION:
                    yield value
            elif hasattr(type(value), "__get__") and not isinstance(value, _UNBOUND):
                raise _Unclear


class _Unclear(Exception):
    """The code uses the module in ways that its source does not tell."""


class _Reading:
    def __init__(self, module: Module) -> None:
        self._module = module
        #: Modules that the code does more with than to call them, or that it reaches through their holder.
        self.opened: set[Module] = set()

    def held_otherwise(self) -> None:
        """Modules that the code has at hand under other names: in plain lists, in functions it keeps."""
        plain = {name: value for name, value in vars(self._module).items() if name != "_modules"}
        for held in _unpacked(plain, set()):
            if isinstance(held, Module):
                self.opened.update(held.modules())
            elif getattr(held, "__closure__", None) or isinstance(held, _BOUND):
                raise _Unclear

    def read(self, function: types.FunctionType) -> None:
        if hasattr(function, "__wrapped__"):
            raise _Unclear  # the source would be the wrapped function's
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        if next(iter(inspect.signature(function).parameters), None) != "self":
            raise _Unclear
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "self":
                self._use(tree, node, parents)
            elif isinstance(node, ast.Name) and node.id == "super" and not _called_above(node, parents):
                raise _Unclear

    def _use(self, tree: ast.AST, node: ast.expr, parents: dict[ast.AST, ast.AST]) -> None:
        """Follows one mention of `self` through its attributes to the module it names, and on to the use."""
        held: Module = self._module
        above = parents[node]
        while isinstance(above, ast.Attribute) and isinstance(held._modules.get(above.attr), Module):
            outer, held = held, held._modules[above.attr]
            if outer is not self._module and type(outer) not in _LISTS:
                self.opened.add(outer)
            node, above = above, parents[above]
        if held is self._module:
            # Something of its own that is no module, unless it is handed away whole.
            if not isinstance(above, ast.Attribute) or above.attr in _GIVING:
                raise _Unclear
        elif type(held) in _LISTS:
            self._list_use(tree, held, node, parents)
        elif not _only_called(node, above):
            self.opened.add(held)

    def _list_use(self, tree: ast.AST, held: Module, node: ast.expr, parents: dict[ast.AST, ast.AST]) -> None:
        """A list or dict of modules: indexed and called, or looped over with each member only called."""
        above = parents[node]
        if isinstance(above, ast.Attribute) and above.attr in ("values", "items", "keys"):
            node, above = parents[above], parents[parents[above]]
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Name):
            if above.func.id == "len":
                return
            if above.func.id in ("enumerate", "zip", "reversed"):
                node, above = above, parents[above]
        member = isinstance(above, ast.Subscript) and above.value is node
        if member and _only_called(above, parents[above]):
            return
        if isinstance(above, (ast.For, ast.comprehension)) and above.iter is node:
            names = {name.id for name in ast.walk(above.target) if isinstance(name, ast.Name)}
            uses = [
                use
                for use in ast.walk(tree)
                if isinstance(use, ast.Name) and use.id in names and isinstance(use.ctx, ast.Load)
            ]
            if all(_only_called(use, parents[use]) or _as_number(use, parents[use]) for use in uses):
                return
        self.opened.update(held.modules())


#: What `torch.nn.Module` has to give its modules, parameters and buffers away.
_GIVING = (
    "__dict__", "__getattr__", "__getattribute__", "_buffers", "_modules", "_parameters", "apply", "buffers",
    "children", "get_buffer", "get_parameter", "get_submodule", "modules", "named_buffers", "named_children",
    "named_modules", "named_parameters", "parameters", "state_dict",
)  # fmt: skip


_BOUND = (functools.partial, types.MethodType)


def _unpacked(value: object, seen: set[int]) -> Iterator[object]:
    """What a plain container holds, and what its containers do; anything else as it is."""
    if not isinstance(value, (list, tuple, set, frozenset, dict)):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for inner in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _unpacked(inner, seen)


def _only_called(node: ast.AST, above: ast.AST) -> bool:
    if isinstance(above, ast.Call):
        return above.func is node
    if isinstance(above, ast.Compare):
        return all(isinstance(operator, (ast.Is, ast.IsNot)) for operator in above.ops)
    return isinstance(above, (ast.If, ast.IfExp)) and above.test is node


def _called_above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether this `super` only calls a method that is known to keep the module for itself."""
    call = parents[node]
    method = parents[call]
    return (
        isinstance(call, ast.Call)
        and call.func is node
        and isinstance(method, ast.Attribute)
        and method.attr in _ABOVE
        and _only_called(method, parents[method])
    )


def _as_number(node: ast.AST, above: ast.AST) -> bool:
    """A use that a module has none of: compared with a constant, or as an index."""
    if isinstance(above, ast.Compare):
        return all(isinstance(value, ast.Constant) for value in above.comparators)
    return isinstance(above, ast.Subscript) and above.slice is node
