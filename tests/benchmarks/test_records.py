"""Records: written whole at every moment, held to their format, and what they cover."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from benchmarks import records, validate
from build_support.families import code_only, family_files, family_hashes
from fastcnn.bench import machine
from fastcnn.bench.record import families_of, new_record, result_name
from tests.benchmarks.fixtures import made_up


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- writing


def test_a_new_record_is_written_at_once_and_says_that_it_is_not_complete(tmp_path):
    record = new_record("benchmark", path=tmp_path / "deep" / "r.json", protocol={"rounds": 9})
    written = json.loads(record.path.read_text())
    assert validate.faults(written) == []
    assert (written["complete"], written["ok"], written["cases"]) == (False, False, [])
    assert written["protocol"] == {"rounds": 9}
    assert written["machine"]["torch"]
    assert [file.name for file in record.path.parent.iterdir()] == ["r.json"]


def test_cases_are_on_disk_within_seconds_and_the_record_stays_valid(tmp_path):
    clock = Clock()
    record = new_record("benchmark", path=tmp_path / "r.json", clock=clock)
    times = {"cudnn_nchw": 10.0}
    for number in range(6):
        clock.now += 0.9
        record.add(made_up.case("suite", f"layer{number}", "conv2d_fprop", times))
    written = json.loads(record.path.read_text())
    assert validate.faults(written) == []
    assert [case["layer"] for case in written["cases"]] == [f"layer{number}" for number in range(6)]
    clock.now += 0.1
    record.add(made_up.case("suite", "layer0", "conv2d_fprop", {"cudnn_nchw": 20.0}))
    record.finish()
    written = json.loads(record.path.read_text())
    assert (written["complete"], written["ok"], len(written["cases"])) == (True, True, 6)
    assert written["cases"][0]["contenders"]["cudnn_nchw"]["median_us"] > 15
    assert written["seconds"] == pytest.approx(5.5)


def test_a_record_with_a_wrong_case_does_not_end_well(tmp_path):
    record = new_record("benchmark")
    record.add(made_up.case("suite", "a", "conv2d_fprop", {"cudnn_nchw": 10.0}, wrong="rms 3, torch's 0.1"))
    record.finish()
    content = json.loads(record.save(tmp_path / "r.json").read_text())
    assert (content["complete"], content["ok"]) == (True, False)
    assert validate.faults(content) == []


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    record = new_record("benchmark")
    record.add({"id": "a", "values": (1.5, float("nan"), float("inf")), "deep": {"x": float("-inf")}})
    content = json.loads(record.save(tmp_path / "r.json").read_text())
    assert content["cases"] == [{"id": "a", "values": [1.5, None, None], "deep": {"x": None}}]


def test_a_failing_write_leaves_the_record_as_it_was(tmp_path, monkeypatch):
    record = new_record("check", path=tmp_path / "r.json")
    before = record.path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        record.add_step({"name": "library", "status": "ok", "seconds": 1.0, "note": ""})
    assert record.path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_what_new_record_and_save_refuse():
    with pytest.raises(ValueError, match="kind must be 'benchmark' or 'check', but is 'test'"):
        new_record("test")
    with pytest.raises(ValueError, match="no path of its own"):
        new_record("check").save()


def test_the_commit_of_a_copy_without_git_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    monkeypatch.delenv(machine.COMMIT_VARIABLE, raising=False)
    assert machine.commit() == {"id": None, "changed": None}
    monkeypatch.setenv(machine.COMMIT_VARIABLE, "abc1234")
    assert machine.commit() == {"id": "abc1234", "changed": None}


def test_a_result_is_named_by_gpu_kind_and_time():
    name = result_name("NVIDIA H100 80GB HBM3", "check", "2026-01-02T03:04:05Z")
    assert name == "nvidia-h100-80gb-hbm3-check-20260102T030405.json"


# --- validation


def good() -> dict:
    times = {"fastcnn": 10.0, "cudnn_channels_last": 12.0, "cudnn_nchw": 15.0}
    cases = [
        made_up.case("resnet", "conv1", "conv2d_fprop", times),
        made_up.case("resnet", "conv2", "conv2d_wgrad", {"cudnn_nchw": 9.0}, wrong="rms 3, torch's 0.1"),
        made_up.case("resnet", "conv3", "conv2d_dgrad", times, skipped={"compile": "no compiler here"}),
    ]
    return made_up.record(cases, ok=False)


def test_good_records_are_valid():
    assert validate.faults(good()) == []
    assert validate.faults(made_up.check()) == []
    baselines_only = made_up.case("resnet", "conv1", "conv2d_fprop", {"cudnn_nchw": 15.0})
    assert validate.faults(made_up.record([baselines_only], library=None, sources={})) == []


def _set(path: str, value: object):
    def change(record: dict) -> None:
        *parents, last = path.split(".")
        for part in parents:
            record = record[int(part)] if part.isdigit() else record[part]
        if value is KeyError:
            del record[last]
        else:
            record[last] = value

    return change


FIRST = "resnet/conv1 conv2d_fprop bfloat16 channels_last"
SECOND = "resnet/conv2 conv2d_wgrad bfloat16 channels_last"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", 2, "schema: 1 was expected"),
        ("machine", KeyError, "the record: 'machine' is a required property"),
        ("machine.torch", 2.11, "machine.torch: 2.11 is not of type 'string'"),
        ("kind", "run", "kind: 'run' is not one of ['benchmark', 'check']"),
        ("date", "yesterday", "date: 'yesterday' does not match"),
        ("remarks", "fast!", "the record: Additional properties are not allowed ('remarks' was unexpected)"),
        ("sources.conv2d/generic", "new", "sources.conv2d/generic: 'new' does not match"),
        ("commit.id", "HEAD", "commit.id: 'HEAD' does not match"),
        ("ceilings.copy_bytes_per_second", 0, "ceilings.copy_bytes_per_second: 0 is less than"),
        ("cases.0.dtype", "bf16", f"case '{FIRST}', dtype: 'bf16' is not one of"),
        ("cases.0.tf32", KeyError, f"case '{FIRST}': 'tf32' is a required property"),
        ("cases.0.count", 0, f"case '{FIRST}', count: 0 is less than the minimum of 1"),
        ("cases.0.contenders.fastcnn.samples_us", [], f"case '{FIRST}', contenders.fastcnn.samples_us: [] "),
        ("cases.0.contenders.fastcnn.method", "guess", "contenders.fastcnn.method: 'guess' is not one of"),
        ("cases.0.contenders.fastcnn.median_us", 1.0, "contenders.fastcnn: median_us: 1.0, but the samples"),
        ("cases.0.contenders.fastcnn.p10_us", 99.0, "contenders.fastcnn: p10_us, median_us and p90_us"),
        ("cases.0.contenders.fastcnn.call_us.median_us", 1.0, "median_us: 1.0, but the samples"),
        ("cases.0.ratio.value", 3.0, f"case '{FIRST}': ratio: 3.0, but the medians give 1."),
        ("cases.0.ratio.low", 9.0, "ratio: low 9.0 is above high"),
        ("cases.0.ratio", None, "ratio: there iff both have times"),
        ("cases.0.baseline", "cudnn_nchw", "baseline: 'cudnn_nchw' is slower than 'cudnn_channels_last'"),
        ("cases.0.baseline", "eager", "baseline: 'eager' has no times"),
        ("cases.0.baseline", None, "baseline: null, but there are baselines"),
        ("cases.0.families", ["conv2d/other"], "families: conv2d/other not among the record's sources"),
        ("cases.0.wrong", "rms 3", "a wrong result has no times, but contenders.fastcnn is there"),
        ("cases.0.id", SECOND, f"case '{SECOND}': this id occurs twice"),
        ("ok", True, f"ok: case '{SECOND}' is wrong"),
        ("kind", "check", "steps: a complete check has steps"),
    ],
)
def test_each_kind_of_bad_record_is_refused_with_a_sentence(path, value, says):
    record = deepcopy(good())
    _set(path, value)(record)
    found = validate.faults(record)
    assert any(says in fault for fault in found), found


def test_a_record_that_is_cut_short_or_went_wrong_is_not_ok():
    assert validate.faults(made_up.record(complete=False)) == [
        "ok: a record that is not complete cannot be ok"
    ]
    late = {"name": "tests", "status": "late", "seconds": 1.0, "note": ""}
    assert validate.faults(made_up.check(steps=[late])) == ["ok: steps tests went wrong"]


def test_a_fixture_and_a_machine_without_a_gpu_are_no_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validate, "RESULTS", tmp_path)
    nowhere = made_up.record()
    nowhere["machine"]["gpu"] = None
    (tmp_path / "a.json").write_text(json.dumps(made_up.record()))
    (tmp_path / "b.json").write_text(json.dumps(nowhere))
    (tmp_path / "c.json").write_text("{")
    assert validate.main([]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "a.json: machine.gpu: a fixture of the tests is no result"
    assert printed[1].startswith("b.json: machine.gpu: null")
    assert printed[2].startswith("c.json: cannot be read as JSON")
    assert printed[-1] == "3 record(s), 3 invalid"


def test_every_kept_record_is_valid(capsys):
    assert validate.main([]) == 0, capsys.readouterr().out


# --- families

TREE = {
    "conv2d/generic_fprop_float32.cu": '#include "conv2d/generic.cuh"\n',
    "conv2d/generic_fprop_float16.cu": '#include "conv2d/generic.cuh"\n',
    "conv2d/generic.cuh": '#include "common/dtype.h"\n#include "conv2d/sum.h"\nint generic;',
    "conv2d/generic_plan.cpp": '#include "conv2d/generic.h"\n',
    "conv2d/generic.h": '#include "conv2d/plan.h"\n',
    "conv2d/grouped_image_float32.cu": '#include "conv2d/grouped.h"\n',
    "conv2d/grouped_wgrad.cu": '#include "conv2d/grouped.h"\n#include "ptx/mma.cuh"\n',
    "conv2d/grouped.h": '#include "conv2d/plan.h"\n',
    "conv2d/sum.cu": '#include "conv2d/sum.h"\n',
    "conv2d/sum.h": '#include "common/dtype.h"\n',
    "conv2d/plan.h": '#include "conv2d/problem.h"\n#include "conv2d/grouped.h"\n',
    "conv2d/problem.h": "struct Problem;",
    "conv2d/plan.cpp": '#include "conv2d/plan.h"\n#include "conv2d/generic.h"\n#include "generated.h"\n',
    "pool2d/max_fprop.cu": '#include "common/dtype.h"\n',
    "ptx/mma.cuh": "mma",
    "common/dtype.h": "dtype",
    "bindings/conv2d.cpp": '#include "conv2d/plan.h"\n',
}
FAMILIES = {"conv2d/generic", "conv2d/grouped", "conv2d/sum", "pool2d/max", "bindings", "ptx"}


@pytest.fixture
def csrc(tmp_path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "csrc"


def test_families_are_named_by_folder_and_kernel(csrc):
    assert set(family_hashes(csrc)) == FAMILIES


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("conv2d/generic.cuh", {"conv2d/generic"}),
        ("conv2d/generic_plan.cpp", {"conv2d/generic"}),
        ("conv2d/grouped_wgrad.cu", {"conv2d/grouped"}),
        ("conv2d/grouped.h", {"conv2d/grouped"}),
        ("conv2d/grouped_image_float32.cu", {"conv2d/grouped"}),
        ("conv2d/sum.cu", {"conv2d/generic", "conv2d/sum"}),
        ("conv2d/plan.cpp", {"conv2d/generic", "conv2d/grouped", "conv2d/sum"}),
        ("conv2d/problem.h", {"conv2d/generic", "conv2d/grouped", "conv2d/sum"}),
        ("pool2d/max_fprop.cu", {"pool2d/max"}),
        ("ptx/mma.cuh", {"conv2d/grouped", "ptx"}),
        ("common/dtype.h", {"conv2d/generic", "conv2d/sum", "pool2d/max"}),
        ("bindings/conv2d.cpp", {"bindings"}),
    ],
)
def test_a_family_changes_with_what_it_is_made_from(csrc, name, changed):
    before = family_hashes(csrc)
    with (csrc / name).open("a") as file:
        file.write("int more;")
    after = family_hashes(csrc)
    assert {family for family in before if before[family] != after[family]} == changed


def test_comments_and_line_breaks_change_no_family(csrc):
    before = family_hashes(csrc)
    for path in csrc.rglob("*.*"):
        path.write_text("// said of it\n/* more\n of it */\n" + path.read_text() + "\n\n// the end\n")
    assert family_hashes(csrc) == before


def test_code_is_told_from_comments_and_strings():
    assert code_only('a = "// no /* comment */"; // one\n b /* two\n three */ = \'"\';') == (
        'a = "// no /* comment */"; b = \'"\';'
    )


def test_every_kernel_file_of_csrc_is_in_a_family():
    files = {path for files in family_files(records.ROOT / "csrc").values() for path in files}
    sources = {
        path
        for path in (records.ROOT / "csrc").rglob("*")
        if path.suffix in (".cu", ".cpp") and path.parent.name != "bindings"
    }
    assert sources <= files


@pytest.mark.parametrize(
    ("op", "kernel", "families"),
    [
        ("conv2d_fprop", "generic_fprop", ["conv2d/generic"]),
        ("conv2d_fprop", "generic_tile_fprop", ["conv2d/generic_tile"]),
        ("conv2d_forward_backward", "generic_fprop; generic_dgrad", ["conv2d/generic"]),
        (
            "conv2d_forward_backward",
            "generic_fprop; generic_tile_x",
            ["conv2d/generic", "conv2d/generic_tile"],
        ),
        ("conv2d_wgrad", "unheard_of", ["conv2d/generic", "conv2d/generic_tile"]),
        ("conv2d_act", None, ["conv2d/generic", "conv2d/generic_tile"]),
        ("adaptive_max_pool2d_backward", "pool2d::max_bprop_split", ["pool2d/max"]),
        ("model_training", None, ["conv2d/generic", "conv2d/generic_tile", "pool2d/max"]),
    ],
)
def test_the_families_that_a_figure_depends_on(op, kernel, families):
    known = dict.fromkeys(("pool2d/max", "conv2d/generic", "conv2d/generic_tile"), "0" * 16)
    assert families_of(op, kernel, known) == families
    assert families_of(op, kernel, {}) == []


# --- pending


def listed(found: list[records.Pending]) -> dict[str, tuple[bool, bool]]:
    return {p.family: (p.checked, p.measured) for p in found}


def test_records_cover_the_sources_they_were_taken_on(csrc):
    nothing = listed(records.pending([], csrc))
    assert nothing == {
        **dict.fromkeys(FAMILIES, (False, False)),
        "bindings": (False, True),
        "ptx": (False, True),
    }
    checked = made_up.check(csrc)
    assert set(listed(records.pending([checked], csrc)).values()) == {(True, False)}

    times = {"fastcnn": 10.0, "cudnn_nchw": 12.0}
    wholes = ("conv2d/generic", "conv2d/grouped", "pool2d/max")
    cases = [made_up.case("s", family, "conv2d_fprop", times, families=(family,)) for family in wholes]
    measured = made_up.record(cases, sources=family_hashes(csrc))
    assert records.pending([checked, measured], csrc) == []  # sum is a part of generic

    (csrc / "conv2d" / "grouped_wgrad.cu").write_text("changed")
    assert listed(records.pending([checked, measured], csrc)) == {"conv2d/grouped": (False, False)}
    assert str(records.pending([checked, measured], csrc)[0]) == (
        "conv2d/grouped: not checked and not measured on these sources"
    )


def test_baselines_alone_networks_and_failed_checks_cover_nothing(csrc):
    case = made_up.case("s", "a", "conv2d_fprop", {"cudnn_nchw": 12.0}, families=("conv2d/generic",))
    times = {"fastcnn": 10.0, "eager": 12.0}
    network = made_up.case("s", "b", "model_training", times, families=("conv2d/generic",))
    found = [made_up.record([case, network], sources=family_hashes(csrc)), made_up.check(csrc, ok=False)]
    assert records.pending(found, csrc) == records.pending([], csrc)
