"""What the planner chooses for every layer of every suite, as text that is kept under version control.

    python -m tests.benchmarks.plan_snapshot             shows what has changed
    python -m tests.benchmarks.plan_snapshot --update    writes plans.txt anew: look at `git diff`, commit it

One line for each layer (neighbours that agree share one) and pass: kernel, tile, and the number of splits
where the reduction is split. Dtypes, layouts and chips are named where the choice depends on them. After a
merge conflict in plans.txt take either side and write it anew.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

import torch

import fastcnn
from fastcnn.bench.suites import ConvRow, PoolRow, conv_rows, pool_rows

SNAPSHOT = Path(__file__).with_name("plans.txt")
COMMAND = "python -m tests.benchmarks.plan_snapshot --update"
HEAD = f"# Written by `{COMMAND}`. Layer: what is chosen, where; /N is N splits of the reduction."

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"nhwc": True, "nchw": False}
CHIPS = ("H200", "A100")
Case = tuple[str, str, str]  # dtype, layout, chip
CASES: tuple[Case, ...] = tuple(product(DTYPES, LAYOUTS, CHIPS))


def decision(row: ConvRow | PoolRow, op: str, case: Case) -> str:
    """The planner's choice in few words."""
    dtype, layout, chip = case
    if isinstance(row, ConvRow):
        arguments = {"weight": row.weight_shape, "dilation": row.dilation, "groups": row.groups}
    elif row.adaptive:
        arguments = {"output_size": row.kernel}
    else:
        arguments = {"kernel_size": row.kernel, "ceil_mode": row.ceil_mode}
        if row.op == "max_pool2d":
            arguments["dilation"] = row.dilation
    if isinstance(row, ConvRow) or not row.adaptive:
        arguments |= {"stride": row.stride, "padding": row.padding}
    try:
        plan = fastcnn.plan(
            op, row.input_shape, **arguments, dtype=DTYPES[dtype], channels_last=LAYOUTS[layout], chip=chip
        )
    except RuntimeError as error:  # as torch refuses it, too
        return f"refused: {error}"
    splits = f" /{plan.splits}" if plan.splits > 1 else ""
    return f"{plan.kernel} [{plan.tile}]{splits}"


def summary(choices: dict[Case, str]) -> str:
    """Which choice is taken where: "fp32: A; bf16 nhwc: B; bf16 nchw: C", or just "A" if it is everywhere."""
    places: dict[str, list[Case]] = {}
    for case, choice in choices.items():
        places.setdefault(choice, []).append(case)
    if len(places) == 1:
        return next(iter(places))
    return "; ".join(f"{' + '.join(_regions(cases))}: {choice}" for choice, cases in places.items())


def _regions(cases: Sequence[Case]) -> list[str]:
    """Cases in words: what all values of an axis have in common does not name the axis."""
    axes = (tuple(DTYPES), tuple(LAYOUTS), CHIPS)
    left = set(cases)
    regions = []
    # Wide regions first: an axis is free (None) or fixed to one of its values.
    wanted = sorted(product(*((None, *axis) for axis in axes)), key=lambda region: -region.count(None))
    for region in wanted:
        members = set(
            product(*(axis if fixed is None else (fixed,) for axis, fixed in zip(axes, region, strict=True)))
        )
        if members <= left:
            left -= members
            regions.append(" ".join(fixed for fixed in region if fixed is not None))
    return regions


def rows_and_passes() -> Iterator[tuple[str, str, Sequence[ConvRow | PoolRow]]]:
    """Suite, operation, rows: those of a suite that have the operation."""
    for suite, rows in groupby(conv_rows(), key=lambda row: row.suite):
        rows = list(rows)
        for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"):
            yield suite, op, rows
    for (suite, op), rows in groupby(pool_rows(), key=lambda row: (row.suite, row.op)):
        rows = list(rows)
        for name in (op, f"{op}_backward"):
            yield suite, name, rows


def snapshot() -> str:
    """The whole text. Needs a library of ours, the emulated one for instance."""
    lines = [HEAD]
    for suite, op, rows in rows_and_passes():
        lines += ["", f"[{suite} {op}]"]
        chosen = [(row.layer, summary({case: decision(row, op, case) for case in CASES})) for row in rows]
        for text, group in groupby(chosen, key=lambda pair: pair[1]):
            layers = [layer for layer, _ in group]
            name = layers[0] if len(layers) == 1 else f"{layers[0]} .. {layers[-1]} ({len(layers)})"
            lines.append(f"{name}: {text}")
    return "\n".join(lines) + "\n"


def difference(kept: str, present: str) -> list[str]:
    """The lines that changed, each change under its suite and operation, "-" what was kept."""
    return list(
        difflib.unified_diff(_with_sections(kept), _with_sections(present), "kept", "now", lineterm="", n=0)
    )[2:]


def _with_sections(text: str) -> list[str]:
    section, lines = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif line:
            lines.append(f"{section} {line}")
    return lines


def complaint(kept: str, present: str, most: int = 30) -> str | None:
    """What to say where the two differ, with the first changes; None where they do not."""
    changed = [line for line in difference(kept, present) if not line.startswith("@@")]
    if not changed:
        return None if kept == present else f"plans.txt is out of form: write it anew with `{COMMAND}`"
    more = [f"... and {len(changed) - most} lines more"] if len(changed) > most else []
    said = f"The planner chooses otherwise than plans.txt says. If that is meant: `{COMMAND}`, and commit it."
    return "\n".join([said, *changed[:most], *more])


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the difference (exit status 1 if there is any), or writes the file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.plan_snapshot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--update", action="store_true", help="write plans.txt anew")
    arguments = parser.parse_args(argv)
    from fastcnn import _library
    from tests import emulator

    _library.load(emulator.build())
    present = snapshot()
    kept = SNAPSHOT.read_text() if SNAPSHOT.exists() else ""
    changed = [line for line in difference(kept, present) if not line.startswith("@@")]
    print("\n".join(changed) or "nothing has changed")
    if arguments.update:
        SNAPSHOT.write_text(present)
        return 0
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
