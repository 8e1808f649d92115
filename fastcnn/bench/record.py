"""Records of what was measured, where, and on which sources: written as a run goes, whole at every moment.

The format (schema version 1) is described in benchmarks/results/README.md and in
benchmarks/record.schema.json; `python -m benchmarks.validate` holds records to it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fastcnn._atomic import write_text_atomically
from fastcnn.bench import machine as _machine
from fastcnn.testing.clocks import read_clocks

SCHEMA = 1
OURS = "fastcnn"  # our own name among a case's contenders
SAVE_EVERY_SECONDS = 2.0


class Record:
    """A run's record, made by `new_record`. Cases and steps are kept as JSON text from when they are added.

    Attributes:
        content: everything but cases and steps, to be read and, until `finish`, set.
        path: where the record saves itself as it grows, or None.
    """

    def __init__(
        self, content: dict, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.content = content
        self.path = path
        self._clock = clock
        self._start = self._saved = clock()
        self._cases: dict[str, str] = {}
        self._steps: dict[str, str] = {}
        self._wrong = False
        if path is not None:
            self.save()

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def cases(self) -> list[dict]:
        """The cases so far, as they will be read."""
        return [json.loads(line) for line in self._cases.values()]

    @property
    def steps(self) -> list[dict]:
        """The steps so far, as they will be read."""
        return [json.loads(line) for line in self._steps.values()]

    def add(self, case: Mapping) -> None:
        """Adds a measured case, in place of an earlier one of the same "id".

        The record saves itself when it has a path and was last saved a while ago. Numbers that are not
        finite become null: JSON has none.
        """
        self._cases[case["id"]] = _line(case)
        self._wrong = self._wrong or bool(case.get("wrong"))
        if self.path is not None and self._clock() - self._saved >= SAVE_EVERY_SECONDS:
            self.save()

    def add_step(self, step: Mapping) -> None:
        """Adds a step of a check (in place of an earlier one of the same "name") and saves."""
        self._steps[step["name"]] = _line(step)
        if self.path is not None:
            self.save()

    def update(self, **fields: object) -> None:
        """Sets fields of `content` ("ceilings", "protocol", ...) and saves."""
        self.content.update(fields)
        if self.path is not None:
            self.save()

    def finish(self, ok: bool | None = None) -> None:
        """Marks the record complete and saves. `ok` is, unless given, whether no case was wrong."""
        clocks = {**self.content["clocks"], "end": read_clocks()}
        self.content.update(complete=True, ok=not self._wrong if ok is None else ok, clocks=clocks)
        if self.path is not None:
            self.save()

    def text(self) -> str:
        """The record as JSON, one case and one step per line."""
        self.content["seconds"] = round(self._clock() - self._start, 3)
        fields = [f'"{key}": {json.dumps(value, indent=1)}' for key, value in _finite(self.content).items()]
        for key, lines in (("steps", self._steps), ("cases", self._cases)):
            listed = ",\n  ".join(lines.values())
            fields.append(f'"{key}": [\n  {listed}\n ]' if lines else f'"{key}": []')
        return "{\n " + ",\n ".join(fields) + "\n}\n"

    def save(self, path: str | Path | None = None) -> Path:
        """Writes the record to `path` (default: its own), which holds the old or the new one, never half.

        Raises:
            ValueError: neither a path was given nor has the record one.
        """
        path = Path(path) if path is not None else self.path
        if path is None:
            raise ValueError("Record.save(): the record has no path of its own, so one is to be given")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, self.text())
        self._saved = self._clock()
        return path


def new_record(
    kind: str,
    *,
    path: str | Path | None = None,
    protocol: Mapping | None = None,
    ceilings: Mapping | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Record:
    """Begins a record with all that is known of this machine, library and commit.

    Args:
        kind: "benchmark" or "check".
        path: where the record is to save itself as it grows; it is written at once.
        protocol: how times are taken (rounds, warm-up, TF32 and the like): any JSON.
        ceilings: {"copy_bytes_per_second": ..., "flops_per_second": {dtype: ...}}, as measured in the run.
        clock: a monotonic clock in seconds.

    Returns:
        A `Record`. Until `finish` it says "complete": false, "ok": false.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("benchmark", "check"):
        raise ValueError(f"new_record(): kind must be 'benchmark' or 'check', but is {kind!r}")
    content = {
        "schema": SCHEMA,
        "kind": kind,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": 0.0,
        "complete": False,
        "ok": False,
        "machine": _machine.machine(),
        "commit": _machine.commit(),
        "library": _machine.library(),
        "sources": _machine.sources(),
        "clocks": {"start": read_clocks(), "end": None},
        "ceilings": dict(ceilings) if ceilings is not None else None,
        "protocol": dict(protocol or {}),
    }
    return Record(content, Path(path) if path is not None else None, clock)


def families_of(op: str, kernel: str | None = None, sources: Mapping[str, str] | None = None) -> list[str]:
    """The kernel families whose sources a figure of this operation depends on.

    Args:
        op: a case's "op", such as "conv2d_wgrad" or "max_pool2d_backward".
        kernel: the planner's choice ("depthwise_wgrad_nhwc", "pool2d::max_fprop"), several joined by "; ";
            without one, and where no family bears its name, every family of the operation's folder is taken.
        sources: the families to choose from; by default the loaded library's.

    Returns:
        Sorted names; empty where no library of ours is loaded.
    """
    known = _machine.sources() if sources is None else sources
    folder = next((room for room in ("conv2d", "pool2d") if room in op), None)
    if folder is None:
        return sorted(known)
    room = {name.partition("/")[2]: name for name in known if name.startswith(f"{folder}/")}
    found = set()
    for name in (kernel or "").split("; "):
        words = name.rpartition("::")[2]
        named = [stem for stem in room if words == stem or words.startswith(f"{stem}_")]
        found.update([room[max(named, key=len)]] if named else room.values())
    return sorted(found)


def result_name(gpu: str, kind: str, date: str) -> str:
    """The file name of a kept record: "nvidia-h100-80gb-hbm3-check-20260102T030405.json"."""
    words = "".join(letter if letter.isalnum() else " " for letter in f"{gpu} {kind}".lower()).split()
    return f"{'-'.join(words)}-{date.replace('-', '').replace(':', '')[:15]}.json"


def _line(value: Mapping) -> str:
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
