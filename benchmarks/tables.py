"""Figures as Markdown: the README's short tables and benchmarks/RESULTS.md in full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.figures import (
    Figure,
    Summary,
    grouped,
    kind,
    measured_on,
    setting,
    summarize,
)
from fastcnn.bench.record import OURS

NOT_YET = "Not measured yet."
HOW_TO_READ = (
    "The ratio is the fastest baseline's time over ours: above 1 fastcnn is faster (▲), below 1 slower (▼); "
    "= where the 95 % interval has 1 in it. The geometric mean counts each layer as often as it occurs in "
    "its network."
)
CLOCK_PARTS = (
    (("sm_mhz", "sm_max_mhz"), "SM {sm_mhz:.0f} of {sm_max_mhz:.0f} MHz"),
    (("memory_mhz", "memory_max_mhz"), "memory {memory_mhz:.0f} of {memory_max_mhz:.0f} MHz"),
    (("power_watts", "power_limit_watts"), "{power_watts:.0f} of {power_limit_watts:.0f} W"),
    (("temperature_celsius",), "{temperature_celsius:.0f} °C"),
)
USUAL = {"stride": "1", "padding": "0", "dilation": "1", "groups": "1", "ceil_mode": "False"}
MARKS = {"faster": "▲", "slower": "▼", "even": "=", "": ""}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a leading ">" in a column's name sets the column flush right."""
    names = [name.removeprefix(">") for name in header]
    rule = ["---:" if name.startswith(">") else "---" for name in header]
    lines = (names, rule, *([_cell(text) for text in row] for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def readme_section(by_gpu: Mapping[str, Sequence[Figure]], pictures: Mapping[str, Sequence[str]]) -> str:
    """What stands between the README's markers. `pictures` has each GPU's, as paths from the README."""
    if not by_gpu:
        return f"{NOT_YET} Figures appear here once a GPU has made a record of them in `benchmarks/results/`."
    parts = [f"{HOW_TO_READ} Every layer: [benchmarks/RESULTS.md](benchmarks/RESULTS.md)."]
    for gpu, figures in by_gpu.items():
        layers, steps, _ = split_kinds(figures)
        parts.append(f"**{gpu}**")
        if layers:
            groups = grouped(layers, lambda figure: setting(figure.case))
            header = ("operation", "dtype", "layout", *SUMMARY_HEADER)
            rows = (
                (op, dtype, layout, *summary_cells(summarize(group), with_suite=True))
                for (dtype, layout, op), group in groups.items()
            )
            parts.append(table(header, rows))
        if steps:
            parts.append(steps_table(steps))
        parts.append(measured_on(figures))
        parts += [f"![{picture_title(path)}]({path})" for path in pictures.get(gpu, ())]
    return "\n\n".join(parts)


def results_page(
    by_gpu: Mapping[str, Sequence[Figure]], pictures: Mapping[str, Sequence[str]], suites: Sequence[str]
) -> str:
    """benchmarks/RESULTS.md. `pictures` as paths from that file; `suites` are the shape lists there are."""
    parts = [
        "# Results",
        "Made by `python -m benchmarks.report` from the records in [results/](results/README.md).",
    ]
    if not by_gpu:
        return "\n\n".join([*parts, NOT_YET]) + "\n"
    parts.append(HOW_TO_READ)
    for gpu, figures in by_gpu.items():
        parts += _results_of(gpu, figures, pictures.get(gpu, ()), suites)
    return "\n\n".join(parts) + "\n"


def _results_of(
    gpu: str, figures: Sequence[Figure], pictures: Sequence[str], suites: Sequence[str]
) -> list[str]:
    layers, steps, calls = split_kinds(figures)
    parts = [f"## {gpu}", measured_on(figures), runs_table(figures)]
    parts += [f"![{picture_title(path)}]({path})" for path in pictures]
    if layers:
        groups = grouped(layers, lambda figure: (figure.case["suite"], *setting(figure.case)))
        header = ("suite", "operation", "dtype", "layout", *SUMMARY_HEADER)
        rows = (
            (suite, op, dtype, layout, *summary_cells(summarize(group)))
            for (suite, dtype, layout, op), group in groups.items()
        )
        parts += ["### Suites", table(header, rows)]
    there = {figure.case["suite"] for figure in figures}
    if absent := [suite for suite in suites if suite not in there]:
        parts.append(f"Not measured yet: {', '.join(absent)}.")
    if steps:
        parts += ["### Models and training steps", steps_table(steps)]
    if calls:
        parts += ["### Time of a call on the host", calls_table(calls)]
    for suite, of_suite in grouped(layers, lambda figure: figure.case["suite"]).items():
        parts.append(f"### {suite}")
        for (dtype, layout, op), group in grouped(of_suite, lambda figure: setting(figure.case)).items():
            parts += [f"#### {suite}: {op}, {dtype}, {layout}", layers_table(group)]
    if wrong := [figure for figure in figures if figure.case["wrong"]]:
        parts.append("### Wrong results, which have no times")
        parts.append("\n".join(f"- `{figure.case['id']}`: {figure.case['wrong']}" for figure in wrong))
    return parts


def split_kinds(figures: Iterable[Figure]) -> tuple[list[Figure], list[Figure], list[Figure]]:
    """Layers, whole models and steps, and times of calls."""
    of_kind = grouped(figures, lambda figure: kind(figure.case["op"]))
    return tuple(of_kind.get(name, []) for name in ("layer", "step", "call"))


SUMMARY_HEADER = (
    ">layers", ">faster", ">slower", ">geomean", ">sum of times", "worst layer", "best layer", "sources",
)  # fmt: skip


def summary_cells(summary: Summary, with_suite: bool = False) -> tuple[str, ...]:
    """A group of layers under SUMMARY_HEADER; `with_suite` names the suites of the worst and the best."""
    layers = (
        str(summary.layers)
        if summary.compared == summary.layers
        else f"{summary.compared} of {summary.layers}"
    )
    if summary.wrong:
        layers += f" ({summary.wrong} wrong)"
    sources = "current" if not summary.changed else f"changed since for {summary.changed}"
    if not summary.compared:
        return (layers, "", "", *["not measured yet"] * 4, "")
    return (
        layers,
        str(summary.faster),
        str(summary.slower),
        _ratio(summary.geomean),
        _ratio(summary.total_ratio),
        *(f"{_ratio(end.ratio)} {_layer(end, with_suite)}" for end in (summary.worst, summary.best)),
        sources,
    )


def short_lines(figures: Sequence[Figure]) -> list[str]:
    """Figures for a terminal: a line for each suite and operation, and one for each model or step."""
    layers, steps, calls = split_kinds(figures)
    lines = []
    for key, group in grouped(layers, lambda figure: (figure.case["suite"], *setting(figure.case))).items():
        summary = summarize(group)
        told = f"{summary.compared}/{summary.layers} layers, {summary.wrong} wrong"
        if summary.compared:
            worst, best = summary.worst, summary.best
            told += (
                f", {summary.faster} faster, {summary.slower} slower, geomean {_ratio(summary.geomean)}, "
                f"worst {_ratio(worst.ratio)} {_layer(worst)}, best {_ratio(best.ratio)} {_layer(best)}"
            )
        lines.append(f"{' '.join(key)}: {told}")
    for figure in (*steps, *calls):
        times = (f"{name} {_time(figure, name, spread=False)} us" for name in contender_names([figure]))
        lines.append(f"{figure.case['id']}: {', '.join(times)}")
    return lines


def layers_table(figures: Sequence[Figure]) -> str:
    """One line per layer: our time, the fastest baseline's, their ratio, the roofline."""
    header = (
        "layer", "shape", ">fastcnn us", ">fastest baseline us", "baseline", ">ratio", ">roofline", "kernel",
        "sources",
    )  # fmt: skip
    return table(header, (_layer_cells(figure) for figure in figures))


def _layer_cells(figure: Figure) -> tuple[str, ...]:
    case = figure.case
    roofline = case["percent_of_roofline"]
    return (
        _layer(figure),
        shape_text(case["shape"]),
        _time(figure, OURS),
        _time(figure, case["baseline"]),
        case["baseline"] or "",
        _ratio_with_interval(figure),
        "" if roofline is None else f"{roofline:.0f} %",
        case["kernel"]["name"] if case["kernel"] else "",
        figure.sources,
    )


def steps_table(figures: Sequence[Figure]) -> str:
    """Whole models and training steps: every contender's time in milliseconds."""
    names = contender_names(figures)
    header = ("model", "step", "dtype", "layout", *(f">{name} ms" for name in names), ">ratio", "sources")
    rows = (
        (
            step_name(figure),
            figure.case["op"],
            setting(figure.case)[0],
            figure.case["layout"],
            *(_time(figure, name, unit=1e3, spread=False) for name in names),
            _ratio_with_interval(figure),
            figure.sources,
        )
        for figure in figures
    )
    return table(header, rows)


def step_name(figure: Figure) -> str:
    """A model and its batch."""
    batch = figure.case["shape"].get("batch")
    return figure.case["layer"] + (f", batch {batch}" if batch else "")


def calls_table(figures: Sequence[Figure]) -> str:
    """What a call costs on the host: every contender's time in microseconds."""
    names = contender_names(figures)
    header = ("call", "dtype", "layout", *(f">{name} us" for name in names), ">ratio", "sources")
    rows = (
        (
            figure.case["layer"],
            setting(figure.case)[0],
            figure.case["layout"],
            *(_time(figure, name) for name in names),
            _ratio_with_interval(figure),
            figure.sources,
        )
        for figure in figures
    )
    return table(header, rows)


def runs_table(figures: Sequence[Figure]) -> str:
    """The runs that the figures come from, and the state of the GPU in each."""
    runs = {figure.record["date"]: figure.record for figure in figures}
    header = ("run (UTC)", "commit", ">cases", "copy", "matrix products", "clocks at start", "clocks at end")
    return table(header, (_run_cells(record) for _, record in sorted(runs.items())))


def _run_cells(record: Mapping) -> tuple[str, ...]:
    commit = (record["commit"]["id"] or "unknown")[:10] + (
        " + changes" if record["commit"]["changed"] else ""
    )
    ceilings = record["ceilings"]
    copy = f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s" if ceilings else "not measured"
    rates = ceilings["flops_per_second"] if ceilings else {}
    products = (
        ", ".join(f"{dtype} {rate / 1e12:.0f} TFLOP/s" for dtype, rate in rates.items()) or "not measured"
    )
    clocks = (_clocks(record["clocks"][when]) for when in ("start", "end"))
    date = record["date"] + ("" if record["complete"] else " (cut short)")
    return (date, commit, str(len(record["cases"])), copy, products, *clocks)


def _clocks(read: Mapping | None) -> str:
    """What `read_clocks` said, in short; parts that it did not know are left out."""
    known = {key: value for key, value in (read or {}).items() if value is not None}
    parts = [text.format(**known) for keys, text in CLOCK_PARTS if all(key in known for key in keys)]
    if known.get("throttle_reasons"):
        parts.append(f"held back by {' and '.join(known['throttle_reasons'])}")
    return ", ".join(parts) or "unknown"


def contender_names(figures: Iterable[Figure]) -> list[str]:
    """Every contender that occurs, ours first."""
    names = dict.fromkeys(name for figure in figures for name in figure.case["contenders"])
    return sorted(names, key=lambda name: (name != OURS, name))


def shape_text(shape: Mapping) -> str:
    """A shape on one line, "N8 C64 H56 W56 K64 R3 S3 stride 2"; what is as usual is left out."""
    words = []
    for key, value in shape.items():
        text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        first, _, rest = text.partition("x")
        text = first if rest == first else text
        if USUAL.get(key) != text:
            words.append(f"{key}{text}" if len(key) == 1 else f"{key} {text}")
    return " ".join(words)


def picture_title(path: str) -> str:
    """What a picture shows, from its file's name."""
    return path.rpartition("/")[2].removesuffix(".png").replace("-", " ")


def _layer(figure: Figure, with_suite: bool = False) -> str:
    count = figure.case["count"]
    name = f"{figure.case['suite']} {figure.case['layer']}" if with_suite else figure.case["layer"]
    return name + (f" (x{count})" if count > 1 else "")


def _time(figure: Figure, name: str | None, unit: float = 1.0, spread: bool = True) -> str:
    contender = figure.case["contenders"].get(name)
    if contender is None:
        reason = figure.case["skipped"].get(name)
        return "wrong" if name == OURS and figure.case["wrong"] else "skipped" if reason else ""
    middle, low, high = (_number(contender[key] / unit) for key in ("median_us", "p10_us", "p90_us"))
    return f"{middle} [{low}, {high}]" if spread else middle


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ratio_with_interval(figure: Figure) -> str:
    ratio = figure.case["ratio"]
    if ratio is None:
        return ""
    return f"{MARKS[figure.verdict]} {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _number(value: float) -> str:
    """Three digits that say something, in plain notation."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
