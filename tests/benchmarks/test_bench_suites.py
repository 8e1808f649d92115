"""The lists of shapes: every row is read as it stands, and names lead to rows."""

import csv

import pytest

from fastcnn.bench import suites
from fastcnn.bench.suites import ConvRow, PoolRow, SuiteError


def lines(name):
    with (suites.shapes_folder() / name).open(newline="") as file:
        return list(csv.DictReader(file))


def text(pair):
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def named(row):
    return row.layer if row.count == 1 else f"{row.layer}#x{row.count}"


def test_every_convolution_is_read_as_it_stands():
    rows = suites.conv_rows()
    expected = [line for name in suites.CONV_FILES for line in lines(name)]
    assert len(rows) == len(expected) == 452
    for row, line in zip(rows, expected, strict=True):
        assert (row.suite, named(row)) == (line["suite"], line["layer"])
        shape = row.shape()
        assert [str(shape[name]) for name in "NCHWKRS"] == [line[name] for name in "NCHWKRS"]
        pairs = (text(row.stride), text(row.padding), text(row.dilation), str(row.groups))
        assert pairs == (line["stride"], line["pad"], line["dilation"], line["groups"])


def test_every_pool_is_read_as_it_stands():
    rows = suites.pool_rows()
    assert len(rows) == len(lines("pool-shapes.csv")) == 49
    for row, line in zip(rows, lines("pool-shapes.csv"), strict=True):
        assert (row.suite, named(row)) == (f"pool_{line['model']}", line["layer"])
        assert row.op == f"{line['op']}_pool2d"
        assert [str(row.shape()[name]) for name in "NCHW"] == [line[name] for name in "NCHW"]
        if row.adaptive:
            assert line["kernel"] == "out{}x{}".format(*row.kernel)
        else:
            assert text(row.kernel) == line["kernel"]
            pairs = (text(row.stride), text(row.padding), str(int(row.ceil_mode)), text(row.dilation))
            assert pairs == (line["stride"], line["pad"], line["ceil_mode"], line["dilation"])


def test_sizes_and_occurrences():
    assert suites.sizes("3") == (3, 3)
    assert suites.sizes("5x20") == (5, 20)
    assert suites.occurrences("layer1.0.conv2#x3") == ("layer1.0.conv2", 3)
    assert suites.occurrences("conv1") == ("conv1", 1)


def test_names_lead_to_rows_and_groups_to_suites():
    assert len(suites.select(["resnet50_224"])) == 23
    assert sum(row.count for row in suites.select(["resnet50_224"])) == 53
    assert all(isinstance(row, PoolRow) for row in suites.select(["pools"]))
    assert len(suites.select(["pools", "pool_vgg16"])) == 49
    assert all(isinstance(row, ConvRow) for row in suites.select(["convs"]))
    assert len(suites.select(["all"])) == 452 + 49 + len(suites.OTHER_ROWS)
    assert {row.suite for row in suites.select(["main"])} == set(suites.MAIN)


def test_an_unknown_suite_lists_those_there_are():
    with pytest.raises(SuiteError, match=r"no suite 'resnet'; there are resnet50_224, .*groups main, convs"):
        suites.select(["resnet"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": 3}, "must divide C 8 and K 16"),
        ({"r": 9}, "larger than the padded input"),
        ({"k": 0}, "must be positive"),
    ],
)
def test_an_impossible_convolution_is_refused(changes, said):
    sizes = {"n": 1, "c": 8, "h": 5, "w": 5, "k": 16, "r": 3, "s": 3}
    with pytest.raises(SuiteError, match=said):
        ConvRow("own", "layer", 1, **{**sizes, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"op": "min"}, "one of max, avg"),
        ({"padding": (2, 2)}, "at most half of the kernel"),
        ({"padding": (2, 2), "dilation": (2, 2)}, "at most half of the kernel"),
        ({"op": "avg_pool2d", "dilation": (2, 2)}, "no dilation"),
        ({"kernel": (9, 9)}, "output size is too small"),
    ],
)
def test_an_impossible_pool_is_refused(changes, said):
    sizes = {"op": "max_pool2d", "n": 1, "c": 8, "h": 5, "w": 5, "kernel": (3, 3)}
    with pytest.raises(SuiteError, match=said):
        PoolRow("own", "layer", 1, **{**sizes, **changes})
