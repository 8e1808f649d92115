"""Measured cases for people: a table in the terminal, a CSV file, a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastcnn._extras import require
from fastcnn.bench.problem import OURS

FASTER, SLOWER, EVEN = "faster", "slower", "even"
_STYLES = {FASTER: "green", SLOWER: "red", EVEN: "yellow", "": "dim"}
_COLOURS = {FASTER: "#0072b2", SLOWER: "#d55e00", EVEN: "#999999"}
_BARS = 60  # in one panel of a picture
EXTRA = "bench"

Case = Mapping


def verdict(case: Case) -> str:
    """ "faster", "slower", or "even" where the interval of the ratio has 1 in it; "" without a ratio."""
    ratio = case["ratio"]
    if ratio is None:
        return ""
    if ratio["low"] > 1:
        return FASTER
    return SLOWER if ratio["high"] < 1 else EVEN


def summary(cases: Sequence[Case]) -> dict:
    """Counts, the geometric mean of the ratios and the sums of times, each layer as often as it occurs, and
    the worst and best case; None where nothing was compared."""
    compared = [case for case in cases if case["ratio"]]
    weights = sum(case["count"] for case in compared)
    logs = sum(case["count"] * math.log(case["ratio"]["value"]) for case in compared)
    by_ratio = sorted(compared, key=lambda case: case["ratio"]["value"])
    return {
        "cases": len(cases),
        "compared": len(compared),
        "wrong": [case for case in cases if case["wrong"]],
        "unmeasured": [case for case in cases if OURS not in case["contenders"] and not case["wrong"]],
        **{kind: sum(verdict(case) == kind for case in compared) for kind in (FASTER, SLOWER, EVEN)},
        "geomean": math.exp(logs / weights) if weights else None,
        "ours_us": sum(case["count"] * median(case, OURS) for case in compared),
        "baseline_us": sum(case["count"] * median(case, case["baseline"]) for case in compared),
        "worst": by_ratio[0] if by_ratio else None,
        "best": by_ratio[-1] if by_ratio else None,
    }


def median(case: Case, name: str) -> float:
    """A contender's median in microseconds."""
    return case["contenders"][name]["median_us"]


def setting(case: Case) -> str:
    """ "bf16 NHWC": what a case's tensors are."""
    dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(case["dtype"], case["dtype"])
    layout = "NHWC" if case["layout"] == "channels_last" else "NCHW"
    return f"{'tf32' if case['tf32'] else dtype} {layout}"


def operation(op: str) -> str:
    """ "wgrad", "fwd+bwd", "max_pool2d bwd": an operation as a table has it."""
    op = op.removeprefix("conv2d_")
    if op.endswith("forward_backward"):
        return f"{op.removesuffix('forward_backward').rstrip('_')} fwd+bwd".strip()
    return f"{op.removesuffix('_backward')} bwd" if op.endswith("_backward") else op


def table(cases: Sequence[Case], title: str = "fastcnn bench", width: int = 200):
    """A rich table, one line a case; the ratio is green, red, or yellow where it may as well be 1. What a
    console of `width` characters has no room for is left out, the most telling columns last."""
    rich = require("rich.table", EXTRA)
    text = require("rich.text", EXTRA).Text
    columns = [column for column in _COLUMNS if width >= column.from_width]
    shown = rich.Table(
        title=title, title_justify="left", box=require("rich.box", EXTRA).SIMPLE_HEAD, padding=(0, 1)
    )
    for column in columns:
        shown.add_column(column.head, justify=column.justify, no_wrap=True, overflow="ellipsis")
    suite = None
    for case in cases:
        if case["suite"] != suite:
            suite = case["suite"]
            shown.add_section()
            shown.add_row(text(suite, style="bold"))
        style = "bold red" if case["wrong"] else _STYLES[verdict(case)]
        shown.add_row(
            *(text(c.cell(case), style=style if c.head.startswith("ratio") else "") for c in columns)
        )
    return shown


def closing_lines(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """What a table amounts to, as (style, text): the sums, the worst, what was refused, what was missing."""
    total = summary(cases)
    lines = []
    if total["compared"]:
        sums = total["baseline_us"] / total["ours_us"]
        lines.append(
            (
                "bold",
                f"{total['compared']} compared: {total['faster']} faster, {total['slower']} slower, "
                f"{total['even']} even; geometric mean of the ratios {total['geomean']:.2f}, sum of times "
                f"{1e-3 * total['baseline_us']:.3f} ms / {1e-3 * total['ours_us']:.3f} ms = {sums:.2f} "
                f"(each layer as often as it occurs)",
            )
        )
        for name in ("worst", "best"):
            case = total[name]
            lines.append((_STYLES[verdict(case)], f"{name}: {_ratio(case)} {case['id']}"))
    lines += [
        ("bold red", f"refused, since it is wrong: {case['id']}: {case['wrong']}") for case in total["wrong"]
    ]
    lines += [
        ("yellow", f"not measured: {case['id']}: {case['skipped'].get(OURS, 'no reason known')}")
        for case in total["unmeasured"]
    ]
    reasons: dict[tuple[str, str], int] = {}
    for case in cases:
        for name, reason in case["skipped"].items():
            if name != OURS:
                reasons[name, reason] = reasons.get((name, reason), 0) + 1
    lines += [
        ("dim", f"skipped: {name} ({number} case{'s' if number > 1 else ''}): {reason}")
        for (name, reason), number in reasons.items()
    ]
    return lines


def print_report(cases: Sequence[Case], console, title: str = "fastcnn bench") -> None:
    """The table and what it amounts to, on a rich console."""
    if cases:
        console.print(table(cases, title, console.width))
    for style, line in closing_lines(cases):
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _layer(case: Case) -> str:
    name = case["layer"] if case["count"] == 1 else f"{case['layer']} x{case['count']}"
    batch = case["shape"].get("batch")
    return f"{name} (batch {batch})" if batch else name


def _time(case: Case, name: str | None) -> str:
    if name is None or name not in case["contenders"]:
        return "WRONG" if name == OURS and case["wrong"] else "-"
    time = median(case, name)
    return f"{time:.1f}" if time < 1e4 else f"{time:,.0f}"


def _ratio(case: Case) -> str:
    ratio = case["ratio"]
    if ratio is None:
        return "refused" if case["wrong"] else "-"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f} {ratio['high']:.2f}]"


def _rate(case: Case) -> str:
    if case["tflops"] is not None and case["tflops"] >= 10:
        return f"{case['tflops']:.0f} TFLOP/s"
    return f"{case['gbps']:,.0f} GB/s" if case["gbps"] is not None else ""


def _percent(case: Case) -> str:
    return "" if case["percent_of_roofline"] is None else f"{case['percent_of_roofline']:.0f} %"


def _best(case: Case) -> str:
    return _WAYS.get(case["baseline"], case["baseline"] or "-")


_WAYS = {
    "cudnn_channels_last": "cuDNN NHWC",
    "cudnn_nchw": "cuDNN NCHW",
    "cudnn_fused": "cuDNN fused",
    "aten_native": "ATen native",
    "compile_max_autotune": "max-autotune",
}


class _Column(NamedTuple):
    head: str
    cell: Callable[[Case], str]
    justify: str = "left"
    from_width: int = 0


_COLUMNS = (
    _Column("layer", _layer),
    _Column("operation", lambda case: operation(case["op"])),
    _Column("tensors", setting, from_width=90),
    _Column("fastcnn us", lambda case: _time(case, OURS), "right"),
    _Column("best us", lambda case: _time(case, case["baseline"]), "right"),
    _Column("best of torch", _best, from_width=105),
    _Column("ratio [95 %]", _ratio, "right"),
    _Column("rate", _rate, "right", 120),
    _Column("roof", _percent, "right", 130),
    _Column("kernel", lambda case: (case["kernel"] or {}).get("name", ""), from_width=150),
)

_CSV_FIELDS = (
    *("id", "suite", "layer", "count", "op", "dtype", "layout", "tf32", "baseline"),
    *("tflops", "gbps", "percent_of_roofline", "bytes", "flops", "wrong"),
)


def write_csv(cases: Sequence[Case], path: str | Path) -> None:
    """One line a case: medians of all contenders, the ratio with its interval, errors, what was skipped."""
    names = list(dict.fromkeys(name for case in cases for name in case["contenders"]))
    head = [*_CSV_FIELDS, "kernel", "ratio", "ratio_low", "ratio_high", "skipped"]
    head += [f"{name}_{what}" for name in names for what in ("us", "p10_us", "p90_us", "error_rms")]
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, head, restval="")
        writer.writeheader()
        for case in cases:
            line = {name: case[name] for name in _CSV_FIELDS if case[name] is not None}
            line["kernel"] = (case["kernel"] or {}).get("name", "")
            if case["ratio"]:
                line |= {f"ratio{end}": case["ratio"][key] for end, key in _RATIO_ENDS.items()}
            line["skipped"] = "; ".join(f"{name}: {reason}" for name, reason in case["skipped"].items())
            for name, contender in case["contenders"].items():
                line |= {f"{name}_{what}": contender[f"{key}"] for what, key in _TIMES.items()}
                line[f"{name}_error_rms"] = (contender["error"] or {}).get("rms", "")
            writer.writerow(line)


_RATIO_ENDS = {"": "value", "_low": "low", "_high": "high"}
_TIMES = {"us": "median_us", "p10_us": "p10_us", "p90_us": "p90_us"}


def write_plot(cases: Sequence[Case], path: str | Path, title: str) -> None:
    """A picture: for each operation the ratios as sorted bars from 1 up or down, with their intervals.

    Raises:
        ValueError: no case has a ratio, or the file's suffix is no picture's.
        OSError: the file cannot be written.
    """
    drawing_of = require("matplotlib.figure", EXTRA).Figure
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if case["ratio"]:
            groups.setdefault(f"{case['op']}, {setting(case)}", []).append(case)
    if not groups:
        raise ValueError("there is no ratio to draw: nothing was compared")
    panels = [
        (name, part)
        for name, group in groups.items()
        for part in _parts(sorted(group, key=lambda case: case["ratio"]["value"]))
    ]
    height = sum(_panel_height(part) for _, part in panels) + 0.9
    drawing = drawing_of(figsize=(9, height), layout="constrained")
    axes = drawing.subplots(
        len(panels), 1, squeeze=False, height_ratios=[_panel_height(part) for _, part in panels]
    )[:, 0]
    drawing.suptitle(title, fontsize=12)
    for axis, (name, part) in zip(axes, panels, strict=True):
        _panel(axis, name, part)
    legend = require("matplotlib.patches", EXTRA).Patch
    axes[0].legend(
        handles=[legend(color=colour, label=kind) for kind, colour in _COLOURS.items()],
        loc="upper right",
        fontsize=8,
    )
    drawing.savefig(path, dpi=130)


def _parts(cases: list[Case]) -> list[list[Case]]:
    """Panels of about the same, readable, number of bars."""
    count = -(-len(cases) // _BARS)
    size = -(-len(cases) // count)
    return [cases[start : start + size] for start in range(0, len(cases), size)]


def _panel_height(part: list[Case]) -> float:
    return 0.7 + 0.21 * len(part)


def _panel(axis, name: str, part: list[Case]) -> None:
    for place, case in enumerate(part):
        ratio = case["ratio"]
        axis.barh(place, ratio["value"] - 1, left=1, color=_COLOURS[verdict(case)], height=0.75)
        axis.plot([ratio["low"], ratio["high"]], [place, place], color="black", linewidth=0.8)
        axis.annotate(
            f"{ratio['value']:.2f}",
            (max(ratio["high"], 1.0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log", base=2)
    low = min(1.0, *(case["ratio"]["low"] for case in part))
    high = max(1.0, *(case["ratio"]["high"] for case in part))
    axis.set_xlim(min(low / 1.1, 0.7), max(high * 1.25, 1.5))
    axis.xaxis.set_major_locator(require("matplotlib.ticker", EXTRA).MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
    axis.set_yticks(range(len(part)), [f"{case['suite']} {_layer(case)}" for case in part], fontsize=7)
    axis.set_ylim(-0.7, len(part) - 0.3)
    axis.invert_yaxis()
    axis.grid(axis="x", linewidth=0.3)
    axis.set_axisbelow(True)
    counts = {kind: sum(verdict(case) == kind for case in part) for kind in _COLOURS}
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    axis.set_title(f"{name}: fastest baseline's time / fastcnn's ({told})", fontsize=9, loc="left")
