"""Holds records to their format and to what they say of themselves: `python -m benchmarks.validate`.

Without names of files it takes all of benchmarks/results/, where a record must also be of a real GPU. Exit
status: 0 all valid, 1 some are not. Needs jsonschema (fastcnn[test]).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import RESULTS, SCHEMA_FILE, is_fixture
from fastcnn._extras import require
from fastcnn.bench.record import OURS

CLOSE = 1e-6  # relative: figures are rounded when they are written as text


def faults(record: object) -> list[str]:
    """What is wrong with a record, a sentence each; empty for a valid one.

    Raises:
        MissingExtraError: jsonschema is not installed.
    """
    jsonschema = require("jsonschema", extra="test")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    found = [
        f"{_where(error.absolute_path, record)}: {error.message[:200]}"
        for error in sorted(
            validator.iter_errors(record), key=lambda error: [str(p) for p in error.absolute_path]
        )
    ]
    # What follows reads the fields that the schema promises.
    return found or [*_faults_between_fields(record)]


def faults_as_result(record: dict) -> list[str]:
    """Why a valid record may not stand among the results, a sentence each."""
    if is_fixture(record):
        return ["machine.gpu: a fixture of the tests is no result"]
    if record["machine"]["gpu"] is None:
        return ["machine.gpu: null: figures of a machine without a GPU are no results"]
    return []


def faults_of_file(path: Path, as_result: bool) -> list[str]:
    """What is wrong with a file that should hold a record."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return [f"cannot be read as JSON: {error}"]
    return faults(record) or (faults_as_result(record) if as_result else [])


def _where(path: Sequence, record: object) -> str:
    """A place in a record as people name it: a case by its id."""
    parts = list(path)
    if len(parts) >= 2 and parts[0] == "cases":
        case = record["cases"][parts[1]]
        name = case.get("id", parts[1]) if isinstance(case, dict) else parts[1]
        rest = ".".join(map(str, parts[2:]))
        return f"case {name!r}" + (f", {rest}" if rest else "")
    return ".".join(map(str, parts)) or "the record"


def _faults_between_fields(record: dict) -> list[str]:
    found = []
    if record["ok"] and not record["complete"]:
        found.append("ok: a record that is not complete cannot be ok")
    if record["kind"] == "check" and record["complete"] and not record["steps"]:
        found.append("steps: a complete check has steps")
    bad = [step["name"] for step in record["steps"] if step["status"] in _bad_statuses(step)]
    if record["ok"] and bad:
        found.append(f"ok: steps {', '.join(bad)} went wrong")
    seen: set[str] = set()
    for case in record["cases"]:
        if case["id"] in seen:
            found.append(f"case {case['id']!r}: this id occurs twice")
        seen.add(case["id"])
        if record["ok"] and case["wrong"]:
            found.append(f"ok: case {case['id']!r} is wrong")
        found += [f"case {case['id']!r}: {fault}" for fault in _faults_of_case(case, record["sources"])]
    return found


def _bad_statuses(step: dict) -> tuple[str, ...]:
    """What must not become of a step where all went well; one that is not essential may be cut short."""
    return ("failed", "late") if step.get("essential", True) else ("failed",)


def _faults_of_case(case: dict, sources: dict) -> list[str]:
    contenders = case["contenders"]
    found = [
        f"contenders.{name}: {fault}"
        for name, contender in contenders.items()
        for fault in _faults_of_spread(contender)
    ]
    if case["wrong"] and OURS in contenders:
        found.append("a wrong result has no times, but contenders.fastcnn is there")
    if OURS in contenders:
        unknown = [family for family in case["families"] if family not in sources]
        if unknown:
            found.append(f"families: {', '.join(unknown)} not among the record's sources")
    found += _faults_of_ratio(case)
    return found


def _faults_of_ratio(case: dict) -> list[str]:
    others = {name: c["median_us"] for name, c in case["contenders"].items() if name != OURS}
    baseline, ratio = case["baseline"], case["ratio"]
    if baseline is None:
        return ["baseline: null, but there are baselines"] if others else []
    if baseline not in others:
        return [f"baseline: {baseline!r} has no times"]
    fastest = min(others, key=others.__getitem__)
    if others[baseline] > others[fastest] * (1 + CLOSE):
        return [f"baseline: {baseline!r} is slower than {fastest!r}: the ratio is against the fastest"]
    ours = case["contenders"].get(OURS)
    if ours is None or ratio is None:
        return [] if (ours is None) == (ratio is None) else ["ratio: there iff both have times"]
    value = others[baseline] / ours["median_us"]
    if not abs(ratio["value"] - value) <= CLOSE * value:
        return [f"ratio: {ratio['value']}, but the medians give {value:.6g}"]
    if not ratio["low"] <= ratio["high"]:
        return [f"ratio: low {ratio['low']} is above high {ratio['high']}"]
    return []


def _faults_of_spread(spread: dict) -> list[str]:
    median = statistics.median(spread["samples_us"])
    if not abs(spread["median_us"] - median) <= CLOSE * median:
        return [f"median_us: {spread['median_us']}, but the samples give {median:.6g}"]
    if not spread["p10_us"] <= spread["median_us"] <= spread["p90_us"]:
        return ["p10_us, median_us and p90_us are not in order"]
    return _faults_of_spread(spread["call_us"]) if spread.get("call_us") else []


def main(argv: Sequence[str] | None = None) -> int:
    """Validates the files; prints each fault, and a count at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validate", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="default: all of benchmarks/results/"
    )
    arguments = parser.parse_args(argv)
    files = arguments.files or sorted(RESULTS.glob("*.json"))
    bad = 0
    for path in files:
        as_result = path.resolve().parent == RESULTS
        found = faults_of_file(path, as_result)
        bad += bool(found)
        for fault in found:
            print(f"{path.name}: {fault}")
    print(f"{len(files)} record(s), {bad} invalid")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
