"""A measuring process that crashes, hangs or is slow costs a case and not the run."""

import json
import sys

import pytest

from benchmarks import validate
from benchmarks.supervise import MOST_FAILURES, Start, supervise
from fastcnn.bench.record import new_record
from tests.benchmarks.fixtures import made_up

TIMES = {"fastcnn": 10.0, "eager": 12.0}

# Plays the cases in its first argument from the index in its second; "does" says what happens at each.
WORKER = """
import json, os, sys, time
plays, start = json.loads(sys.argv[1]), json.loads(sys.argv[2])
print("a line of a library's", flush=True)
say = lambda **event: print(json.dumps(event), flush=True)
say(event="start", ceilings=None, protocol={"worker": "made up"})
for index in range(start["index"], len(plays)):
    full, baselines, does, skeleton = plays[index]
    without = full["id"] in start["without_cases"] or set(full["families"]) & set(start["without_families"])
    say(event="begin", index=index, seconds=start["patience"], case=skeleton)
    if does == "crash" and not without or does == "always crash":
        os._exit(66)
    if does == "hang" and not without:
        time.sleep(60)
    say(event="case", index=index, case=baselines if without else full)
say(event="end")
"""


def play(layer: str, does: str = "well", family: str = "conv2d/generic") -> list:
    full, baselines, skeleton = (
        made_up.case("s", layer, "conv2d_fprop", times, families=(family,))
        for times in (TIMES, {"eager": 12.0}, {})
    )
    return [full, baselines, does, skeleton]


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    begun: list[Start] = []

    def run(plays: list, seconds: float = 60.0, patience: float = 30.0) -> tuple[str, dict, int]:
        record = new_record("benchmark", path=tmp_path / "r.json")
        record.content["sources"] = dict(made_up.record()["sources"])

        def command(start: Start) -> list[str]:
            begun.append(start)
            told = {**vars(start), "patience": patience}
            return [sys.executable, str(path), json.dumps(plays), json.dumps(told)]

        why = supervise(record, command, seconds)
        record.save()
        content = json.loads(record.path.read_text())
        assert validate.faults(content) == []
        return why, content, len(begun)

    return run


def outcomes(content: dict) -> dict[str, tuple]:
    return {
        case["layer"]: ("fastcnn" in case["contenders"], "eager" in case["contenders"], case["wrong"])
        for case in content["cases"]
    }


def test_what_a_worker_measures_enters_the_record(worker, capsys):
    why, content, workers = worker([play("a"), play("b")])
    assert (why, workers) == ("all measured", 1)
    assert outcomes(content) == {"a": (True, True, None), "b": (True, True, None)}
    assert content["protocol"] == {"worker": "made up"}
    assert capsys.readouterr().out == "a line of a library's\n"


def test_a_crash_costs_our_time_of_one_case(worker):
    why, content, workers = worker([play("a"), play("b", "crash"), play("c")])
    assert (why, workers) == ("all measured", 2)
    said = "the measuring process ended with exit status 66"
    assert outcomes(content) == {"a": (True, True, None), "b": (False, True, said), "c": (True, True, None)}


def test_a_hang_ends_when_its_time_is_over(worker):
    why, content, workers = worker([play("a", "hang"), play("b")], patience=2.0)
    assert (why, workers) == ("all measured", 2)
    said = "it did not end within 2 s"
    assert outcomes(content) == {"a": (False, True, said), "b": (True, True, None)}


def test_a_family_that_crashes_twice_is_left_out_and_the_others_are_not(worker):
    crashing = [play(name, "crash") for name in "abcd"]
    why, content, workers = worker([*crashing, play("e", family="conv2d/depthwise")])
    assert (why, workers) == ("all measured", 3)
    assert [ours for ours, _, _ in outcomes(content).values()] == [False, False, False, False, True]
    assert all(eager for _, eager, _ in outcomes(content).values())


def test_a_case_whose_baselines_crash_is_passed_over(worker):
    why, content, workers = worker([play("a", "always crash"), play("b", family="conv2d/depthwise")])
    assert (why, workers) == ("all measured", 3)
    assert outcomes(content)["a"][:2] == (False, False)
    assert "exit status 66" in content["cases"][0]["skipped"]["baselines"]
    assert outcomes(content)["b"] == (True, True, None)


def test_it_gives_up_where_nothing_works_and_where_nothing_begins(worker, tmp_path):
    plays = [play(str(number), "always crash", f"conv2d/f{number}") for number in range(MOST_FAILURES)]
    for one in plays:
        for case in (one[0], one[1], one[3]):
            case["families"] = []
    assert worker(plays)[0] == f"given up after {MOST_FAILURES} failures"
    record = new_record("benchmark", path=tmp_path / "none.json")
    why = supervise(record, lambda start: [sys.executable, "-c", "raise SystemExit(3)"], 60.0)
    assert why == "the measuring process ended with exit status 3, with no case begun"


def test_the_time_ends_it_and_the_record_is_whole(worker):
    why, content, _ = worker([play("a"), play("b", "hang")], seconds=4.0)
    assert why == "the time was over"
    assert outcomes(content) == {"a": (True, True, None)}
