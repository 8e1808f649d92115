"""The records that are kept, and what they cover. Needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import measured_families
from build_support.build_info import ROOT
from build_support.families import family_hashes, family_parts
from fastcnn.bench.measured import CHECKED_ONLY

RESULTS = ROOT / "benchmarks" / "results"
SCHEMA_FILE = ROOT / "benchmarks" / "record.schema.json"
FIXTURE = "FIXTURE"  # in the GPU's name of a record that the tests made up


def load_records(results: Path = RESULTS) -> list[dict]:
    """The records of a folder, oldest first."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    return sorted(records, key=lambda record: record["date"])


def is_fixture(record: Mapping) -> bool:
    """Whether a record is made up for tests, and so must never be shown as a result."""
    return FIXTURE in (record["machine"]["gpu"] or "").upper()


@dataclass(frozen=True)
class Pending:
    """A kernel family whose present sources lack a passing check, a measurement, or both."""

    family: str
    checked: bool
    measured: bool

    def __str__(self) -> str:
        lacks = [
            word for word, there in (("checked", self.checked), ("measured", self.measured)) if not there
        ]
        return f"{self.family}: not {' and not '.join(lacks)} on these sources"


def pending(records: Sequence[Mapping], csrc: Path = ROOT / "csrc") -> list[Pending]:
    """What the present sources of csrc have no record of: unchecked families first.

    A family is checked where a passing record of a check has the hash of its sources, and measured where a
    record with that hash has times of a layer that the planner gave to it. One that is wholly a part of a
    measured family counts as measured.
    """
    hashes, parts = family_hashes(csrc), family_parts(csrc)
    checked = {
        family
        for record in records
        if record["kind"] == "check" and record["ok"]
        for family, digest in record["sources"].items()
        if hashes.get(family) == digest
    }
    measured = {
        family
        for record in records
        for case in record["cases"]
        for family in measured_families(case)
        if family in hashes and hashes[family] == record["sources"].get(family)
    }
    measured |= {part for family in measured for part in parts[family]}
    found = [Pending(f, f in checked, f in measured or f in CHECKED_ONLY) for f in hashes]
    return sorted((p for p in found if not (p.checked and p.measured)), key=lambda p: (p.checked, p.measured))
