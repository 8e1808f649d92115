"""What `convert` and `revert` say that they did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Swapped:
    """One module whose class was changed: its name in the model, its class before and after."""

    name: str
    before: type
    after: type


@dataclass(frozen=True)
class Skipped:
    """One module that was left as it is, and why."""

    name: str
    kind: type
    reason: str


@dataclass(frozen=True)
class Fused:
    """Modules, and calls in a module's code, that have become one layer.

    `parts` are their names in the order in which they ran, the convolution's first; a call has the name of
    its function. `after` is the class of the layer that stands in the convolution's place.
    """

    parts: tuple[str, ...]
    after: type
    activation: str
    residual: bool

    @property
    def name(self) -> str:
        """The convolution's name, which is the fused layer's too."""
        return self.parts[0]


@dataclass
class Report:
    """What `convert` or `revert` did: printed, a table with one line for each module.

    `fused`, `rebuilt` (modules whose forward is a `torch.fx` graph now) and `unfused` (what could not be
    fused or looked into) are filled by ``convert(fuse=True)`` alone.
    """

    swapped: list[Swapped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)
    rebuilt: list[Swapped] = field(default_factory=list)
    unfused: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        fused = [(" + ".join(map(_shown, f.parts)), f"-> {_fused_class(f)}") for f in self.fused]
        rows = [(_shown(s.name), class_name(s.before), "-> its forward as a graph") for s in self.rebuilt]
        rows += [(_shown(s.name), class_name(s.kind), f"not fused: {s.reason}") for s in self.unfused]
        rows += [(_shown(s.name), class_name(s.before), f"-> {class_name(s.after)}") for s in self.swapped]
        rows += [(_shown(s.name), class_name(s.kind), f"left as it is: {s.reason}") for s in self.skipped]
        counts = f"{len(self.swapped)} swapped, {len(self.skipped)} left as they are"
        if self.fused or self.unfused:
            counts = f"{len(self.fused)} fused, {counts}"
        return "\n".join([counts, *_table(fused), *_table(rows)])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _shown(name: str) -> str:
    return name or "(the model itself)"


def _fused_class(fused: Fused) -> str:
    details = [fused.activation] if fused.activation != "none" else []
    details += ["residual"] if fused.residual else []
    shown = next(kind for kind in fused.after.__mro__ if kind.__module__ == "fastcnn.nn")
    return class_name(shown) + (f" ({', '.join(details)})" if details else "")


def class_name(kind: type) -> str:
    """A class as users know it."""
    module = kind.__module__
    for long, short in (("torch.nn.modules.", "torch.nn"), ("fastcnn.nn", "fastcnn.nn")):
        if module.startswith(long):
            module = short
    return f"{module}.{kind.__qualname__}"
