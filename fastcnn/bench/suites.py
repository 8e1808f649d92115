"""The shapes that are measured: layers of real networks, from benchmarks/shapes/*.csv.

A row's layer name may end in "#xN": the network has N such layers, and averages count the row N times. The
files lie in the checkout's benchmarks/shapes, and in an installed package beside this module.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from fastcnn import _checks
from fastcnn._shapes import MaxPoolGeometry, conv_output_shape, max_pool_output_shape

POOL_OPS = {
    "max": "max_pool2d",
    "avg": "avg_pool2d",
    "adaptive_max": "adaptive_max_pool2d",
    "adaptive_avg": "adaptive_avg_pool2d",
}
CONV_FILES = ("conv-shapes.csv", "more-conv-shapes.csv")
#: Suites of rows that are not a layer's shape: they have one row, named like the suite.
OTHER_SUITES = ("call_overhead", "small_cnn_step", "models")
#: What a name stands for beside one suite.
GROUPS = ("main", "convs", "pools", "all")
#: The suites of `main`: networks that people train and serve, and the probes of what is common to all.
MAIN = (
    "resnet50_224",
    "vgg16_224",
    "mobilenet_v2_224",
    "convnext_t_224",
    "efficientnet_b0_224",
    "resnext50_224",
    "small_cnn_28",
    "conv_probe",
    "pool_resnet50",
    "pool_vgg16",
    "pool_googlenet",
    "pool_efficientnet_b0",
    "pool_smallcnn",
    "pool_probe",
    *OTHER_SUITES,
)


class SuiteError(ValueError):
    """There is no such suite, or a row that cannot be; the message says what there is."""


@dataclass(frozen=True)
class ConvRow:
    """One convolution layer. Sizes as in torch; `stride`, `padding`, `dilation` are (height, width)."""

    suite: str
    layer: str
    count: int
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def geometry(self) -> tuple[int, ...]:
        """stride_h, stride_w, the four paddings, dilation_h, dilation_w, groups: as the operators take it."""
        (top, left) = self.padding
        return (*self.stride, top, top, left, left, *self.dilation, self.groups)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return conv_output_shape(self.input_shape, self.weight_shape, self.geometry)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.c and self.groups > 1

    @property
    def first_layer(self) -> bool:
        """Reads images: no network asks for its data gradient."""
        return self.c <= 4

    def shape(self) -> dict:
        """The row as a case's "shape"."""
        return {
            **{name.upper(): getattr(self, name) for name in ("n", "c", "h", "w", "k", "r", "s")},
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def __post_init__(self) -> None:
        numbers = (*self.input_shape, self.k, self.r, self.s, *self.stride, *self.dilation, self.groups)
        if min(numbers) < 1 or min(self.padding) < 0:
            raise SuiteError(f"{self.layer}: sizes, stride, dilation and groups must be positive: {self}")
        if self.c % self.groups or self.k % self.groups:
            raise SuiteError(f"{self.layer}: groups {self.groups} must divide C {self.c} and K {self.k}")
        if min(self.output_shape) < 1:
            raise SuiteError(
                f"{self.layer}: the kernel {self.r}x{self.s} is larger than the padded input "
                f"{self.h}x{self.w}"
            )


@dataclass(frozen=True)
class PoolRow:
    """One pooling layer; `op` is "max_pool2d", "avg_pool2d" or one of the two with "adaptive_" before it.

    `kernel` is the window, or an adaptive pool's output size; pairs are (height, width).
    """

    suite: str
    layer: str
    count: int
    op: str
    n: int
    c: int
    h: int
    w: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def adaptive(self) -> bool:
        return self.op.startswith("adaptive_")

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        if self.adaptive:
            return self.n, self.c, *self.kernel
        return max_pool_output_shape(self.input_shape, self._window)

    @property
    def _window(self) -> MaxPoolGeometry:
        return (*self.kernel, *self.stride, *self.padding, *self.dilation, self.ceil_mode)

    def shape(self) -> dict:
        """The row as a case's "shape"."""
        sizes = {name.upper(): getattr(self, name) for name in ("n", "c", "h", "w")}
        if self.adaptive:
            return {**sizes, "output_size": list(self.kernel)}
        return {
            **sizes,
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "ceil_mode": self.ceil_mode,
        }

    def __post_init__(self) -> None:
        if self.op not in POOL_OPS.values():
            raise SuiteError(f"{self.layer}: a pool is one of {', '.join(POOL_OPS)}, not {self.op!r}")
        if min(*self.input_shape, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise SuiteError(f"{self.layer}: sizes, stride and dilation must be positive: {self}")
        if self.op == "avg_pool2d" and self.dilation != (1, 1):
            raise SuiteError(f"{self.layer}: average pools have no dilation")
        if not self.adaptive:
            try:
                _checks.pool_problem(self.op, self.input_shape, self._window)
            except RuntimeError as error:
                raise SuiteError(f"{self.layer}: {error}") from error


@dataclass(frozen=True)
class OtherRow:
    """Something else that is measured: `suite` is one of `OTHER_SUITES`.

    A model (`suite` "models") is `layer`, at `batch` images of `image` = (channels, height, width).
    """

    suite: str
    layer: str
    count: int = 1
    batch: int = 0
    image: tuple[int, int, int] = (3, 224, 224)

    def shape(self) -> dict:
        """The row as a case's "shape"."""
        if self.suite == "call_overhead":
            return {"call": self.layer}
        return {"model": self.layer, "batch": self.batch, "image": list(self.image)}


Row = ConvRow | PoolRow | OtherRow


def sizes(text: str) -> tuple[int, int]:
    """ "3" is (3, 3), "5x20" is (5, 20): height, width."""
    parts = [int(part) for part in text.split("x")]
    if len(parts) not in (1, 2):
        raise ValueError(f"expected N or NxM, got {text!r}")
    return parts[0], parts[-1]


def occurrences(layer: str) -> tuple[str, int]:
    """ "layer1.0.conv2#x3" is ("layer1.0.conv2", 3)."""
    name, _, count = layer.partition("#x")
    return name, int(count or 1)


def shapes_folder() -> Path:
    """Where the CSV files are: inside an installed package, or in the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "shapes", here.parents[2] / "benchmarks" / "shapes"):
        if (folder / CONV_FILES[0]).is_file():
            return folder
    raise SuiteError("the lists of shapes are missing from this installation: install fastcnn again")


def _read(name: str) -> list[dict[str, str]]:
    with (shapes_folder() / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _conv_row(line: dict[str, str]) -> ConvRow:
    layer, count = occurrences(line["layer"])
    numbers = {name.lower(): int(line[name]) for name in "NCHWKRS"}
    pairs = {"stride": sizes(line["stride"]), "padding": sizes(line["pad"])}
    return ConvRow(
        line["suite"],
        layer,
        count,
        **numbers,
        **pairs,
        dilation=sizes(line["dilation"]),
        groups=int(line["groups"]),
    )


def _pool_row(line: dict[str, str]) -> PoolRow:
    layer, count = occurrences(line["layer"])
    numbers = {name.lower(): int(line[name]) for name in "NCHW"}
    row = PoolRow(
        f"pool_{line['model']}",
        layer,
        count,
        POOL_OPS[line["op"]],
        **numbers,
        kernel=sizes(line["kernel"].removeprefix("out")),
    )
    if row.adaptive:
        return row
    return replace(
        row,
        stride=sizes(line["stride"]),
        padding=sizes(line["pad"]),
        dilation=sizes(line["dilation"]),
        ceil_mode=line["ceil_mode"] == "1",
    )


@cache
def conv_rows() -> tuple[ConvRow, ...]:
    """Every row of conv-shapes.csv and more-conv-shapes.csv."""
    return tuple(_conv_row(line) for name in CONV_FILES for line in _read(name))


@cache
def pool_rows() -> tuple[PoolRow, ...]:
    """Every row of pool-shapes.csv; their suites are "pool_" and the model's name."""
    return tuple(map(_pool_row, _read("pool-shapes.csv")))


_CALLS = ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
OTHER_ROWS = (
    *(OtherRow("call_overhead", f"{call} {mode}") for call in _CALLS for mode in ("forward", "backward")),
    OtherRow("small_cnn_step", "small_cnn", batch=128, image=(1, 28, 28)),
    OtherRow("small_cnn_step", "small_cnn", batch=1024, image=(1, 28, 28)),
    OtherRow("models", "resnet50", batch=128),
    OtherRow("models", "mobilenet_v2", batch=128),
)


def suites() -> dict[str, tuple[Row, ...]]:
    """Every suite by its name."""
    found: dict[str, list[Row]] = {}
    for row in (*conv_rows(), *pool_rows(), *OTHER_ROWS):
        found.setdefault(row.suite, []).append(row)
    return {name: tuple(rows) for name, rows in found.items()}


def select(names: Iterable[str]) -> list[Row]:
    """The rows of suites or groups, each once, in the order of the names.

    Raises:
        SuiteError: an unknown name; the message lists those there are.
    """
    known = suites()
    chosen: dict[Row, None] = {}
    for name in names:
        for suite in _members(name, known):
            chosen.update(dict.fromkeys(known[suite]))
    return list(chosen)


def _members(name: str, known: dict[str, Sequence[Row]]) -> Sequence[str]:
    if name in known:
        return (name,)
    if name == "main":
        return MAIN
    if name == "all":
        return tuple(known)
    if name in ("convs", "pools"):
        kind = ConvRow if name == "convs" else PoolRow
        return tuple(suite for suite, rows in known.items() if isinstance(rows[0], kind))
    raise SuiteError(
        f"there is no suite {name!r}; there are {', '.join(known)}, and the groups {', '.join(GROUPS)}"
    )
