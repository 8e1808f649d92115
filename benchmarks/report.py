"""Puts what the records say into README.md, benchmarks/RESULTS.md and pictures.

    python -m benchmarks.report             # after a record was added to benchmarks/results/, or csrc changed
    python -m benchmarks.report --check     # exit status 1 where that would change a file
    python -m benchmarks.report --pending   # the kernel families whose present sources no record covers

Every figure is shown with its GPU and date, and whether its kernel family's sources have changed since.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import figures, plots, tables
from benchmarks.records import RESULTS, ROOT, is_fixture, load_records, pending
from build_support.families import family_hashes, family_parts
from fastcnn.bench.suites import suites

EVERYTHING_COVERED = "every kernel family has records of its present sources"
BEGIN = "<!-- performance: made by `python -m benchmarks.report`, not by hand -->"
END = "<!-- performance: end -->"
README = Path("README.md")
PAGE = Path("benchmarks/RESULTS.md")
PLOTS = Path("benchmarks/results/plots")
MEASURED = Path("fastcnn/bench/measured.json")


def between_markers(text: str, section: str) -> str:
    """A text with what stands between the two markers replaced, and nothing else.

    Raises:
        ValueError: the markers do not stand there once each, in their order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md should have {BEGIN!r} once and {END!r} once after it; put them back")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{section}\n\n{END}{rest.partition(END)[2]}"


def report(records: Sequence[Mapping], hashes: Mapping[str, str], root: Path) -> tuple[dict, dict]:
    """What the records make of a checkout at `root`.

    Returns:
        The text of each file, and for each picture its figures; both by their path below `root`.

    Raises:
        ValueError: README.md lacks its markers.
    """
    by_gpu = figures.latest(records, hashes)
    drawn = {gpu: plots.pictures(gpu, of_gpu) for gpu, of_gpu in by_gpu.items()}
    from_readme = {gpu: [(PLOTS / name).as_posix() for name in names] for gpu, names in drawn.items()}
    from_page = {
        gpu: [(PLOTS / name).relative_to(PAGE.parent).as_posix() for name in names]
        for gpu, names in drawn.items()
    }
    readme = (root / README).read_text()
    texts = {
        README: between_markers(readme, tables.readme_section(by_gpu, from_readme)),
        PAGE: tables.results_page(by_gpu, from_page, list(suites())),
        MEASURED: json.dumps(measured(by_gpu, family_parts(ROOT / "csrc")), indent=1) + "\n",
    }
    pictures = {PLOTS / name: group for names in drawn.values() for name, group in names.items()}
    return texts, pictures


def measured(
    by_gpu: Mapping[str, Sequence[figures.Figure]], parts: Mapping[str, Sequence[str]]
) -> list[dict]:
    """For `fastcnn info`: when and on which sources each kernel family was measured last on each GPU.

    `parts` has the families that are measured along with each.
    """
    found: dict[tuple[str, str], dict] = {}
    for gpu, of_gpu in by_gpu.items():
        for figure in of_gpu:
            families = figures.measured_families(figure.case)
            along = [part for family in families for part in parts.get(family, ())]
            for family in (*families, *along):
                if family not in figure.record["sources"]:
                    continue  # a part that did not exist then
                entry = {
                    "family": family,
                    "gpu": gpu,
                    "date": figure.date,
                    "sources": figure.record["sources"][family],
                }
                before = found.get((family, gpu))
                if before is None or before["date"] <= entry["date"]:
                    found[family, gpu] = entry
    return [found[key] for key in sorted(found)]


def differences(texts: Mapping[Path, str], pictures: Mapping, root: Path) -> list[str]:
    """The files that are not what the records give, a line each. Pictures are only asked to be there."""
    found = [
        f"{path} is not what the records and sources give"
        for path, text in texts.items()
        if not (root / path).exists() or (root / path).read_text() != text
    ]
    found += [f"{path} is missing" for path in pictures if not (root / path).exists()]
    there = {path.relative_to(root) for path in (root / PLOTS).glob("*.png")}
    return found + [f"{path} belongs to no record" for path in sorted(there - set(pictures))]


def write(texts: Mapping[Path, str], pictures: Mapping, root: Path) -> None:
    """Writes the files and pictures, and removes pictures that no record gives any more."""
    for path, text in texts.items():
        (root / path).write_text(text)
    for path in (root / PLOTS).glob("*.png"):
        if path.relative_to(root) not in pictures:
            path.unlink()
    for path, group in pictures.items():
        plots.draw(path.name, group, root / path)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report, checks it, or lists what has no record; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    what.add_argument(
        "--pending", action="store_true", help="list the kernel families whose sources no record covers"
    )
    arguments = parser.parse_args(argv)
    records = load_records(RESULTS)
    if arguments.pending:
        print("\n".join(map(str, pending(records))) or EVERYTHING_COVERED)
        return 0
    if any(map(is_fixture, records)):
        print(
            "benchmarks/results/ has a record made up for tests, which is no result: remove it",
            file=sys.stderr,
        )
        return 1
    texts, pictures = report(records, family_hashes(ROOT / "csrc"), ROOT)
    if arguments.check:
        found = differences(texts, pictures, ROOT)
        if found:
            print("\n".join([*found, "run `python -m benchmarks.report` and commit what it writes"]))
        return 1 if found else 0
    write(texts, pictures, ROOT)
    print("\n".join(str(path) for path in (*texts, *pictures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
