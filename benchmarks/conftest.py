"""`pytest benchmarks`: the cases of fastcnn.bench as items of pytest-benchmark, on device times.

    pytest benchmarks --quick                       a few layers of every class, about five minutes
    pytest benchmarks --suite resnet50_224 --pass wgrad --dtype bf16 --dtype tf32
    pytest benchmarks -m pool --benchmark-json=pools.json --json-record=record.json

pytest-benchmark's own statistics, comparisons, JSON and histograms are fed with the samples of ours; all
contenders are in `extra_info`, and a closing table compares them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcnn.bench import show
from fastcnn.bench.cases import Case, expand, quick
from fastcnn.bench.session import NoDevice, Session, gpu_settings
from fastcnn.bench.suites import ConvRow, OtherRow, PoolRow, SuiteError, select

QUICK_SECONDS = 300.0
_SESSION = pytest.StashKey[Session]()
_CASES = pytest.StashKey[list[Case]]()


class SampleTimer:
    """A clock for `benchmark.pedantic` by which its rounds last as long as samples that were taken before.

    Contenders take turns, so all are timed at once, and pytest-benchmark is told afterwards.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._left: Iterator[float] = iter(())
        self._started = False

    def load(self, microseconds: list[float]) -> None:
        """The samples of the rounds to come."""
        self._left = iter(microseconds)

    def __call__(self) -> float:
        if self._started:
            self._now += 1e-6 * next(self._left)
        self._started = not self._started
        return self._now


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn", "what of fastcnn is measured")
    add = group.addoption
    add(
        "--suite",
        action="append",
        help="a suite (resnet50_224, pool_resnet50, ...) or main (the default), convs, pools, all",
    )
    add("--dtype", action="append", help="bf16 (the default), fp16, fp32, tf32")
    add("--layout", action="append", help="channels_last (the default) or nchw")
    add("--pass", dest="passes", action="append", help="fprop, dgrad, wgrad, forward_backward, act, ...")
    add("--quick", action="store_true", help="a few layers of every class, for about five minutes")
    add("--seconds", type=float, help="begin no case after this long; with --quick 300 by default")
    add("--json-record", help="write a record as benchmarks/results/README.md describes it")


MARKERS = (
    "conv: convolutions: fprop, dgrad, wgrad, forward and backward, with bias and activation",
    "depthwise: convolutions whose every channel is a group of its own",
    "pool: max, average and adaptive pools, forward and backward",
    "model: training steps and inference of whole networks",
    "overhead: what a call costs the host",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    # Found late, as `pytest .` may find it, this file can add no options: then nothing is measured.
    known = hasattr(config.option, "json_record")
    config.stash[_CASES] = selected(config) if known else []


def selected(config: pytest.Config) -> list[Case]:
    """The cases that the options ask for. Raises pytest.UsageError on names there are not."""
    option = config.option
    try:
        if option.quick and not option.suite:
            if not (option.dtype or option.layout or option.passes):
                return quick()
            rows = list(dict.fromkeys(case.row for case in quick()))
        else:
            rows = select(option.suite or ["main"])
        return expand(
            rows,
            passes=option.passes or (),
            dtypes=option.dtype or ["bf16"],
            layouts=option.layout or ["channels_last"],
        )
    except SuiteError as error:
        raise pytest.UsageError(str(error)) from None


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    row = case.row
    marks = [pytest.mark.benchmark(group=case.op, timer=SampleTimer())]
    if isinstance(row, ConvRow):
        marks.append(pytest.mark.conv)
        if row.depthwise:
            marks.append(pytest.mark.depthwise)
    elif isinstance(row, PoolRow):
        marks.append(pytest.mark.pool)
    elif isinstance(row, OtherRow):
        marks.append(pytest.mark.overhead if row.suite == "call_overhead" else pytest.mark.model)
    return marks


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.config.stash[_CASES]
        metafunc.parametrize("case", [pytest.param(case, id=case.id, marks=_marks(case)) for case in cases])


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest) -> Session:
    """The run that all items share; skips them where there is no GPU."""
    option = request.config.option
    try:
        settings = gpu_settings(autotune=not option.quick)
    except NoDevice as reason:
        pytest.skip(str(reason))
    seconds = option.seconds
    if seconds is None and option.quick:
        seconds = QUICK_SECONDS
    session = Session(settings, seconds=seconds, path=option.json_record)
    request.config.stash[_SESSION] = session
    session.start()
    return session


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The record of a run that was cut short stays incomplete, with all that was measured."""
    measured = session.config.stash.get(_SESSION, None)
    if measured is None or measured.record is None:
        return
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if ended and not (session.shouldstop or session.shouldfail):
        measured.finish()
    elif measured.record.path is not None:
        measured.record.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is None or not session.cases:
        return
    from rich.console import Console

    machine = session.record.content["machine"]
    title = f"{machine['gpu']}, torch {machine['torch']}, {session.record.content['date'][:10]}"
    terminalreporter.section("fastcnn beside torch", sep="-")
    # What goes to a file is not folded to a terminal's width.
    console = Console() if terminalreporter.isatty else Console(width=200)
    show.print_report(session.cases, console, title)
