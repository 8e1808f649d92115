"""Which cases names stand for, and that every kind of case agrees with torch on CPU tensors."""

import gc
from functools import partial

import pytest
import torch

from fastcnn.bench import cases, convs, networks, pools, suites
from fastcnn.bench.cases import Case, expand, quick
from fastcnn.bench.measure import measure
from fastcnn.bench.suites import ConvRow, OtherRow, PoolRow, SuiteError, select
from tests.benchmarks.bench_helpers import wall_settings

DENSE = ConvRow("own", "dense", 1, 2, 8, 9, 9, 16, 3, 3, padding=(1, 1))
DEPTHWISE = ConvRow("own", "depthwise", 1, 2, 8, 9, 9, 8, 3, 3, (2, 2), (1, 1), groups=8)
FIRST = ConvRow("own", "first", 1, 2, 3, 11, 10, 8, 5, 3, (2, 1), (2, 0))
POOLS = [
    PoolRow("own", "max", 1, "max_pool2d", 2, 8, 9, 9, (3, 3), (2, 2), (1, 1), ceil_mode=True),
    PoolRow("own", "avg", 1, "avg_pool2d", 2, 8, 9, 9, (3, 3), (2, 2), (1, 1)),
    PoolRow("own", "adaptive_avg", 1, "adaptive_avg_pool2d", 2, 8, 9, 9, (1, 1)),
    PoolRow("own", "adaptive_max", 1, "adaptive_max_pool2d", 2, 8, 9, 9, (2, 4)),
]


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """Each case collects garbage, which takes long where all that pytest has loaded is looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nothing_compiled(monkeypatch):
    """torch.compile takes seconds for each function; here its contenders are what would be compiled."""
    monkeypatch.setattr(convs, "compiled", lambda function: function)
    monkeypatch.setattr(pools, "compiled", lambda function: function)
    monkeypatch.setattr(networks, "_compiled", lambda network, mode: network)


def all_right(found):
    assert found["wrong"] is None, found["wrong"]
    assert "fastcnn" in found["contenders"], found["skipped"]
    return found


@pytest.mark.parametrize(
    ("row", "dtype"),
    [(DENSE, "bf16"), (DEPTHWISE, "fp32"), (FIRST, "tf32")],
    ids=lambda value: getattr(value, "layer", value),
)
def test_every_pass_of_a_convolution_agrees(operators_on_cpu, nothing_compiled, row, dtype):
    pooled = expand([row], passes=["act_pool"], dtypes=[dtype])
    assert [case.op for case in pooled] == ["conv2d_act_max_pool2d"]
    for case in expand([row], dtypes=[dtype]) + pooled:
        found = all_right(measure(case, wall_settings()))
        expected = {"cudnn_channels_last", "cudnn_nchw"}
        expected |= {"aten_native"} if row.depthwise else set()
        expected |= {"compile"} if case.op in ("conv2d_act", "conv2d_act_max_pool2d") else set()
        assert set(found["contenders"]) == {"fastcnn", *expected}
        assert set(found["skipped"]) == ({"cudnn_fused"} if case.op == "conv2d_act" else set())
        assert found["baseline"] in expected
        assert found["bytes"] > 0
        assert found["tflops"] > 0


@pytest.mark.parametrize("row", POOLS, ids=lambda row: row.layer)
def test_every_pass_of_a_pool_agrees(operators_on_cpu, nothing_compiled, row):
    for case in expand([row], layouts=["nchw" if row.adaptive else "channels_last"]):
        found = all_right(measure(case, wall_settings()))
        assert set(found["contenders"]) == {"fastcnn", "eager", "compile"}
        assert found["skipped"] == {}
        assert found["tflops"] is None
        assert found["gbps"] > 0


def test_calls_and_the_small_cnns_step_agree(operators_on_cpu, nothing_compiled):
    call = OtherRow("call_overhead", "conv2d backward")
    step = OtherRow("small_cnn_step", "small_cnn", batch=3, image=(1, 28, 28))
    found = all_right(measure(expand([call])[0], wall_settings()))
    assert {contender["method"] for contender in found["contenders"].values()} == {"host"}
    assert found["gbps"] is None
    found = all_right(measure(expand([step])[0], wall_settings()))
    assert set(found["contenders"]) == {"fastcnn", "eager", "compile", "compile_max_autotune"}


def tiny_classifier(num_classes=10):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, num_classes),
    )


@pytest.mark.parametrize(
    "op", ["model_inference", "model_training", "model_inference_fused", "model_inference_compiled"]
)
def test_a_whole_model_agrees(operators_on_cpu, nothing_compiled, monkeypatch, op):
    monkeypatch.setattr(networks, "find_model", lambda name: tiny_classifier())
    row = OtherRow("models", "tiny", batch=4, image=(3, 12, 12))
    found = all_right(measure(Case(row, op, "bfloat16"), wall_settings(autotune=False)))
    assert set(found["contenders"]) == {"fastcnn", "eager", "compile"}
    assert "quick" in found["skipped"]["compile_max_autotune"]
    assert found.get("oracle") == ("float32" if op == "model_training" else None)


def test_wrong_gradients_of_a_model_are_refused(operators_on_cpu, nothing_compiled, monkeypatch):
    """Its results are right, and only a backward pass of ours is off."""
    from fastcnn import _autograd

    honest = _autograd._conv2d_grads

    def off(ctx, *grads):
        found = list(honest(ctx, *grads))
        return [None if grad is None else 1.1 * grad for grad in found]

    monkeypatch.setattr(_autograd, "_conv2d_grads", off)
    step = OtherRow("small_cnn_step", "small_cnn", batch=3, image=(1, 28, 28))
    found = measure(expand([step])[0], wall_settings())
    assert found["wrong"].startswith("gradients in float32: rms error")


def test_the_twin_of_the_small_cnn_has_its_weights():
    from fastcnn import models

    ours = models.small_cnn()
    twin = networks.small_cnn_twin(ours)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(twin(x), ours(x))
    assert not any(type(module).__module__.startswith("fastcnn") for module in twin.modules())


@pytest.mark.parametrize("op", ["max_pool2d_backward", "max_pool2d_forward_backward"])
def test_what_is_compiled_is_one_graph(operators_on_cpu, monkeypatch, op):
    """torch.compile without its slow half, the generation of code."""
    traced = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(pools, "compiled", traced)
    found = all_right(measure(Case(POOLS[0], op, "float32"), wall_settings()))
    assert "compile" in found["contenders"], found["skipped"]


def test_names_become_dtypes_layouts_and_operations():
    wanted = expand([DENSE], passes=["wgrad"], dtypes=["tf32", "fp16"], layouts=["nchw"])
    assert [case.id for case in wanted] == [
        "own/dense conv2d_wgrad float32 contiguous tf32",
        "own/dense conv2d_wgrad float16 contiguous",
    ]
    assert [case.op for case in expand([FIRST])] == [
        "conv2d_fprop",
        "conv2d_wgrad",
        "conv2d_forward_backward",
        "conv2d_act",
    ]
    assert [case.op for case in expand([FIRST], passes=["dgrad"])] == ["conv2d_dgrad"]
    small = {case.op for case in expand(select(["small_cnn_28"]))}
    assert "conv2d_act_max_pool2d" in small
    assert expand([POOLS[0]], dtypes=["tf32"]) == expand([POOLS[0]], dtypes=["fp32"])
    overhead = select(["call_overhead"])
    assert len(expand(overhead, dtypes=["bf16", "fp32"], layouts=["nchw", "nhwc"])) == len(overhead)


@pytest.mark.parametrize("option", ["passes", "dtypes", "layouts"])
def test_unknown_names_list_those_there_are(option):
    with pytest.raises(SuiteError, match=r"there is no \w+ 'odd'; there are \w+, "):
        expand([DENSE], **{option: ["odd"]})


def test_identities_are_unique_and_the_quick_selection_is_there():
    everything = expand(select(["all"]), dtypes=list(cases.DTYPES), layouts=["nhwc", "nchw"])
    assert len({case.id for case in everything}) == len(everything)
    chosen = quick()
    assert len(set(chosen)) == len(chosen) < 80
    ops = {case.op for case in chosen}
    assert {"conv2d_dgrad", "conv2d_act", "max_pool2d_backward", "small_cnn_step", "model_training"} <= ops
    assert "conv2d_act_max_pool2d" in ops
    assert {"bf16", "fp32", "tf32"} == {case.short_dtype for case in chosen}
    assert any(case.row.depthwise for case in chosen if isinstance(case.row, ConvRow))
    assert {case.row for case in chosen} <= set(suites.select(["all"]))
