"""The figures that the records give: which measurement of a case counts, and what groups amount to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastcnn.bench.record import OURS

NEVER, CURRENT, CHANGED = "not measured yet", "current", "changed since"


@dataclass(frozen=True)
class Figure:
    """One case as measured last on one kind of GPU."""

    case: Mapping
    record: Mapping
    changed: tuple[str, ...]  # the case's families whose sources are no longer those that were measured

    @property
    def gpu(self) -> str:
        return self.record["machine"]["gpu"]

    @property
    def date(self) -> str:
        return self.record["date"][:10]

    @property
    def ours(self) -> float | None:
        """Our median in microseconds; None where ours is wrong or was not measured."""
        contender = self.case["contenders"].get(OURS)
        return contender["median_us"] if contender else None

    @property
    def baseline(self) -> float | None:
        """The fastest baseline's median in microseconds."""
        name = self.case["baseline"]
        return self.case["contenders"][name]["median_us"] if name else None

    @property
    def ratio(self) -> float | None:
        """Baseline / ours: above 1, ours is faster."""
        return self.case["ratio"]["value"] if self.case["ratio"] else None

    @property
    def sources(self) -> str:
        """Whether the sources are still those that were measured."""
        if self.ours is None:
            return NEVER
        return CHANGED if self.changed else CURRENT

    @property
    def verdict(self) -> str:
        """ "faster", "slower", or "even" where the interval of the ratio has 1 in it; "" without a ratio."""
        ratio = self.case["ratio"]
        if ratio is None:
            return ""
        if ratio["low"] > 1:
            return "faster"
        return "slower" if ratio["high"] < 1 else "even"


Setting = tuple[str, str, str]  # dtype ("float32", "float32 with TF32", ...), layout, op


def kind(op: str) -> str:
    """What an operation is: a "layer", a "step" of a model or of training, or a "call" on the host."""
    if op == "call_overhead":
        return "call"
    return "step" if op == "small_cnn_step" or op.startswith("model_") else "layer"


def measured_families(case: Mapping) -> list[str]:
    """The families that a case has times of: a layer's, as planned. A network's time is none of them's."""
    planned = kind(case["op"]) == "layer" and case["kernel"] is not None and OURS in case["contenders"]
    return case["families"] if planned else []


def setting(case: Mapping) -> Setting:
    """What is the same for all cases that are put into one figure."""
    dtype = case["dtype"] + (" with TF32" if case["tf32"] else "")
    return (dtype, case["layout"], case["op"])


def latest(records: Sequence[Mapping], hashes: Mapping[str, str]) -> dict[str, list[Figure]]:
    """For each GPU, each case as measured last, in the order in which the cases first came.

    A later run that measured only baselines does not hide our earlier time; one that found our result wrong
    does. `hashes` are the present sources of the kernel families; `records` are in the order of their dates.
    """
    found: dict[str, dict[str, Figure]] = {}
    for record in records:
        for case in record["cases"]:
            of_gpu = found.setdefault(record["machine"]["gpu"], {})
            before = of_gpu.get(case["id"])
            says_something = OURS in case["contenders"] or case["wrong"]
            if before is not None and before.ours is not None and not says_something:
                continue
            changed = tuple(f for f in case["families"] if hashes.get(f) != record["sources"].get(f))
            of_gpu[case["id"]] = Figure(case, record, changed)
    return {gpu: list(cases.values()) for gpu, cases in found.items()}


def grouped(figures: Iterable[Figure], key) -> dict:
    """Figures by key, keys and figures in the order in which they came."""
    groups: dict = {}
    for figure in figures:
        groups.setdefault(key(figure), []).append(figure)
    return groups


@dataclass(frozen=True)
class Summary:
    """What a group of layers amounts to. Layers without a ratio are counted and left out of the rest."""

    layers: int
    compared: int
    wrong: int
    faster: int
    slower: int
    changed: int
    geomean: float | None  # of the ratios, each as often as its layer occurs
    total_ratio: float | None  # sum of the baselines' times over the sum of ours, likewise
    worst: Figure | None
    best: Figure | None


def summarize(figures: Sequence[Figure]) -> Summary:
    """Adds up a group of figures."""
    compared = [figure for figure in figures if figure.ratio is not None]
    counts = [figure.case["count"] for figure in compared]
    logs = [math.log(figure.ratio) for figure in compared]
    ours = sum(count * figure.ours for count, figure in zip(counts, compared, strict=True))
    theirs = sum(count * figure.baseline for count, figure in zip(counts, compared, strict=True))
    weighted = sum(count * log for count, log in zip(counts, logs, strict=True))
    return Summary(
        layers=len(figures),
        compared=len(compared),
        wrong=sum(bool(figure.case["wrong"]) for figure in figures),
        faster=sum(figure.verdict == "faster" for figure in compared),
        slower=sum(figure.verdict == "slower" for figure in compared),
        changed=sum(figure.sources == CHANGED for figure in figures),
        geomean=math.exp(weighted / sum(counts)) if compared else None,
        total_ratio=theirs / ours if compared else None,
        worst=min(compared, key=lambda figure: figure.ratio, default=None),
        best=max(compared, key=lambda figure: figure.ratio, default=None),
    )


def measured_on(figures: Sequence[Figure]) -> str:
    """On what, when and with what software these were measured, and whether their sources still stand."""
    dates = sorted({figure.date for figure in figures})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    software = sorted(
        {
            f"driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, "
            f"cuDNN {machine['cudnn']}"
            for machine in (figure.record["machine"] for figure in figures)
        }
    )
    return f"{figures[0].gpu}, {when}, {' / '.join(software)}. {still_standing(figures)}"


def still_standing(figures: Sequence[Figure]) -> str:
    """Whether the sources that were measured are the present ones, in a sentence."""
    ours = [figure for figure in figures if figure.ours is not None]
    changed = sorted({family for figure in ours for family in figure.changed})
    if not ours:
        return "Baselines only: fastcnn is not measured yet."
    if not changed:
        return "The sources are those that were measured."
    stale = sum(bool(figure.changed) for figure in ours)
    return f"Sources changed since for {stale} of {len(ours)} figures ({', '.join(changed)})."
