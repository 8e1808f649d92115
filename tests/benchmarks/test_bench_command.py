"""`fastcnn bench` and `pytest benchmarks`: what they take, refuse, print and keep. No GPU is needed."""

import csv
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch

from benchmarks.validate import faults
from fastcnn.bench import session, show
from fastcnn.bench.session import Session
from fastcnn.cli import bench as command
from fastcnn.cli import main
from fastcnn.cli.parser import make_parser
from tests.benchmarks.bench_helpers import CASE, Clock, wall_settings
from tests.benchmarks.fixtures import made_up

ROOT = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def parsed(*argv):
    return make_parser().parse_args(["bench", *argv])


def rows(*argv):
    return list(dict.fromkeys(case.row for case in command.chosen_cases(parsed(*argv))))


def test_a_convolution_from_flags():
    (row,) = rows("--conv", "64x128x56x28", "96x3x5", "--stride", "2x1", "--padding", "1x2", "--groups", "4")
    assert (row.input_shape, row.weight_shape) == ((64, 128, 56, 28), (96, 32, 3, 5))
    assert (row.stride, row.padding, row.dilation, row.groups) == ((2, 1), (1, 2), (1, 1), 4)


def test_pools_from_flags():
    (row,) = rows("--pool", "max", "8x64x112x112", "3x3", "--stride", "2", "--padding", "1")
    assert (row.op, row.kernel, row.stride, row.padding) == ("max_pool2d", (3, 3), (2, 2), (1, 1))
    (row,) = rows("--pool", "avg", "8x64x112x112", "2x2")
    assert row.stride == (2, 2)
    (row,) = rows("--pool", "adaptive_avg", "8x64x7x7", "1x1")
    assert (row.op, row.output_shape) == ("adaptive_avg_pool2d", (8, 64, 1, 1))


def test_models_and_selections_from_flags():
    (case,) = command.chosen_cases(parsed("--model", "resnet50", "--batch", "32", "--train"))
    assert (case.row.layer, case.row.batch, case.op) == ("resnet50", 32, "model_training")
    (case,) = command.chosen_cases(parsed("--model", "resnet50", "--fuse"))
    assert case.op == "model_inference_fused"
    (case,) = command.chosen_cases(parsed("--model", "small_cnn"))
    assert (case.op, case.row.image) == ("small_cnn_step", (1, 28, 28))
    assert command.chosen_cases(parsed()) == command.chosen_cases(parsed("--quick"))
    cases = command.chosen_cases(parsed("--suite", "vgg16_224", "--pass", "wgrad", "--dtype", "tf32"))
    assert {(case.op, case.tf32) for case in cases} == {("conv2d_wgrad", True)}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--suite", "resnet"], "no suite 'resnet'; there are resnet50_224"),
        (["--dtype", "int8"], "no dtype 'int8'; there are bf16"),
        (["--pass", "up", "--suite", "vgg16_224"], "no pass 'up'; there are fprop"),
        (["--conv", "64x128x56", "128x3x3"], "expected NxCxHxW KxRxS"),
        (["--conv", "64x128x56x56", "128x3"], "'128x3' is not 3 sizes"),
        (["--conv", "1x3x8x8", "4x3x3", "--groups", "2"], "groups 2 must divide C 3"),
        (["--conv", "1x3x8x8", "4x3x3", "--stride", "a"], "--stride 'a': expected a number"),
        (["--conv", "1x3x8x8", "4x9x9"], "larger than the padded input"),
        (["--pool", "min", "1x3x8x8", "2x2"], "no pool 'min'"),
        (["--pool", "adaptive_avg", "1x3x8x8", "1x1", "--stride", "2"], "an adaptive pool has none"),
        (["--stride", "2"], "--stride goes with --conv or --pool"),
        (["--train"], "go with --model"),
        (["--fuse"], "go with --model"),
        (["--model", "resnet50", "--fuse", "--train"], "--fuse is inference"),
        (["--model", "small_cnn", "--fuse"], "--fuse is inference"),
        (["--quick", "--suite", "vgg16_224"], "--quick is a selection of its own"),
        (["--suite", "pool_vgg16", "--pass", "wgrad"], "nothing is left to measure"),
        (["--suite", "vgg16_224", "--csv", "/no/such/folder/a.csv"], "there is no folder /no/such/folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(capsys, argv, said):
    assert main(["bench", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_model_there_is_not(capsys):
    pytest.importorskip("torchvision")
    assert main(["bench", "--model", "resnet51"]) == 2
    assert "there is no model 'resnet51' in torchvision" in capsys.readouterr().err


@no_gpu
def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "--suite", "resnet50_224"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastcnn: bench: this times kernels on an NVIDIA GPU, and torch finds none here: ")
    assert said.endswith("`fastcnn bench --list` shows what would be measured\n")


def test_what_would_be_measured_is_listed(capsys):
    assert main(["bench", "--suite", "pool_resnet50", "--pass", "fprop", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pool_resnet50/maxpool max_pool2d bfloat16 channels_last",
        "pool_resnet50/avgpool adaptive_avg_pool2d bfloat16 channels_last",
    ]


@pytest.fixture
def results(tmp_path):
    return parsed(
        *("--json", str(tmp_path / "record.json")),
        *("--csv", str(tmp_path / "cases.csv")),
        *("--plot", str(tmp_path / "ratios.png")),
    )


def test_a_run_leaves_a_valid_record_a_csv_and_a_picture(operators_on_cpu, tmp_path, capsys, results):
    run = Session(wall_settings(host_rounds=1), path=results.json)
    assert command.run([CASE], run, results) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert faults(record) == []
    assert (record["complete"], record["ok"]) == (True, True)
    assert record["protocol"]["device"] == "cpu"
    assert record["machine"]["gpu"] is None or torch.cuda.is_available()
    (line,) = csv.DictReader((tmp_path / "cases.csv").open())
    assert line["id"] == CASE.id
    assert float(line["ratio"]) == pytest.approx(record["cases"][0]["ratio"]["value"])
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "1 compared: " in printed
    assert f"written: {results.json}" in printed


def test_an_interrupt_keeps_what_was_measured(operators_on_cpu, tmp_path, capsys, results, monkeypatch):
    honest = session.measure
    seen = []

    def measure(case, settings):
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return honest(case, settings)

    monkeypatch.setattr(session, "measure", measure)
    other = command.chosen_cases(parsed("--conv", "1x4x5x5", "4x3x3"))
    run = Session(wall_settings(), path=results.json)
    assert command.run([CASE, *other], run, results) == 130
    record = json.loads((tmp_path / "record.json").read_text())
    assert faults(record) == []
    assert [case["id"] for case in record["cases"]] == [CASE.id]
    assert record["complete"] is False
    assert "interrupted after 1 of 5 cases" in capsys.readouterr().err


def test_a_lost_device_ends_the_run_with_what_there_is(
    operators_on_cpu, tmp_path, capsys, results, monkeypatch
):
    run = Session(wall_settings(), path=results.json)
    honest = run.measure

    def measure(case):
        honest(case)
        raise session.DeviceLost("CUDA was lost in the case")

    monkeypatch.setattr(run, "measure", measure)
    assert command.run([CASE, CASE], run, results) == 1
    assert "CUDA was lost in the case; nothing after it" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "record.json").read_text())["cases"]) == 1


def test_a_wrong_result_makes_the_exit_status_1(operators_on_cpu, capsys, results, monkeypatch):
    wrong = made_up.case("own", "layer", "conv2d_fprop", {"cudnn_nchw": 1.0}) | {"wrong": "it is off"}
    monkeypatch.setattr(
        session, "measure", lambda case, settings: {**wrong, "contenders": {}, "baseline": None}
    )
    assert command.run([CASE], Session(wall_settings()), parsed()) == 1
    assert "refused, since it is wrong: own/layer" in capsys.readouterr().out


def test_the_budget_leaves_cases_out(operators_on_cpu, capsys):
    clock = Clock()

    def tick():
        clock.now += 1
        return clock.now

    run = Session(wall_settings(), seconds=2.5, clock=tick)
    command.run([CASE, *command.chosen_cases(parsed("--conv", "1x4x5x5", "4x3x3"))], run, parsed())
    assert len(run.cases) == 2
    assert "left out for lack of time: 3 cases, from own/1x4x5x5" in capsys.readouterr().out
    assert run.record.content["complete"] is True


def fixture_cases():
    return [
        made_up.case("s", "quick", "conv2d_fprop", {"fastcnn": 10, "cudnn_nchw": 40}, count=3),
        made_up.case("s", "slow", "conv2d_fprop", {"fastcnn": 40, "cudnn_nchw": 20, "aten_native": 60}),
        made_up.case("s", "even", "max_pool2d", {"fastcnn": 10, "eager": 10}, flops=None),
        made_up.case("s", "bad", "conv2d_wgrad", {}, wrong="error 1"),
        made_up.case("s", "big", "conv2d_wgrad", {}, skipped={"fastcnn": "too large"}),
        made_up.case("s", "half", "conv2d_act", {"fastcnn": 5}, skipped={"compile": "no compiler"}),
    ]


def test_a_summary_counts_layers_as_often_as_they_occur():
    total = show.summary(fixture_cases())
    quick, slow = (case["ratio"]["value"] for case in fixture_cases()[:2])
    even = fixture_cases()[2]["ratio"]["value"]
    assert total["geomean"] == pytest.approx((quick**3 * slow * even) ** (1 / 5))
    assert total["ours_us"] == pytest.approx(3 * 10 + 40 + 10, rel=0.05)
    assert total["baseline_us"] == pytest.approx(3 * 40 + 20 + 10, rel=0.05)
    assert (total["worst"]["layer"], total["best"]["layer"]) == ("slow", "quick")
    assert (len(total["wrong"]), len(total["unmeasured"])) == (1, 2 - 1)


def test_a_table_shows_losses_refusals_and_what_was_skipped(capsys):
    from rich.console import Console

    show.print_report(fixture_cases(), Console(width=200, force_terminal=True), "FIXTURE")
    printed = capsys.readouterr().out
    lines = {
        name: next(line for line in printed.splitlines() if name in line) for name in ("quick", "slow", "bad")
    }
    assert "\x1b[32m" in lines["quick"]
    assert "\x1b[31m" in lines["slow"]
    assert "WRONG" in lines["bad"]
    for text in (
        "refused, since it is wrong",
        "not measured: s/big",
        "too large",
        "skipped: compile (1 case): no",
    ):
        assert text in printed


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_table_keeps_what_tells_most(width):
    from rich.console import Console

    console = Console(width=width, record=True, file=StringIO())
    console.print(show.table(fixture_cases(), "FIXTURE", width))
    (line,) = (line for line in console.export_text().splitlines() if "quick x3" in line)
    ratio = fixture_cases()[0]["ratio"]
    assert f"{ratio['value']:.2f} [{ratio['low']:.2f} {ratio['high']:.2f}]" in line
    assert ("cuDNN NCHW" in line) == (width == 120)


def test_operations_are_short_in_a_table():
    shown = {show.operation(case.op) for case in command.chosen_cases(parsed("--suite", "main"))}
    assert {"fprop", "fwd+bwd", "max_pool2d bwd", "max_pool2d fwd+bwd", "small_cnn_step"} <= shown


def test_a_picture_has_a_panel_for_each_operation_and_setting(tmp_path):
    show.write_plot(fixture_cases(), tmp_path / "a.png", "FIXTURE")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing was compared"):
        show.write_plot(fixture_cases()[3:], tmp_path / "b.png", "FIXTURE")
    assert [len(part) for part in show._parts(list(range(130)))] == [44, 44, 42]


def run_pytest(*argv, plugin=None):
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", *argv]
    command += ["-p", plugin] if plugin else []
    # A run of its own, not a part of this one: pytest-benchmark measures nothing in a worker of pytest-xdist.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=ROOT, env=own, capture_output=True, text=True, check=False, timeout=300
    )


@no_gpu
def test_pytest_benchmarks_skips_without_a_gpu():
    done = run_pytest("-rs", "--suite", "pool_resnet50", "--pass", "fprop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 skipped" in done.stdout
    assert "torch finds none here" in done.stdout
    assert "warning" not in done.stdout


def test_pytest_benchmarks_measures(tmp_path):
    """With CPU tensors in the GPU's place: statistics are of our samples, and extra_info has the case."""
    record, out = tmp_path / "record.json", tmp_path / "out.json"
    options = ("--suite", "call_overhead", "-k", "max_pool2d", "--json-record", str(record))
    done = run_pytest(*options, f"--benchmark-json={out}", plugin="tests.benchmarks.on_cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    benches = json.loads(out.read_text())["benchmarks"]
    written = json.loads(record.read_text())
    assert faults(written) == []
    assert written["complete"] is True
    assert len(benches) == len(written["cases"]) == 4
    for bench, case in zip(benches, written["cases"], strict=True):
        assert bench["extra_info"]["id"] == case["id"]
        assert bench["group"] == "call_overhead"
        samples = case["contenders"]["fastcnn"]["samples_us"]
        assert bench["stats"]["rounds"] == len(samples)
        assert bench["stats"]["max"] == pytest.approx(1e-6 * max(samples))
        assert 1e6 * bench["stats"]["median"] == pytest.approx(case["contenders"]["fastcnn"]["median_us"])
    assert "fastcnn beside torch" in done.stdout


def test_pytest_benchmarks_refuses_unknown_names():
    done = run_pytest("--suite", "resnet")
    assert done.returncode == 4
    assert "there is no suite 'resnet'" in done.stderr
