"""The shapes that operators are tested on: each names the way in which it is awkward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest


@dataclass(frozen=True)
class Conv:
    """One convolution; `padding` is top, bottom, left, right."""

    id: str
    input: tuple[int, int, int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.input[1] // self.groups, *self.kernel)

    @property
    def symmetric(self) -> bool:
        top, bottom, left, right = self.padding
        return top == bottom and left == right

    @property
    def geometry(self) -> tuple[int, ...]:
        return (*self.stride, *self.padding, *self.dilation, self.groups)

    def with_batch(self, batch: int) -> Conv:
        return replace(self, input=(batch, *self.input[1:]))


CONVS = [
    Conv("3x3", (2, 8, 7, 9), 16, (3, 3), padding=(1, 1, 1, 1)),
    Conv("3x3-valid", (2, 4, 6, 6), 8, (3, 3)),
    Conv("1x1", (2, 16, 5, 6), 8, (1, 1)),
    Conv("1x1-stride-2", (2, 8, 7, 7), 8, (1, 1), stride=(2, 2)),
    Conv("1x1-padded", (1, 8, 3, 3), 4, (1, 1), padding=(1, 1, 1, 1)),
    Conv("1-channel", (2, 1, 8, 8), 4, (3, 3)),
    Conv("3-channels-7x7", (1, 3, 15, 13), 8, (7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    Conv("5-channels", (2, 5, 6, 7), 3, (3, 2)),
    Conv("1-output-channel", (2, 8, 6, 6), 1, (3, 3), padding=(1, 1, 1, 1)),
    Conv("odd-everything", (3, 7, 9, 5), 11, (5, 3), stride=(3, 2), padding=(2, 2, 1, 1), dilation=(1, 2)),
    Conv("uneven-stride", (2, 4, 9, 9), 6, (3, 3), stride=(1, 2), padding=(1, 1, 1, 1)),
    Conv("stride-over-kernel", (2, 4, 11, 10), 4, (2, 2), stride=(3, 4)),
    Conv("stride-leaves-a-rest", (1, 4, 8, 8), 4, (3, 3), stride=(2, 2)),
    Conv("pad-kernel-minus-1", (1, 4, 4, 5), 4, (3, 4), padding=(2, 2, 3, 3)),
    Conv("pad-over-kernel", (1, 3, 3, 3), 4, (2, 2), padding=(4, 4, 3, 3)),
    Conv("asymmetric-padding", (2, 4, 6, 5), 4, (2, 4), padding=(0, 1, 1, 2)),
    Conv("one-sided-padding", (1, 4, 5, 6), 4, (3, 3), stride=(2, 1), padding=(2, 0, 0, 2)),
    Conv("dilated", (2, 4, 9, 11), 4, (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3)),
    Conv("dilated-strided", (1, 4, 12, 11), 4, (3, 2), stride=(2, 3), padding=(3, 3, 1, 1), dilation=(3, 2)),
    Conv("one-output-row", (2, 4, 3, 8), 6, (3, 3)),
    Conv("one-output-pixel", (3, 4, 5, 5), 6, (5, 5)),
    Conv("kernel-fills-padded-input", (2, 3, 3, 2), 4, (5, 4), padding=(1, 1, 1, 1)),
    Conv("row-kernel", (1, 4, 5, 12), 4, (1, 7), padding=(0, 0, 3, 3)),
    Conv("column-kernel", (1, 4, 12, 5), 4, (7, 1), padding=(3, 3, 0, 0)),
    Conv("big-kernel", (1, 2, 13, 13), 2, (11, 11), padding=(5, 5, 5, 5)),
    Conv("groups", (2, 8, 6, 5), 12, (3, 3), padding=(1, 1, 1, 1), groups=4),
    Conv("groups-odd", (1, 9, 5, 5), 6, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=3),
    Conv("depthwise", (2, 8, 7, 6), 8, (3, 3), padding=(1, 1, 1, 1), groups=8),
    Conv("depthwise-stride-2", (2, 5, 9, 9), 5, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=5),
    Conv("depthwise-multiplier", (2, 3, 6, 6), 9, (3, 3), padding=(1, 1, 1, 1), groups=3),
    Conv("depthwise-5x5-dilated", (1, 4, 11, 9), 4, (5, 5), padding=(4, 4, 4, 4), dilation=(2, 2), groups=4),
    Conv("depthwise-asymmetric", (1, 4, 6, 6), 4, (2, 2), padding=(0, 1, 1, 0), groups=4),
    Conv("tile-edges", (1, 17, 5, 7), 33, (3, 3), padding=(1, 1, 1, 1)),
    Conv("many-output-channels", (1, 4, 3, 5), 140, (1, 1)),
    Conv("long-reduction", (9, 3, 8, 8), 4, (2, 2)),
]


@dataclass(frozen=True)
class Pool:
    """One sliding pool. Dilation concerns max pooling, the last two average pooling."""

    id: str
    input: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    @property
    def max_geometry(self) -> tuple:
        return (*self.kernel, *self.stride, *self.padding, *self.dilation, self.ceil_mode)

    @property
    def avg_geometry(self) -> tuple:
        settings = (self.ceil_mode, self.count_include_pad, self.divisor or 0)
        return (*self.kernel, *self.stride, *self.padding, *settings)


POOLS = [
    Pool("2x2", (2, 3, 8, 6), (2, 2), (2, 2)),
    Pool("2x2-rest", (2, 8, 7, 9), (2, 2), (2, 2)),
    Pool("2x2-ceil", (2, 3, 7, 9), (2, 2), (2, 2), ceil_mode=True),
    Pool("3x3-stride-2", (2, 16, 9, 11), (3, 3), (2, 2), (1, 1)),
    Pool("3x3-overlapping", (1, 5, 6, 7), (3, 3), (1, 1), (1, 1)),
    Pool("3x3-ceil-padded", (2, 4, 8, 8), (3, 3), (2, 2), (1, 1), ceil_mode=True),
    Pool("ceil-window-past-the-edge", (1, 2, 5, 5), (2, 2), (3, 3), (1, 1), ceil_mode=True),
    Pool("ceil-stride-over-kernel", (1, 3, 6, 9), (2, 2), (4, 5), (1, 1), ceil_mode=True),
    Pool("uneven", (2, 4, 9, 8), (3, 2), (1, 3), (1, 0)),
    Pool("stride-over-kernel", (1, 3, 10, 11), (2, 3), (4, 5)),
    Pool("whole-image", (2, 5, 4, 3), (4, 3), (1, 1)),
    Pool("1x1", (2, 3, 4, 5), (1, 1), (1, 1)),
    Pool("1x1-stride-2", (2, 3, 5, 5), (1, 1), (2, 2)),
    Pool("1-channel", (3, 1, 6, 5), (2, 2), (1, 1)),
    Pool("row-window", (1, 4, 3, 12), (1, 5), (1, 2), (0, 2)),
    Pool("big-window", (1, 2, 18, 19), (17, 17), (2, 1), (8, 8)),
    Pool("pad-not-counted", (1, 4, 6, 6), (3, 3), (2, 2), (1, 1), count_include_pad=False),
    Pool(
        "pad-not-counted-ceil", (1, 4, 7, 8), (4, 3), (3, 2), (2, 1), ceil_mode=True, count_include_pad=False
    ),
    Pool("divisor", (1, 4, 6, 6), (3, 2), (2, 2), (1, 1), divisor=3),
    Pool("negative-divisor", (1, 4, 6, 6), (2, 2), (2, 2), divisor=-2, ceil_mode=True),
]

DILATED_POOLS = [
    Pool("dilated", (2, 4, 9, 8), (3, 3), (2, 2), (1, 1), (2, 2)),
    Pool("dilated-uneven", (1, 8, 11, 9), (2, 3), (3, 1), (1, 1), (3, 2)),
    Pool("dilated-ceil", (1, 3, 10, 11), (3, 2), (2, 3), (1, 1), (2, 4), ceil_mode=True),
]

# input, output size
ADAPTIVE = [
    ((2, 3, 8, 6), (1, 1)),
    ((2, 8, 7, 7), (1, 1)),
    ((2, 5, 7, 9), (3, 4)),
    ((1, 4, 3, 4), (7, 5)),
    ((1, 4, 5, 6), (5, 6)),
    ((3, 1, 10, 1), (4, 1)),
    ((1, 16, 9, 2), (2, 3)),
]


def parametrize(name: str, cases: list) -> pytest.MarkDecorator:
    """One test for each case, named by it."""
    ids = [
        case.id if hasattr(case, "id") else f"{case[0][1]}x{case[0][2]}x{case[0][3]}-{case[1]}"
        for case in cases
    ]
    return pytest.mark.parametrize(name, cases, ids=ids)
