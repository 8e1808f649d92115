"""Times as samples, and what is said of them: median, p10, p90, the ratio of two medians and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy

RESAMPLES = 2000
CONFIDENCE = 0.95


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated between neighbours.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("quantile(): there are no samples")
    return float(numpy.quantile(numpy.asarray(values, dtype=float), share))


@dataclass(frozen=True)
class Samples:
    """One contender's times, in microseconds per call, one sample for each round.

    `method` says how they were taken: "graph" (replay of a CUDA graph), "events" (CUDA events around the
    calls), "wall" (the host's clock, CPU tensors) or "host" (time until a call returns). A sample is the mean
    over `calls` calls in a row. `note` says why a better method could not be used, where one could not.
    """

    values: tuple[float, ...]
    method: str = "graph"
    calls: int = 1
    note: str | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Samples: there must be at least one sample")
        wrong = [value for value in self.values if not (math.isfinite(value) and value >= 0)]
        if wrong:
            raise ValueError(
                f"Samples: times must be finite and not negative, but there are {wrong[:3]} among them"
            )

    @cached_property
    def median(self) -> float:
        """Half the samples are faster."""
        return quantile(self.values, 0.5)

    @cached_property
    def p10(self) -> float:
        """A tenth of the samples are faster."""
        return quantile(self.values, 0.1)

    @cached_property
    def p90(self) -> float:
        """A tenth of the samples are slower."""
        return quantile(self.values, 0.9)


@dataclass(frozen=True)
class Ratio:
    """A median of the baseline over ours (above 1, ours is faster) and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def compare(baseline: Samples, ours: Samples, *, seed: int = 0) -> Ratio:
    """The ratio of medians, baseline / ours, with a bootstrap interval.

    Rounds are drawn with replacement, and both contenders' samples of a drawn round go together, so that what
    slowed both in one round widens no interval. The same samples and seed give the same interval.

    Raises:
        ValueError: the two have not the same number of rounds, or a median of ours is zero.
    """
    rounds = len(baseline.values)
    if rounds != len(ours.values):
        raise ValueError(
            "compare(): both must have the same rounds, but they have "
            f"{rounds} and {len(ours.values)} samples"
        )
    drawn = numpy.random.default_rng(seed).integers(rounds, size=(RESAMPLES, rounds))
    ours_medians = numpy.median(numpy.asarray(ours.values)[drawn], axis=1)
    if ours.median == 0 or not ours_medians.all():
        raise ValueError("compare(): our median time is zero; did the contender do any work on the device?")
    ratios = numpy.median(numpy.asarray(baseline.values)[drawn], axis=1) / ours_medians
    tail = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(ratios, (tail, 1 - tail))
    return Ratio(baseline.median / ours.median, float(low), float(high))
