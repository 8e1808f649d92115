"""The planner's choices for every suite are those of plans.txt."""

from __future__ import annotations

import pytest

from tests.benchmarks.plan_snapshot import CASES, SNAPSHOT, complaint, snapshot, summary


@pytest.mark.emulated
def test_the_planner_chooses_what_the_snapshot_says(emulated_library):
    found = complaint(SNAPSHOT.read_text(), snapshot())
    if found:
        pytest.fail(found, pytrace=False)


def test_a_summary_names_only_what_the_choice_depends_on():
    assert summary(dict.fromkeys(CASES, "a")) == "a"
    assert summary({case: case[0] for case in CASES}) == "bf16: bf16; fp32: fp32"
    by_layout_and_chip = {case: "x" if case[1:] == ("nhwc", "A100") else "y" for case in CASES}
    assert summary(by_layout_and_chip) == "H200 + nchw A100: y; nhwc A100: x"
    one = {case: "x" if case == ("fp32", "nchw", "A100") else "y" for case in CASES}
    assert summary(one) == "H200 + nhwc A100 + bf16 nchw A100: y; fp32 nchw A100: x"


def test_the_complaint_shows_the_change_and_the_command():
    kept = "# head\n\n[suite conv2d_fprop]\none: a\ntwo .. four (3): b\n\n[suite conv2d_wgrad]\none: c\n"
    assert complaint(kept, kept) is None
    said = complaint(kept, kept.replace("one: c", "one: d [tile] /3"))
    assert said.splitlines()[1:] == [
        "-[suite conv2d_wgrad] one: c",
        "+[suite conv2d_wgrad] one: d [tile] /3",
    ]
    assert "python -m tests.benchmarks.plan_snapshot --update" in said
    assert "write it anew" in complaint(kept.replace("\n\n", "\n"), kept)
    assert "more" in complaint(kept, kept.replace("one", "1"), most=1).splitlines()[-1]
