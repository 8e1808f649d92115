"""One case on a device whose times are known: what is refused, what is compared, what is said."""

import pytest
import torch

from fastcnn._shapes import suggests_channels_last
from fastcnn.bench import calls, check
from fastcnn.bench.check import Errors, errors, fault_of_baseline, fault_of_ours
from fastcnn.bench.measure import measure
from fastcnn.bench.problem import Rule, laid_out, rounding
from tests.benchmarks.bench_helpers import CASE, CEILINGS, Clock, fake_settings, made_up, wall_settings


def right(x):
    return x + 1


def wrong(x):
    y = x + 1
    y[-1, -1] += 1
    return y


def fails(x):
    raise RuntimeError("no engine was able to run it\nand more lines")


@pytest.fixture
def clock():
    return Clock()


def test_the_ratio_is_against_the_fastest_baseline(clock):
    contenders = {
        "fastcnn": (20.0, right),
        "cudnn_nchw": (90.0, right),
        "cudnn_channels_last": (30.0, right),
    }
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert found["baseline"] == "cudnn_channels_last"
    assert found["ratio"]["value"] == pytest.approx(1.5)
    assert found["contenders"]["fastcnn"]["median_us"] == pytest.approx(20)
    assert found["contenders"]["fastcnn"]["call_us"]["median_us"] == pytest.approx(20)
    assert found["gbps"] == pytest.approx(1e6 / 20e-6 * 1e-9)
    assert found["tflops"] == pytest.approx(1e9 / 20e-6 * 1e-12)
    # 1e9 operations at 1e13 a second take 100 us, longer than 1e6 bytes at 1e12.
    assert CEILINGS.flops_per_second["float32"] == 1e13
    assert found["percent_of_roofline"] == pytest.approx(500)
    assert found["count"] == 2
    assert found["wrong"] is None


def test_a_wrong_result_of_ours_is_refused_and_the_baselines_are_timed(clock):
    contenders = {"fastcnn": (1.0, wrong), "cudnn_nchw": (90.0, right)}
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert "rms error" in found["wrong"]
    assert list(found["contenders"]) == ["cudnn_nchw"]
    assert found["contenders"]["cudnn_nchw"]["median_us"] == pytest.approx(90)
    assert (found["baseline"], found["ratio"]) == ("cudnn_nchw", None)


def test_ours_failing_is_wrong_too(clock):
    contenders = {"fastcnn": (1.0, fails), "cudnn_nchw": (90.0, right)}
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert found["wrong"] == "it failed: RuntimeError: no engine was able to run it"


def test_another_shape_is_wrong(clock):
    contenders = {"fastcnn": (1.0, lambda x: right(x)[:2]), "cudnn_nchw": (90.0, right)}
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert found["wrong"] == "it has the shapes [(2, 4)], expected [(4, 4)]"


def test_baselines_that_are_wrong_or_fail_are_listed_and_not_timed(clock):
    contenders = {
        "fastcnn": (20.0, right),
        "cudnn_nchw": (1.0, wrong),
        "compile": (1.0, fails),
        "eager": (40.0, right),
    }
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert found["baseline"] == "eager"
    assert set(found["contenders"]) == {"fastcnn", "eager"}
    assert found["skipped"]["compile"] == "RuntimeError: no engine was able to run it"
    assert found["skipped"]["cudnn_nchw"].startswith("its result is wrong: error")


def test_a_baseline_that_fails_only_when_timed_is_listed_and_the_rest_goes_on(clock):
    made = []

    def later(x):
        made.append(1)
        return right(x) if len(made) == 1 else fails(x)

    contenders = {"fastcnn": (20.0, right), "compile": (5.0, later), "eager": (40.0, right)}
    found = measure(CASE, fake_settings(clock), made_up(clock, contenders))
    assert found["baseline"] == "eager"
    assert found["skipped"] == {"compile": "RuntimeError: no engine was able to run it"}


def test_without_our_kernels_only_baselines_are_measured(clock):
    contenders = {"fastcnn": (20.0, right), "cudnn_nchw": (90.0, right)}
    settings = fake_settings(clock, without_ours="there is no library")
    found = measure(CASE, settings, made_up(clock, contenders))
    assert set(found["contenders"]) == {"cudnn_nchw"}
    assert (found["baseline"], found["ratio"]) == ("cudnn_nchw", None)
    assert found["skipped"] == {"fastcnn": "there is no library"}


def test_a_case_that_cannot_be_built_says_why():
    def make(case, settings):
        raise RuntimeError("padding should be at most half of the kernel")

    found = measure(CASE, wall_settings(), make)
    assert found["contenders"] == {}
    assert found["skipped"] == {"fastcnn": "RuntimeError: padding should be at most half of the kernel"}


def test_a_wrong_kernel_of_the_package_is_refused(operators_on_cpu, monkeypatch):
    """The whole way: an index that is off by one in one row of pixels."""
    honest = calls.conv2d

    def off(*args):
        y = honest(*args).clone()
        y[:, :, -1] = y[:, :, -2]
        return y

    monkeypatch.setattr(calls, "conv2d", off)
    found = measure(CASE, wall_settings())
    assert "error" in found["wrong"]
    assert found["contenders"]
    assert "fastcnn" not in found["contenders"]


def test_one_channel_in_nhwc_is_taken_for_nhwc():
    (x,) = laid_out([torch.randn(2, 1, 4, 5)], "channels_last")
    assert suggests_channels_last(x)
    wide = torch.randn(2, 3, 4, 5)
    (y,) = laid_out([wide], "channels_last")
    assert y.stride() == wide.contiguous(memory_format=torch.channels_last).stride()
    assert torch.equal(y, wide)


def test_an_infinite_or_missing_value_is_an_infinite_error():
    truth = (torch.ones(4, dtype=torch.float64),)
    for value in (torch.nan, torch.inf):
        got = torch.ones(4)
        got[1] = value
        assert errors((got,), truth).max == float("inf")
    assert errors((torch.ones(4),), truth) == Errors(0.0, 0.0)


def test_errors_are_compared_piece_by_piece(monkeypatch):
    truth, got = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5)
    whole = errors((got,), (truth,))
    monkeypatch.setattr(check, "_ELEMENTS", 10)
    assert errors((got,), (truth,)).rms == pytest.approx(whole.rms)
    assert errors((got,), (truth,)).max == pytest.approx(whole.max)
    assert whole.rms == pytest.approx(((got - truth).norm() / truth.norm()).item())


def test_ours_is_judged_by_the_best_baseline_and_a_baseline_by_what_rounding_explains():
    rule = rounding("bfloat16", False, 576)
    unit = 2.0**-8
    baselines = {"a": Errors(1e-3, 4e-3), "b": Errors(2e-2, 4e-2)}
    assert fault_of_ours(Errors(2e-3 + unit, 1e-2), baselines, rule) is None
    assert "for a's error of 0.001" in fault_of_ours(Errors(2.1e-3 + unit, 1e-2), baselines, rule)
    assert "largest error" in fault_of_ours(Errors(1e-3, 0.5), baselines, rule)
    assert fault_of_baseline(Errors(0.02, 0.1), rule) is None
    assert fault_of_baseline(Errors(0.1, 0.1), rule).startswith("its result is wrong")
    assert fault_of_ours(Errors(float("nan"), 0.0), baselines, rule)


def test_tf32_may_round_as_much_as_it_does_beside_a_baseline_that_did_not():
    exact = {"a": Errors(1e-7, 1e-7)}
    assert fault_of_ours(Errors(4e-4, 1e-3), exact, rounding("float32", True, 64)) is None
    assert fault_of_ours(Errors(4e-4, 1e-3), exact, rounding("float32", False, 64))


def test_a_maximum_is_to_be_exact():
    rule = Rule(0.0, exact=True)
    assert fault_of_ours(Errors(0.0, 0.0), {}, rule) is None
    assert fault_of_ours(Errors(0.0, 1e-9), {}, rule)
    assert fault_of_baseline(Errors(0.0, 1e-9), rule)
