"""Every selected case, measured beside its baselines (fastcnn.bench)."""

from __future__ import annotations

import pytest

from fastcnn.bench.cases import Case
from fastcnn.bench.problem import OURS
from fastcnn.bench.session import DeviceLost, Session


def test_bench(case: Case, bench_session: Session, benchmark, request: pytest.FixtureRequest) -> None:
    """Fails where our result is wrong; skips what cannot be measured here, with the reason."""
    if bench_session.time_is_up:
        pytest.skip("the budget of --seconds is used up")
    try:
        found = bench_session.measure(case)
    except DeviceLost as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)
    benchmark.extra_info.update(found)
    if found["wrong"]:
        pytest.fail(f"not timed, since it is wrong: {found['wrong']}", pytrace=False)
    if OURS not in found["contenders"]:
        pytest.skip(found["skipped"][OURS])
    samples = found["contenders"][OURS]["samples_us"]
    timer = request.node.get_closest_marker("benchmark").kwargs["timer"]
    timer.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
