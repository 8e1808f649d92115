"""Figures as pictures: ratios as sorted bars, the roofline, whole models; by matplotlib (fastcnn[train])."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import CHANGED, Figure, grouped, measured_on, setting
from benchmarks.tables import contender_names, split_kinds, step_name
from fastcnn._extras import require

FASTER, SLOWER, EVEN, NEUTRAL = (
    "#0072b2",
    "#d55e00",
    "#999999",
    "#444444",
)  # told apart by colour-blind people too
COLOURS = {"faster": FASTER, "slower": SLOWER, "even": EVEN}
CONTENDER_COLOURS = (FASTER, "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#000000")
NAMED_BARS = 45  # up to so many bars have their layers' names below them
FINE_TICKS = (0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2)
COARSE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
INCHES, DPI = 11.0, 110


def slug(*words: str) -> str:
    """Words as a part of a file's name."""
    letters = "".join(letter if letter.isalnum() else " " for letter in " ".join(words).lower())
    return "-".join(letters.split())


def pictures(gpu: str, figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """The names of the pictures that a GPU's figures give, and the figures in each."""
    layers, steps, _ = split_kinds(figures)
    found: dict[str, list[Figure]] = {}
    for figure in layers:
        dtype, layout, _ = setting(figure.case)
        if figure.ratio is not None:
            found.setdefault(f"{slug(gpu, 'ratio per layer', dtype, layout)}.png", []).append(figure)
    for figure in layers:
        if roof(figure) is not None and figure.case["flops"] and figure.case["bytes"] and figure.ours:
            found.setdefault(f"{slug(gpu, 'roofline', setting(figure.case)[0])}.png", []).append(figure)
    if steps:
        found[f"{slug(gpu, 'models and steps')}.png"] = steps
    return found


def draw(name: str, figures: Sequence[Figure], path: Path) -> None:
    """Draws the picture of this name.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if "-ratio-per-layer-" in name:
        drawing = ratio_bars(figures)
    elif "-roofline-" in name:
        drawing = roofline(figures)
    else:
        drawing = model_bars(figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no version in the file: the same figures give the same picture.
    drawing.savefig(path, dpi=DPI, metadata={"Software": None})


def _figure(rows: int, height: float, title: str, figures: Sequence[Figure]):
    """A drawing with `rows` axes below one another, its title, and below all where the figures come from."""
    require("matplotlib")
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(INCHES, height + 1.0), layout="constrained")
    axes = drawing.subplots(rows, 1, squeeze=False)[:, 0]
    drawing.suptitle(title, fontsize=13)
    drawing.supxlabel(measured_on(figures), fontsize=7, color=NEUTRAL, wrap=True)
    return drawing, axes


def ratio_bars(figures: Sequence[Figure]):
    """For each operation, a bar per layer from 1 to its ratio with its interval: sorted, logarithmic."""
    dtype, layout, _ = setting(figures[0].case)
    groups = grouped(figures, lambda figure: figure.case["op"])
    named = {op: len(group) <= NAMED_BARS for op, group in groups.items()}
    title = f"{figures[0].gpu}: fastest baseline's time / fastcnn's, per layer; {dtype}, {layout}"
    height = sum(3.9 if named[op] else 2.6 for op in groups)
    drawing, axes = _figure(len(groups), height, title, figures)
    for axis, (op, group) in zip(axes, groups.items(), strict=True):
        ordered = sorted(group, key=lambda figure: figure.ratio)
        for x, figure in enumerate(ordered):
            _ratio_bar(axis, x, figure)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log", base=2)
        axis.set_ylim(*_around_one(ordered))
        low, high = axis.get_ylim()
        axis.set_yticks([tick for tick in (FINE_TICKS if high < 4 else COARSE_TICKS) if low <= tick <= high])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
        axis.set_xlim(-0.7, len(ordered) - 0.3)
        axis.set_ylabel("ratio (above 1: faster)", fontsize=8)
        axis.grid(axis="y", linewidth=0.3)
        axis.set_axisbelow(True)
        counts = {verdict: sum(figure.verdict == verdict for figure in ordered) for verdict in COLOURS}
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        axis.set_title(f"{op}: {told}", fontsize=10, loc="left")
        axis.set_xticks([])
        if named[op]:
            names = [f"{figure.case['suite']} {figure.case['layer']}" for figure in ordered]
            axis.set_xticks(
                range(len(names)), names, rotation=75, ha="right", rotation_mode="anchor", fontsize=6
            )
    _legend(axes[0], figures)
    return drawing


def _ratio_bar(axis, x: int, figure: Figure) -> None:
    ratio = figure.case["ratio"]
    stale = figure.sources == CHANGED
    axis.bar(
        x,
        ratio["value"] - 1,
        bottom=1,
        width=0.8,
        color=COLOURS[figure.verdict],
        alpha=0.45 if stale else 1.0,
        hatch="///" if stale else None,
        edgecolor="white" if stale else "none",
        linewidth=0,
    )
    axis.plot([x, x], [ratio["low"], ratio["high"]], color="black", linewidth=0.6)


def _around_one(figures: Sequence[Figure]) -> tuple[float, float]:
    """Limits that hold every interval, and as much below 1 as above: losses are as tall as wins."""
    furthest = max(
        max(abs(math.log2(figure.case["ratio"][end])) for figure in figures) for end in ("low", "high")
    )
    return 2 ** -(furthest * 1.1 + 0.05), 2 ** (furthest * 1.1 + 0.05)


def _legend(axis, figures: Sequence[Figure]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=verdict) for verdict, colour in COLOURS.items()]
    if any(figure.sources == CHANGED for figure in figures):
        handles.append(
            Patch(facecolor=EVEN, alpha=0.45, hatch="///", edgecolor="white", label="sources changed since")
        )
    axis.legend(handles=handles, fontsize=7, ncols=len(handles), loc="upper left")


def roof(figure: Figure) -> tuple[float, float] | None:
    """The ceilings measured in a figure's run: bytes and flops per second; None where one is missing."""
    ceilings = figure.record["ceilings"]
    dtype = "tf32" if figure.case["tf32"] else figure.case["dtype"]
    if not ceilings or dtype not in ceilings["flops_per_second"]:
        return None
    return ceilings["copy_bytes_per_second"], ceilings["flops_per_second"][dtype]


def roofline(figures: Sequence[Figure]):
    """Rate against intensity: ours filled, the fastest baseline hollow, a thin line between the two."""
    dtype = setting(figures[0].case)[0]
    drawing, (axis,) = _figure(1, 6.0, f"{figures[0].gpu}: roofline, {dtype}", figures)
    intensities = [figure.case["flops"] / figure.case["bytes"] for figure in figures]
    groups = grouped(figures, lambda figure: figure.case["op"])
    for colour, (op, group) in zip(_colours(len(groups)), groups.items(), strict=True):
        xs = [figure.case["flops"] / figure.case["bytes"] for figure in group]
        ours = [figure.case["flops"] / figure.ours / 1e6 for figure in group]
        theirs = [
            figure.case["flops"] / figure.baseline / 1e6 if figure.baseline else math.nan for figure in group
        ]
        for x, low, high in zip(xs, theirs, ours, strict=True):
            axis.plot([x, x], [low, high], color=colour, linewidth=0.5, alpha=0.5)
        axis.scatter(xs, ours, s=18, color=colour, label=f"{op}, fastcnn", zorder=3)
        axis.scatter(
            xs,
            theirs,
            s=18,
            facecolor="none",
            edgecolor=colour,
            linewidth=0.8,
            label=f"{op}, fastest baseline",
        )
    span = (min(intensities) / 2, max(intensities) * 2)
    for bytes_rate, flops_rate in sorted({roof(figure) for figure in figures}):
        knee = flops_rate / bytes_rate
        xs = sorted({span[0], min(max(knee, span[0]), span[1]), span[1]})
        reached = f"copy {bytes_rate / 1e12:.2f} TB/s, matrix products {flops_rate / 1e12:.3g} TFLOP/s"
        heights = [min(x * bytes_rate, flops_rate) / 1e12 for x in xs]
        axis.plot(xs, heights, color="black", linewidth=1, label=f"reached in the same run: {reached}")
    axis.set(xscale="log", yscale="log", xlim=span)
    axis.set_xlabel("flops per byte, each tensor moved once")
    axis.set_ylabel("TFLOP/s")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter(lambda value, _: f"{value:g}")
        ticks.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        ticks.set_tick_params(which="both", labelsize=8)
    axis.grid(which="both", linewidth=0.2)
    axis.legend(fontsize=7, loc="best")
    return drawing


def model_bars(figures: Sequence[Figure]):
    """For each model and step, every contender's time as a share of the slowest one's, with p10 and p90."""
    names = contender_names(figures)
    height = 0.9 + 0.28 * len(figures) * (len(names) + 1)
    drawing, (axis,) = _figure(1, height, f"{figures[0].gpu}: models and training steps", figures)
    for row, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        axis.barh(0, 0, color=colour, label=name)
        for y, figure in enumerate(figures):
            contenders = figure.case["contenders"]
            if name in contenders:
                slowest = max(contender["median_us"] for contender in contenders.values())
                place = y + (row - (len(names) - 1) / 2) * 0.8 / len(names)
                _time_bar(axis, place, 0.8 / len(names), colour, contenders[name], slowest)
    axis.set_yticks(range(len(figures)), [_step_name(figure) for figure in figures], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_xlabel("time of a step as a share of the slowest contender's; median with p10 and p90")
    axis.legend(fontsize=8, loc="upper right")
    return drawing


def _time_bar(axis, place: float, height: float, colour: str, contender: Mapping, whole: float) -> None:
    middle, low, high = (contender[key] / whole for key in ("median_us", "p10_us", "p90_us"))
    axis.barh(place, middle, height=height, color=colour)
    axis.plot([low, high], [place, place], color="black", linewidth=0.8)
    axis.annotate(
        f" {contender['median_us'] / 1e3:.3g} ms", (max(high, middle), place), va="center", fontsize=7
    )


def _step_name(figure: Figure) -> str:
    dtype, layout, op = setting(figure.case)
    stale = "\nsources changed since" if figure.sources == CHANGED else ""
    return f"{step_name(figure)}\n{op}\n{dtype}, {layout}{stale}"


def _colours(count: int) -> list[str]:
    return [CONTENDER_COLOURS[index % len(CONTENDER_COLOURS)] for index in range(count)]
