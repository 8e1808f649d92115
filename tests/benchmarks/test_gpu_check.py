"""The parts of benchmarks.gpu_check that need no GPU: budgets, steps, records, source hashes, statistics."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, operators, record, workload
from benchmarks.steps import FAILED, LATE, OK, SKIPPED, Budget, Step, run, table

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_budget_runs_down_and_not_below_zero():
    clock = Clock()
    budget = Budget(10, clock)
    clock.now += 4
    assert budget.left() == 6
    clock.now += 60
    assert budget.left() == 0


def test_a_step_that_ends_well(tmp_path):
    outcome = run(Step("good", python("print('one'); print('42 passed')"), 60), Budget(60), tmp_path)
    assert (outcome.status, outcome.note, outcome.wrong) == (OK, "42 passed", False)
    assert (tmp_path / outcome.log).read_text() == "one\n42 passed\n"


def test_a_step_that_fails_is_recorded_with_its_last_line(tmp_path):
    code = "import sys; print('what was wrong', file=sys.stderr); sys.exit(3)"
    outcome = run(Step("bad", python(code), 60), Budget(60), tmp_path)
    assert (outcome.status, outcome.wrong) == (FAILED, True)
    assert outcome.note == "exit status 3: what was wrong"


def test_a_late_step_ends_with_the_processes_it_started(tmp_path):
    marker = tmp_path / "marker"
    grandchild = f"import time, pathlib; time.sleep(8); pathlib.Path({str(marker)!r}).touch()"
    code = (
        "import subprocess, sys, time; print('begun', flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    outcome = run(Step("slow", python(code), 5), Budget(60), tmp_path)
    assert time.monotonic() - start < 30
    assert (outcome.status, outcome.wrong) == (LATE, True)
    assert outcome.note == "ended after 5 s: begun"
    time.sleep(5)
    assert not marker.exists()


def test_a_step_is_not_begun_without_time(tmp_path):
    outcome = run(Step("last", python("print(1)"), 60), Budget(1), tmp_path)
    assert (outcome.status, outcome.wrong, outcome.log) == (LATE, True, None)
    assert not (tmp_path / "last.log").exists()


def test_a_step_that_cannot_run_is_skipped_with_its_reason(tmp_path):
    outcome = run(Step("tool", ("absent",), 60, missing="it is not installed"), Budget(60), tmp_path)
    assert (outcome.status, outcome.note, outcome.wrong) == (SKIPPED, "it is not installed", False)


def test_a_judge_can_fail_a_step_that_ended_well(tmp_path):
    step = Step("tests", python("print('3 skipped in 1 s')"), 60, judge=gpu_check.judge_tests)
    outcome = run(step, Budget(60), tmp_path)
    assert (outcome.status, outcome.note) == (FAILED, "no test passed: 3 skipped in 1 s")


@pytest.mark.parametrize(
    ("kernels", "changed", "fault"),
    [
        ("fastcnn", False, None),
        ("fastcnn", None, None),
        (
            "fastcnn",
            True,
            "the library was built from other sources than this checkout's csrc: build it again",
        ),
        ("aten", False, "CUDA tensors do not run fastcnn's kernels: it was not built"),
    ],
)
def test_the_library_is_judged_before_anything_is_measured(kernels, changed, fault):
    facts = {
        "runs": {"cuda": {"kernels": kernels, "why": "it was not built"}},
        "sources_changed_since_build": changed,
    }
    assert gpu_check.judge_info("some warning\n" + json.dumps(facts)) == fault


def test_the_record_survives_a_failing_step_and_says_not_ok(tmp_path, capsys):
    steps = [
        Step("first", python("print('fine')"), 60),
        Step("second", python("raise SystemExit(1)"), 60),
        Step("third", python("print('fine too')"), 60),
    ]
    finished = gpu_check.check(tmp_path, steps, {"sources": {"conv2d": "0" * 16}}, seconds=120)
    written = json.loads((tmp_path / "record.json").read_text())
    assert written == json.loads(json.dumps(finished))
    assert [step["status"] for step in written["steps"]] == [OK, FAILED, OK]
    assert written["ok"] is False
    assert written["sources"] == {"conv2d": "0" * 16}
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == "gpu_check: wrong: second"


def test_timings_enter_the_record_and_the_table(tmp_path, capsys):
    spread = {"median": 10.0, "p10": 9.0, "p90": 11.0}
    entry = {
        "name": "conv2d 3x3 float16 nhwc",
        "operator": "conv2d",
        "microseconds": {"fastcnn": spread, "torch": {**spread, "median": 15.0}},
        "torch_over_fastcnn": 1.5,
        "samples": {"fastcnn": [10.0], "torch": [15.0]},
    }
    (tmp_path / "timing.json").write_text(json.dumps({"timings": [entry], "wrong": [], "left_out": []}))
    finished = gpu_check.check(tmp_path, [Step("timing", python("print(1)"), 60)], {}, seconds=60)
    assert finished["ok"] is True
    assert finished["timing"]["timings"] == [entry]
    printed = capsys.readouterr().out
    assert "1.50  conv2d 3x3 float16 nhwc" in printed
    assert printed.strip().splitlines()[-1] == "gpu_check: all right"


def test_the_steps_fit_the_promised_time(tmp_path):
    steps = gpu_check.plan_steps(tmp_path, Path("/bin/compute-sanitizer"))
    assert gpu_check.WHOLE_RUN_SECONDS < 8 * 60
    essential = [step.limit for step in steps if not step.name.startswith(("sanitizer", "conformance"))]
    assert sum(essential) < gpu_check.WHOLE_RUN_SECONDS
    assert len({step.name for step in steps}) == len(steps)
    assert {f"sanitizer-{tool}" for tool in gpu_check.SANITIZER_TOOLS} <= {step.name for step in steps}


def test_without_compute_sanitizer_its_steps_are_skipped(tmp_path):
    steps = [step for step in gpu_check.plan_steps(tmp_path, None) if step.name.startswith("sanitizer")]
    assert len(steps) == 4
    assert all(step.missing for step in steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "gpu_check needs an NVIDIA GPU that torch can use, and there is none here."
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tree(tmp_path):
    for name, text in {
        "conv2d/generic.cuh": "conv",
        "pool2d/max.cu": "max",
        "ptx/mma.cuh": "mma",
        "common/dtype.h": "dtype",
        "bindings/conv2d.cpp": "bindings",
    }.items():
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "results").mkdir()
    return tmp_path


def test_families_are_the_folders_with_kernels(tree):
    assert list(record.families(tree / "csrc")) == ["conv2d", "pool2d", "ptx"]


def changed_families(tree: Path, name: str) -> set[str]:
    before = record.families(tree / "csrc")
    (tree / "csrc" / name).write_text("changed")
    after = record.families(tree / "csrc")
    return {family for family in before if before[family] != after[family]}


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("conv2d/generic.cuh", {"conv2d"}),
        ("pool2d/max.cu", {"pool2d"}),
        ("common/dtype.h", {"conv2d", "pool2d", "ptx"}),
        ("ptx/mma.cuh", {"conv2d", "pool2d", "ptx"}),
        ("bindings/conv2d.cpp", set()),
    ],
)
def test_a_family_changes_with_what_it_is_made_from(tree, name, families):
    assert changed_families(tree, name) == families


def test_a_passing_record_covers_the_sources_it_was_taken_on(tree):
    csrc, results = tree / "csrc", tree / "results"
    assert record.pending(results, csrc) == ["conv2d", "pool2d", "ptx"]
    taken = {"ok": True, "sources": record.families(csrc)}
    record.write_json(results / "one.json", taken)
    assert record.pending(results, csrc) == []
    (csrc / "pool2d" / "max.cu").write_text("changed")
    assert record.pending(results, csrc) == ["pool2d"]
    record.write_json(results / "one.json", {**taken, "ok": False})
    assert record.pending(results, csrc) == ["conv2d", "pool2d", "ptx"]


def test_list_pending_names_families_of_this_tree(capsys):
    assert gpu_check.main(["--list-pending"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed
    assert set(listed) <= {*record.families(), "every kernel family has a record of its present sources"}


def test_every_kept_record_is_whole():
    for path in record.RESULTS.glob("*.json"):
        kept = json.loads(path.read_text())
        assert {"ok", "date", "commit", "sources", "machine", "steps"} <= set(kept), path.name


def test_quantiles_interpolate_between_neighbours():
    assert record.quantile([5.0], 0.9) == 5.0
    assert record.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert record.spread([float(value) for value in range(11)]) == {"median": 5.0, "p10": 1.0, "p90": 9.0}
    with pytest.raises(ValueError, match="no samples"):
        record.quantile([], 0.5)


def test_writing_leaves_one_whole_file(tmp_path):
    path = tmp_path / "deep" / "record.json"
    record.write_json(path, {"a": 1})
    record.write_json(path, {"a": 2})
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert json.loads(path.read_text()) == {"a": 2}


def test_a_result_is_named_by_gpu_and_time():
    name = gpu_check.result_name("NVIDIA H100 80GB HBM3", "2026-01-02T03:04:05")
    assert name == "nvidia-h100-80gb-hbm3-20260102T030405.json"


def test_the_table_has_a_line_per_step(tmp_path):
    outcome = run(Step("good", python("print('fine')"), 60), Budget(60), tmp_path)
    (text,) = table([outcome]).splitlines()
    assert text.startswith("good  ok ")
    assert text.endswith("s  fine")


def test_the_cases_call_every_operator_with_a_kernel():
    from fastcnn import _aten

    cases = list(operators.small_cases("cpu"))
    assert {case.operator for case in cases} == set(_aten.IMPLEMENTATIONS)
    assert len({case.name for case in cases}) == len(cases)


def test_the_workload_agrees_with_torch_and_finds_what_does_not(capsys, monkeypatch):
    assert workload.main(["--device", "cpu", "--repeat", "2", "--check", "--every", "9"]) == 0
    assert "2 runs each, 0 wrong" in capsys.readouterr().out
    monkeypatch.setattr(operators.Case, "ours", lambda case: operators.first(case.torchs()) + 1)
    assert workload.main(["--device", "cpu", "--check", "--every", "40"]) == 1
    assert "error 1, torch's own is" in capsys.readouterr().out


def test_the_workload_finds_other_bits_in_a_later_run(capsys, monkeypatch):
    values = iter(range(10**6))
    monkeypatch.setattr(operators.Case, "ours", lambda case: torch.tensor([float(next(values))]))
    assert workload.main(["--device", "cpu", "--repeat", "3", "--every", "100"]) == 1
    assert "run 1 has other bits than the first" in capsys.readouterr().out
