"""The parts of benchmarks.gpu_check that need no GPU: budgets, steps, what is planned and recorded."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, operators, steps, validate, workload
from benchmarks.records import Pending
from benchmarks.steps import FAILED, LATE, OK, SECONDS, SKIPPED, Budget, Outcome, Step, run, table
from fastcnn.bench.record import new_record
from tests.benchmarks.fixtures import made_up

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log.txt"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# --- steps


def test_a_budget_runs_down_and_not_below_zero():
    clock = Clock()
    budget = Budget(10, clock)
    clock.now += 4
    assert budget.left() == 6
    clock.now += 60
    assert budget.left() == 0


def test_steps_that_end_well_share_a_log(log):
    for name in ("good", "better"):
        step = Step(name, python(f"print('{name}'); print('42 passed')"), 60)
        outcome = run(step, Budget(60), log)
        assert (outcome.status, outcome.note, outcome.wrong) == (OK, "42 passed", False)
    assert log.read_text() == "\n== good\ngood\n42 passed\n\n== better\nbetter\n42 passed\n"


def test_a_step_that_fails_is_recorded_with_its_last_line(log):
    code = "import sys; print('what was wrong', file=sys.stderr); sys.exit(3)"
    outcome = run(Step("bad", python(code), 60), Budget(60), log)
    assert (outcome.status, outcome.wrong) == (FAILED, True)
    assert outcome.note == "exit status 3: what was wrong"


@pytest.mark.parametrize("essential", [True, False])
def test_a_late_step_ends_with_the_processes_it_started(tmp_path, log, essential, monkeypatch):
    monkeypatch.setattr(steps, "LEAST_SECONDS", 0.5)
    marker = tmp_path / "marker"
    grandchild = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    code = (
        "import subprocess, sys, time; print('begun', flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    outcome = run(Step("slow", python(code), 1.6, essential=essential), Budget(60), log)
    assert time.monotonic() - start < 3
    assert (outcome.status, outcome.wrong) == (LATE, essential)
    assert outcome.note == "ended after 2 s: begun"
    if essential:
        time.sleep(2)
        assert not marker.exists()


def test_a_step_is_not_begun_without_time_of_its_own(log):
    step = Step("last", python("print(1)"), 60, reserve=50)
    outcome = run(step, Budget(51), log)
    assert (outcome.status, outcome.wrong) == (LATE, True)
    assert not log.exists()
    assert run(step, Budget(80), log).status == OK


def test_a_command_is_told_the_time_that_it_has(log):
    step = Step("told", (*python("import sys; print(sys.argv[1])"), SECONDS), 100, reserve=20)
    assert run(step, Budget(60), log).note == "31"


def test_a_step_that_cannot_run_is_skipped_with_its_reason(log):
    outcome = run(Step("tool", ("absent",), 60, missing="it is not installed"), Budget(60), log)
    assert (outcome.status, outcome.note, outcome.wrong) == (SKIPPED, "it is not installed", False)


def test_a_judge_sees_the_output_of_its_step_alone(log):
    log.write_text("9 passed in 1 s\n")
    step = Step("tests", python("print('3 skipped in 1 s')"), 60, judge=gpu_check.judge_tests)
    outcome = run(step, Budget(60), log)
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


# --- the record


def checked(out: Path, steps: list[Step], seconds: float = 120) -> dict:
    gpu_check.check(out, steps, new_record("check", path=out / "check.json"), seconds)
    content = json.loads((out / "check.json").read_text())
    assert validate.faults(content) == []
    return content


def test_the_record_survives_a_failing_step_and_says_not_ok(tmp_path):
    steps = [
        Step("first", python("print('fine')"), 60),
        Step("second", python("raise SystemExit(1)"), 60),
        Step("third", python("print('fine too')"), 60),
    ]
    content = checked(tmp_path, steps)
    assert [step["status"] for step in content["steps"]] == [OK, FAILED, OK]
    assert (content["complete"], content["ok"]) == (True, False)


def test_without_the_right_library_only_the_measuring_goes_on(tmp_path):
    steps = [
        Step("library", python("raise SystemExit(1)"), 60),
        Step("tests", python("raise SystemExit('run in vain')"), 60),
        Step("benchmark", python("print('the baselines')"), 60, essential=False),
    ]
    content = checked(tmp_path, steps)
    assert [step["status"] for step in content["steps"]] == [FAILED, SKIPPED, OK]
    assert content["steps"][1]["note"] == "without sense, as library went wrong"
    assert content["ok"] is False


def test_what_is_not_essential_may_lack_time_and_what_is_may_not(tmp_path):
    quick = Step("tests", python("print('1 passed')"), 60)
    late = Step("sanitizer", python("print(1)"), 60, reserve=999, essential=False)
    assert checked(tmp_path, [quick, late])["ok"] is True
    assert checked(tmp_path, [quick, Step("tests 2", python("print(1)"), 60, reserve=999)])["ok"] is False
    covered = Step("tests", (), 60, missing=gpu_check.HAS_RECORD)
    assert checked(tmp_path, [quick, covered])["ok"] is True
    assert checked(tmp_path, [quick, Step("tests 2", (), 60, missing="some reason")])["ok"] is False


PLAYED = """
import sys
from pathlib import Path
from benchmarks import gpu_check
from benchmarks.steps import Step
steps = [
    Step("first", (sys.executable, "-c", "print('fine')"), 60),
    Step("second", (sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(30)"), 60),
]
sys.exit(gpu_check.execute(Path(sys.argv[1]), steps, 100.0))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_a_valid_record(tmp_path, sent):
    process = subprocess.Popen([*python(PLAYED), str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = tmp_path / "log.txt"
    while not (log.exists() and "begun" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(sent)
    assert process.wait() == (128 + sent if sent == signal.SIGTERM else -sent)
    content = json.loads((tmp_path / "check.json").read_text())
    assert validate.faults(content) == []
    assert [step["name"] for step in content["steps"]] == ["first"]
    assert (content["complete"], content["ok"]) == (False, False)


# --- what is planned


def planned(out: Path, lacking: list[Pending] | None, suites: list[str] = []) -> dict[str, Step]:  # noqa: B006
    steps = gpu_check.plan_steps(out, Path("/bin/compute-sanitizer"), lacking, suites)
    assert len({step.name for step in steps}) == len(steps)
    return {step.name: step for step in steps}


def test_the_steps_that_must_be_done_fit_the_usual_time(tmp_path):
    steps = planned(tmp_path, None)
    time_given = 60 * gpu_check.DEFAULT_MINUTES - gpu_check.CLOSING_SECONDS
    assert sum(step.limit for step in steps.values() if step.essential) < time_given - 150
    assert [*steps][:5] == ["library", "determinism", "tests", "conformance", "benchmark"]
    assert {f"sanitizer-{tool}" for tool in gpu_check.SANITIZER_TOOLS} <= set(steps)
    assert "--quick" in steps["benchmark"].command
    assert not {"--family", "--suite"} & set(steps["benchmark"].command)


def test_measuring_gets_the_time_that_is_left_but_for_a_look_by_the_sanitizer(tmp_path):
    benchmark = planned(tmp_path, None, ["resnet50_224", "vgg16_224"])["benchmark"]
    assert benchmark.command[-3:] == ["--suite", "resnet50_224", "vgg16_224"]
    assert (benchmark.limit, benchmark.reserve) == (float("inf"), 2 * gpu_check.SANITIZER_SECONDS)


def test_of_what_is_pending_only_that_is_done(tmp_path):
    unmeasured = planned(tmp_path, [Pending("conv2d/thin", checked=True, measured=False)])
    todo = [name for name, step in unmeasured.items() if not step.missing]
    assert todo == ["library", "benchmark"]
    assert unmeasured["benchmark"].command[-3:] == ["--quick", "--family", "conv2d/thin"]
    unchecked = planned(tmp_path, [Pending("ptx", checked=False, measured=True)])
    assert unchecked["benchmark"].missing == gpu_check.HAS_RECORD
    assert not any(step.missing for name, step in unchecked.items() if name != "benchmark")
    nothing = planned(tmp_path, [], ["resnet50_224"])
    assert "--quick" not in nothing["benchmark"].command
    assert not nothing["benchmark"].missing


def test_without_compute_sanitizer_its_steps_are_skipped():
    steps = gpu_check.sanitizer_steps(None)
    assert len(steps) == 4
    assert all(step.missing and not step.essential for step in steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() == (
        "gpu_check needs an NVIDIA GPU that torch can use, and there is none here."
    )
    assert not (tmp_path / "out").exists()


def test_pending_asks_for_no_gpu_where_nothing_is(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "pending", lambda records: [])
    assert gpu_check.main(["--out", "nowhere", "--pending"]) == 0
    assert capsys.readouterr().out.startswith("every kernel family has records")
    monkeypatch.setattr(gpu_check.report, "load_records", lambda folder: [])
    assert gpu_check.main(["--list-pending"]) == 0
    assert "conv2d/generic: not checked and not measured on these sources" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("--out", "x", "--minutes", "0.1")])
def test_arguments_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(list(arguments))
    assert "--out DIR is needed" in (said := capsys.readouterr().err) or "--minutes must be above" in said


# --- what is printed


def test_what_was_measured_is_told_in_a_line_for_each_operation(tmp_path):
    path = tmp_path / "benchmark.json"
    assert gpu_check.measured_lines(path) == []
    path.write_text(json.dumps(made_up.plenty()))
    lines = gpu_check.measured_lines(path)
    (line,) = (
        line for line in lines if line.startswith("resnet50_224 bfloat16 channels_last conv2d_fprop: ")
    )
    assert "10/10 layers, 0 wrong, " in line
    assert "pools bfloat16 channels_last avg_pool2d: 0/1 layers, 1 wrong" in lines
    assert any(line.startswith("models/resnet50 model_training") and "compile 5" in line for line in lines)


def test_the_table_has_a_line_per_step():
    (text,) = table([Outcome("good", OK, 1.25, "fine")]).splitlines()
    assert text == "good  ok          1.2 s  fine"
    wrong = [Outcome("good", OK, 1.0, "fine"), Outcome("bad", FAILED, 1.0, "no")]
    assert gpu_check.summary(wrong).endswith("\ngpu_check: wrong: bad")
    assert gpu_check.summary(wrong[:1]).endswith("\ngpu_check: all right")


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
