"""`fastcnn bench`."""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from .._extras import check_installed, require
from ..bench import show
from ..bench.cases import Case, expand, quick
from ..bench.networks import find_model
from ..bench.session import DeviceLost, NoDevice, Session, gpu_settings
from ..bench.suites import POOL_OPS, ConvRow, OtherRow, PoolRow, Row, SuiteError, select, sizes
from .errors import UserError
from .progress import is_terminal

EXTRA = "bench"
INTERRUPTED = 130
QUICK_SECONDS = 300.0
CONV_FORMAT = "NxCxHxW KxRxS, for instance: --conv 64x128x56x56 128x3x3 --stride 1 --padding 1"
POOL_FORMAT = (
    "KIND NxCxHxW WINDOW, for instance: --pool max 128x64x112x112 3x3 --stride 2 --padding 1, or "
    "--pool adaptive_avg 128x2048x7x7 1x1 (an adaptive pool's WINDOW is its output size)"
)


def main(arguments: argparse.Namespace) -> int:
    """Measure what was asked for, show it, and keep it where that was asked for."""
    try:
        cases = chosen_cases(arguments)
    except SuiteError as error:
        raise UserError(str(error)) from error
    if not cases:
        raise UserError("nothing is left to measure: the rows asked for have none of the passes named")
    if arguments.list:
        print("\n".join(case.id for case in cases))
        return 0
    if arguments.model and arguments.model != "small_cnn":
        find_model(arguments.model)
    check_installed("rich", extra=EXTRA)
    if arguments.plot:
        check_installed("matplotlib", extra=EXTRA)
    for path in (arguments.json, arguments.csv, arguments.plot):
        if path and not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {Path(path).parent}")
    nothing_named = not _rows_named(arguments)
    try:
        settings = gpu_settings(autotune=not (arguments.quick or nothing_named))
    except NoDevice as error:
        raise UserError(f"bench: {error}") from error
    seconds = arguments.seconds
    if seconds is None and (arguments.quick or nothing_named):
        seconds = QUICK_SECONDS
    return run(cases, Session(settings, seconds=seconds, path=arguments.json), arguments)


def run(cases: Sequence[Case], session: Session, arguments: argparse.Namespace) -> int:
    """Measures the cases and reports. Ctrl-C ends the measuring; what was measured is reported and kept.

    Exit status: 0; 1 if a result of ours was wrong or the device was lost; 130 after Ctrl-C.
    """
    console = require("rich.console", EXTRA).Console()
    if session.settings.without_ours:
        print(
            f"fastcnn: only torch's own kernels are measured: {session.settings.without_ours}",
            file=sys.stderr,
        )
    interrupted = False
    lost = None
    try:
        with _progress(len(cases)) as advance:
            advance("measuring what the device can do at best", 0)
            session.start()
            advance(cases[0].id, 0)
            for done, found in enumerate(session.run(cases), 1):
                advance(cases[done].id if done < len(cases) else found["id"], done)
        session.finish()
    except KeyboardInterrupt:
        interrupted = True
    except DeviceLost as error:
        lost = str(error)
    if (interrupted or lost) and session.record is not None and session.record.path is not None:
        session.record.save()
    _report(session, console, arguments)
    if interrupted:
        print(f"interrupted after {len(session.cases)} of {len(cases)} cases", file=sys.stderr)
        return INTERRUPTED
    if lost:
        print(f"fastcnn: {lost}; nothing after it could be measured", file=sys.stderr)
        return 1
    return 1 if any(case["wrong"] for case in session.cases) else 0


def _report(session: Session, console, arguments: argparse.Namespace) -> None:
    cases = session.cases
    title = "fastcnn bench"
    if session.record is not None:
        machine = session.record.content["machine"]
        device = machine["gpu"] or "CPU tensors, to try this out: no result"
        title = f"{device}, torch {machine['torch']}, {session.record.content['date'][:10]}"
    # A table that is not for a terminal's eyes is not folded to a terminal's width.
    if not console.is_terminal:
        console = require("rich.console", EXTRA).Console(width=200)
    show.print_report(cases, console, title)
    if session.left_out:
        print(f"left out for lack of time: {len(session.left_out)} cases, from {session.left_out[0].id} on")
    if arguments.csv:
        show.write_csv(cases, arguments.csv)
        print(f"written: {arguments.csv}")
    if arguments.json and session.record is not None:
        print(f"written: {arguments.json}")
    if arguments.plot:
        try:
            show.write_plot(cases, arguments.plot, title)
            print(f"written: {arguments.plot}")
        except ValueError as error:
            print(f"fastcnn: --plot {arguments.plot}: {error}", file=sys.stderr)


@contextmanager
def _progress(total: int):
    """A bar on terminals, elsewhere a line a case; gives a function of the case begun and the number done."""
    if not is_terminal():
        last = [-1]

        def say(text: str, done: int) -> None:
            if done < total or done == 0:
                print(f"[{done + 1}/{total}] {text}" if last[0] >= 0 else text, flush=True)
            last[0] = done

        yield say
        return
    rich = require("rich.progress", EXTRA)
    bar = rich.Progress(
        rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.description}", markup=False),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda text, done: bar.update(task, description=text, completed=done)


def _rows_named(arguments: argparse.Namespace) -> bool:
    return bool(arguments.suite or arguments.conv or arguments.pool or arguments.model)


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """What the flags ask for; nothing named is --quick.

    Raises:
        SuiteError, UserError: names and shapes that cannot be.
    """
    rows: list[Row] = select(arguments.suite or ())
    if arguments.conv:
        rows.append(conv_row(*arguments.conv, arguments))
    if arguments.pool:
        rows.append(pool_row(*arguments.pool, arguments))
    for flag in ("stride", "padding", "dilation", "groups"):
        if getattr(arguments, flag) is not None and not (arguments.conv or arguments.pool):
            raise UserError(f"--{flag} goes with --conv or --pool")
    passes = list(arguments.passes or ())
    if arguments.model:
        rows.append(model_row(arguments.model, arguments.batch))
        if arguments.fuse and (arguments.train or passes or rows[-1].suite != "models"):
            raise UserError(
                "--fuse is inference with BatchNorms, additions and activations fused: leave out "
                "--train and --pass, and name a model other than small_cnn"
            )
        if not passes and rows[-1].suite == "models":
            passes = ["training" if arguments.train else "inference_fused" if arguments.fuse else "inference"]
            if len(rows) > 1:
                raise UserError("--model is measured alone: leave out --suite, --conv and --pool")
    elif arguments.batch is not None or arguments.train or arguments.fuse:
        raise UserError("--batch, --train and --fuse go with --model")
    if rows and arguments.quick:
        raise UserError("--quick is a selection of its own: leave out --suite, --conv, --pool and --model")
    if not rows:
        if not (passes or arguments.dtype or arguments.layout):
            return quick()
        rows = list(dict.fromkeys(case.row for case in quick()))
    return expand(
        rows,
        passes=passes,
        dtypes=arguments.dtype or ["bf16"],
        layouts=arguments.layout or ["channels_last"],
    )


def _numbers(text: str, count: int, usage: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) or text.count("x") != count - 1:
        raise UserError(f"{text!r} is not {count} sizes joined by x: expected {usage}")
    return tuple(int(part) for part in text.split("x"))


def _pair(flag: str, text: str | None, default: tuple[int, int]) -> tuple[int, int]:
    if text is None:
        return default
    try:
        return sizes(text)
    except ValueError:
        raise UserError(f"--{flag} {text!r}: expected a number, or two as in 2x1 (height x width)") from None


def conv_row(image: str, filters: str, arguments: argparse.Namespace) -> ConvRow:
    """The row of --conv and the flags beside it."""
    n, c, h, w = _numbers(image, 4, CONV_FORMAT)
    k, r, s = _numbers(filters, 3, CONV_FORMAT)
    pairs = {
        "stride": _pair("stride", arguments.stride, (1, 1)),
        "padding": _pair("padding", arguments.padding, (0, 0)),
        "dilation": _pair("dilation", arguments.dilation, (1, 1)),
    }
    groups = arguments.groups or 1
    name = " ".join((image, filters, *(f"{flag}{_short(pair)}" for flag, pair in pairs.items())))
    name += f" groups{groups}" if groups > 1 else ""
    return ConvRow("own", name, 1, n, c, h, w, k, r, s, **pairs, groups=groups)


def _short(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def pool_row(kind: str, image: str, window: str, arguments: argparse.Namespace) -> PoolRow:
    """The row of --pool and the flags beside it."""
    if kind not in POOL_OPS:
        raise UserError(f"there is no pool {kind!r}: expected {POOL_FORMAT}")
    n, c, h, w = _numbers(image, 4, POOL_FORMAT)
    kernel = _numbers(window, 2, POOL_FORMAT)
    if arguments.groups is not None:
        raise UserError("--groups goes with --conv")
    name = f"{kind} {image} {window}"
    if kind.startswith("adaptive"):
        given = [flag for flag in ("stride", "padding", "dilation") if getattr(arguments, flag) is not None]
        if given:
            raise UserError(f"--{given[0]}: an adaptive pool has none")
        return PoolRow("own", name, 1, POOL_OPS[kind], n, c, h, w, kernel)
    pairs = {
        "stride": _pair("stride", arguments.stride, kernel),
        "padding": _pair("padding", arguments.padding, (0, 0)),
        "dilation": _pair("dilation", arguments.dilation, (1, 1)),
    }
    name = " ".join((name, *(f"{flag}{_short(pair)}" for flag, pair in pairs.items())))
    return PoolRow("own", name, 1, POOL_OPS[kind], n, c, h, w, kernel, **pairs)


def model_row(name: str, batch: int | None) -> OtherRow:
    """The row of --model."""
    if name == "small_cnn":
        return OtherRow("small_cnn_step", name, batch=batch or 128, image=(1, 28, 28))
    return OtherRow("models", name, batch=batch or 128)
