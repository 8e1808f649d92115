"""The report against records that are made up: what is shown, what is left out, and what it says of it."""

from pathlib import Path

import pytest

from benchmarks import figures, plots, records, report, tables
from build_support.families import family_hashes
from tests.benchmarks.fixtures import made_up

README = f"# Title\n\nbefore\n\n{report.BEGIN}\n\nold words\n\n{report.END}\n\nafter\n"
HASHES = family_hashes(records.ROOT / "csrc")
TIMES = {"fastcnn": 10.0, "cudnn_nchw": 20.0}


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in ("benchmarks", "fastcnn/bench"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def latest(*given: dict) -> list[figures.Figure]:
    return figures.latest(given, HASHES)[made_up.GPU]


# --- files


def test_without_records_nothing_is_claimed(root):
    texts, pictures = report.report([], HASHES, root)
    assert "Not measured yet." in texts[report.README]
    assert texts[report.PAGE].endswith("\n\nNot measured yet.\n")
    assert (texts[report.MEASURED], pictures) == ("[]\n", {})


def test_only_what_stands_between_the_markers_is_replaced(root):
    text = report.between_markers(README, "new words")
    assert text == README.replace("old words", "new words")
    for broken in (README.replace(report.END, ""), README + report.BEGIN, f"{report.END}\n{report.BEGIN}"):
        with pytest.raises(ValueError, match=r"README\.md should have .* put them back"):
            report.between_markers(broken, "new words")


def test_the_report_is_written_whole_and_then_checks(root):
    texts, pictures = report.report([made_up.plenty()], HASHES, root)
    assert len(report.differences(texts, pictures, root)) == 3 + len(pictures)
    (root / report.PLOTS).mkdir(parents=True)
    (root / report.PLOTS / "of-no-record.png").touch()
    assert f"{report.PLOTS}/of-no-record.png belongs to no record" in report.differences(
        texts, pictures, root
    )
    report.write(texts, pictures, root)
    again = report.report([made_up.plenty()], HASHES, root)
    assert report.differences(*again, root) == []
    kinds = ("ratio-per-layer-bfloat16", "ratio-per-layer-float32-with-tf32", "roofline-bfloat16", "models")
    assert all(any(kind in path.name for path in pictures) for kind in kinds)
    for path in pictures:
        assert (root / path).read_bytes().startswith(b"\x89PNG")
        assert f"({path.as_posix()})" in texts[report.README]
        assert f"({path.relative_to('benchmarks').as_posix()})" in texts[report.PAGE]
    (root / report.PAGE).write_text("by hand")
    assert report.differences(*again, root) == [
        "benchmarks/RESULTS.md is not what the records and sources give"
    ]


def test_the_committed_report_is_what_the_records_give(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().out


def test_fixtures_among_the_results_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(report, "load_records", lambda folder: [made_up.record()])
    monkeypatch.setattr(report, "write", lambda *_: pytest.fail("a fixture was reported"))
    assert report.main([]) == 1
    assert "made up for tests, which is no result: remove it" in capsys.readouterr().err


def test_pending_lists_what_the_records_do_not_cover(monkeypatch, capsys):
    monkeypatch.setattr(report, "load_records", lambda folder: [made_up.check()])
    assert report.main(["--pending"]) == 0
    assert "conv2d/generic: not measured on these sources" in capsys.readouterr().out.splitlines()
    everything = [made_up.case("s", f, "conv2d_fprop", TIMES, families=(f,)) for f in HASHES]
    monkeypatch.setattr(report, "load_records", lambda folder: [made_up.check(), made_up.record(everything)])
    assert report.main(["--pending"]) == 0
    assert capsys.readouterr().out == "every kernel family has records of its present sources\n"


# --- what the figures say


def test_losses_are_marked_like_wins_and_stale_figures_say_so(root):
    page = report.report([made_up.plenty()], HASHES, root)[0][report.PAGE]
    rows = [line for line in page.splitlines() if line.startswith("| layer")]
    assert any("▲" in row for row in rows)
    assert any("▼" in row for row in rows)
    assert all("current" in row for row in rows if "▲" in row)
    pools = [line for line in page.splitlines() if line.startswith("| pool") and "N8" in line]
    assert len(pools) == 46
    assert all(row.endswith("| changed since |") for row in pools)
    assert "Sources changed since for 50 of 89 figures (pool2d/max)." in page
    assert "`pools/broken avg_pool2d bfloat16 channels_last`: rms 3 | torch's 0.1" in page
    (absent,) = (line for line in page.splitlines() if line.startswith("Not measured yet: "))
    assert "densenet121_224" in absent
    assert "resnet50_224" not in absent
    assert "| SM 1000 of 2000 MHz, 300 of 700 W, 40 °C, held back by sw_power_cap |" in page
    assert "| vgg16_224 | conv2d_fprop | bfloat16 | channels_last | 0 of 1 |  |  | not measured yet " in page
    assert "| resnet50, batch 128 | model_inference | bfloat16 | channels_last | 9.03 | 9.85 | 8.49 |" in page


def test_every_table_has_as_many_cells_in_each_row(root):
    texts, _ = report.report([made_up.plenty()], HASHES, root)
    for text in (texts[report.README], texts[report.PAGE]):
        for block in text.split("\n\n"):
            rows = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
            assert len({row.count("|") for row in rows}) <= 1, block[:300]


def test_a_summary_weighs_layers_by_their_count():
    cases = [
        made_up.case("s", "thrice", "conv2d_fprop", {"fastcnn": 10.0, "cudnn_nchw": 20.0}, count=3),
        made_up.case("s", "once", "conv2d_fprop", {"fastcnn": 30.0, "cudnn_nchw": 15.0}),
        made_up.case("s", "theirs", "conv2d_fprop", {"cudnn_nchw": 1e6}),
        made_up.case("s", "bad", "conv2d_fprop", {"cudnn_nchw": 1e6}, wrong="rms 3"),
    ]
    for case in cases[:2]:  # exact medians, for exact sums
        for name, time in (
            ("fastcnn", {"thrice": 10.0, "once": 30.0}),
            ("cudnn_nchw", {"thrice": 20.0, "once": 15.0}),
        ):
            case["contenders"][name]["median_us"] = time[case["layer"]]
        value = 2.0 if case["layer"] == "thrice" else 0.5
        case["ratio"] = {"value": value, "low": value, "high": value}
    summary = figures.summarize(latest(made_up.record(cases, ok=False)))
    assert (summary.layers, summary.compared, summary.wrong) == (4, 2, 1)
    assert (summary.faster, summary.slower, summary.changed) == (1, 1, 0)
    assert summary.geomean == pytest.approx((2**3 * 0.5) ** (1 / 4))
    assert summary.total_ratio == pytest.approx((3 * 20 + 15) / (3 * 10 + 30))
    assert (summary.worst.case["layer"], summary.best.case["layer"]) == ("once", "thrice")


def test_an_interval_with_one_in_it_is_neither_a_win_nor_a_loss():
    case = made_up.case("s", "a", "conv2d_fprop", TIMES)
    case["ratio"] = {"value": 1.01, "low": 0.99, "high": 1.03}
    (figure,) = latest(made_up.record([case]))
    assert figure.verdict == "even"
    assert "= 1.01 [0.99, 1.03]" in tables.layers_table([figure])


def test_the_last_run_counts_and_baselines_alone_hide_nothing():
    def run(date: str, times: dict, **fields: object) -> dict:
        return made_up.record([made_up.case("s", "a", "conv2d_fprop", times, **fields)], date=date, ok=False)

    first = run("2001-01-01T00:00:00Z", {"fastcnn": 10.0, "cudnn_nchw": 20.0})
    second = run("2001-01-02T00:00:00Z", {"fastcnn": 40.0, "cudnn_nchw": 20.0})
    baselines = run("2001-01-03T00:00:00Z", {"cudnn_nchw": 20.0})
    wrong = run("2001-01-04T00:00:00Z", {"cudnn_nchw": 20.0}, wrong="rms 3")
    assert [figure.verdict for figure in latest(first, second)] == ["slower"]
    assert [figure.date for figure in latest(first, second, baselines)] == ["2001-01-02"]
    assert [figure.ours for figure in latest(first, second, baselines, wrong)] == [None]
    assert [figure.sources for figure in latest(baselines)] == ["not measured yet"]


def test_figures_of_two_gpus_are_kept_apart():
    other = made_up.record([made_up.case("s", "a", "conv2d_fprop", TIMES)])
    other["machine"] = {**other["machine"], "gpu": "FIXTURE 2"}
    by_gpu = figures.latest([made_up.plenty(), other], HASHES)
    assert {gpu: len(of_gpu) for gpu, of_gpu in by_gpu.items()} == {made_up.GPU: 91, "FIXTURE 2": 1}
    section = tables.readme_section(by_gpu, {})
    assert section.index(f"**{made_up.GPU}**") < section.index("**FIXTURE 2**")


def test_changed_sources_are_told_of_a_figure_and_of_its_picture():
    case = made_up.case("s", "a", "conv2d_fprop", TIMES)
    record = made_up.record([case])
    stale = figures.latest([record], {**HASHES, "conv2d/generic": "f" * 16})[made_up.GPU]
    assert stale[0].sources == "changed since"
    assert figures.still_standing(stale) == "Sources changed since for 1 of 1 figures (conv2d/generic)."
    texts = [
        text.get_text()
        for text in plots.ratio_bars(stale).findobj(lambda artist: hasattr(artist, "get_text"))
    ]
    assert any(
        made_up.GPU in text and "2001-02-03" in text and "Sources changed since" in text for text in texts
    )
    assert figures.still_standing(latest(record)) == "The sources are those that were measured."


def test_what_was_measured_is_kept_for_the_installed_package():
    changed = made_up.record(
        [made_up.case("s", "a", "conv2d_fprop", TIMES)],
        date="2001-01-01T00:00:00Z",
        sources={**HASHES, "conv2d/generic": "e" * 16},
    )
    later = made_up.record([made_up.case("s", "b", "conv2d_fprop", TIMES)])
    by_gpu = figures.latest([changed, later], HASHES)
    parts = {"conv2d/generic": ["conv2d/split_sum", "conv2d/of_later"]}
    assert report.measured(by_gpu, parts) == [
        {"family": family, "gpu": made_up.GPU, "date": "2001-02-03", "sources": HASHES[family]}
        for family in ("conv2d/generic", "conv2d/split_sum")
    ]


def test_shapes_are_told_in_short():
    shape = {"N": 8, "R": 3, "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    assert tables.shape_text(shape) == "N8 R3 stride 2"
    shape = {"C": 3, "kernel": [3, 5], "ceil_mode": True, "padding": [0, 1]}
    assert tables.shape_text(shape) == "C3 kernel 3x5 ceil_mode True padding 0x1"
