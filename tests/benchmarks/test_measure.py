"""What benchmarks.measure takes on, in which order, and what a worker of it says."""

import argparse
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure
from benchmarks.supervise import Start
from build_support.families import family_hashes
from fastcnn.bench.cases import expand, quick
from fastcnn.bench.suites import select
from tests.benchmarks.fixtures import made_up

KNOWN = family_hashes(measure.RESULTS.parents[1] / "csrc")
CEILINGS = {"copy_bytes_per_second": 1e12, "flops_per_second": {"bfloat16": 1e14}}


@pytest.fixture
def planned(monkeypatch):
    """The planner made up: pools are pool2d/max, depthwise layers conv2d/depthwise, 1x1 ones conv2d/thin."""

    def families(case, settings, known) -> list[str]:
        if case.row.suite.startswith("pool"):
            return ["pool2d/max"]
        if getattr(case.row, "depthwise", False):
            return ["conv2d/depthwise"]
        return ["conv2d/thin"] if getattr(case.row, "h", 0) == 7 else ["conv2d/generic"]

    monkeypatch.setattr(measure, "planned_families", families)


def test_suites_come_in_bfloat16_first_and_each_case_once():
    cases = measure.suite_cases(["small_cnn_28", "pool_smallcnn", "small_cnn_28"])
    assert len(set(cases)) == len(cases)
    seen = list(dict.fromkeys((case.short_dtype, case.layout) for case in cases))
    assert seen[0] == ("bf16", "channels_last")
    assert {("fp32", "channels_last"), ("tf32", "channels_last"), ("bf16", "contiguous")} <= set(seen)


def test_what_has_no_figure_of_these_sources_comes_first():
    cases = expand(select(["small_cnn_28"]), passes=["fprop"])

    def of(case, date: str, sources: dict = KNOWN) -> dict:
        entry = made_up.case(case.row.suite, case.row.layer, case.op, {"fastcnn": 1.0, "cudnn_nchw": 2.0})
        return made_up.record([{**entry, "id": case.id}], date=date, sources=sources)

    stale = {**KNOWN, "conv2d/generic": "0" * 16}
    records = [
        of(cases[2], "2001-01-01T00:00:00Z"),
        of(cases[0], "2001-01-02T00:00:00Z"),
        of(cases[1], "2001-01-03T00:00:00Z", stale),
    ]
    ordered = measure.unmeasured_first(cases, records, made_up.GPU, KNOWN)
    assert ordered == [cases[1], *cases[3:], cases[2], cases[0]]
    assert measure.unmeasured_first(cases, records, "another GPU", KNOWN) == cases


def test_a_quick_run_takes_cases_of_the_families_that_the_quick_choice_leaves_out(planned, monkeypatch):
    few = [case for case in quick() if case.row.suite == "resnet50_224" and case.row.h > 7][:3]
    network = next(case for case in quick() if case.row.suite == "models")
    monkeypatch.setattr(measure, "quick", lambda: [network, *few])
    known = ("conv2d/generic", "conv2d/depthwise", "pool2d/max", "conv2d/of_no_layer")
    cases = measure.quick_cases([], None, known)
    assert cases[:3] == few
    assert cases[-1] == network
    of_families = [measure.planned_families(case, None, known)[0] for case in cases[3:-1]]
    assert sorted(set(of_families)) == ["conv2d/depthwise", "pool2d/max"]
    assert all(of_families.count(family) == measure.CASES_OF_FAMILY for family in set(of_families))

    only = measure.quick_cases(["conv2d/thin"], None, (*known, "conv2d/thin"))
    assert len(only) == measure.CASES_OF_FAMILY
    assert {measure.planned_families(case, None, known)[0] for case in only} == {"conv2d/thin"}
    assert measure.quick_cases(["conv2d/generic"], None, known) == [*few, network]


@pytest.fixture
def worker(monkeypatch, capsys):
    """Runs a worker whose cases are made up; gives its events."""
    cases = expand(select(["small_cnn_28"]), passes=["fprop"])[:3]
    settings = measure.Settings(SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(measure, "chosen_cases", lambda *_: cases)
    monkeypatch.setattr(measure, "gpu_settings", lambda: settings)
    monkeypatch.setattr(measure, "planned_families", lambda *_: ["conv2d/generic"])
    monkeypatch.setattr(
        measure, "measure", lambda case, settings: {"id": case.id, "left_out": settings.without_ours}
    )

    def run(**start) -> list[dict]:
        told = json.dumps(vars(Start(**{"ceilings": CEILINGS, **start})))
        measure.work(argparse.Namespace(worker=told, cpu=False, quick=True))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    run.cases = cases
    return run


def test_a_worker_tells_each_case_before_and_after_it(worker, monkeypatch):
    monkeypatch.setattr(measure, "context_lives", lambda: True)
    events = worker(index=1, without_cases=[worker.cases[2].id])
    assert [event["event"] for event in events] == ["begin", "case", "begin", "case", "end"]
    assert [event.get("index") for event in events] == [1, 1, 2, 2, None]
    assert events[0]["case"]["id"] == worker.cases[1].id
    assert events[0]["case"]["families"] == ["conv2d/generic"]
    assert [event["case"]["left_out"] for event in (events[1], events[3])] == [None, measure.LEFT_OUT]
    assert all(
        event["case"]["left_out"] == measure.LEFT_OUT
        for event in worker(without_families=["conv2d/generic"])
        if event["event"] == "case"
    )


def test_a_worker_that_lost_its_context_ends_without_a_word_of_the_case(worker, monkeypatch, capsys):
    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(measure, "context_lives", lambda: False)
    monkeypatch.setattr(measure.os, "_exit", ended)
    with pytest.raises(SystemExit) as status:
        worker()
    assert status.value.code == measure.CONTEXT_LOST
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "begin"


def test_the_context_is_lost_where_cuda_raises(monkeypatch, capsys):
    def illegal() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    assert measure.context_lives() is False
    assert capsys.readouterr().out == "CUDA error: an illegal memory access was encountered\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quick",), "--out FILE and --quick or --suite NAME are needed"),
        (("--out", "x", "--suite", "nowhere"), "there is no suite 'nowhere'"),
        (("--out", "x", "--quick"), "needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_be_measured_is_told(arguments, says, capsys):
    try:
        status = measure.main(list(arguments))
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert says in capsys.readouterr().err
