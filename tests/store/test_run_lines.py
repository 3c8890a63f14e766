"""The lines in which places of runs are written."""

from __future__ import annotations

import json
from pathlib import Path

from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store import run_lines


def test_lines(tmp_path: Path) -> None:
    """A line has all that a run has of some pools, and the last one counts."""
    run, path = Run("a", 1.0, 5.0), tmp_path / "runs"
    for place in (0, 1, 2, 5):
        run.places.take(1, place)
    run.places.take(2, 0)
    first = run_lines.taken(run, [1, 2, 3])
    spans = {f"{1:015x}": "0-2+5", f"{2:015x}": "0", f"{3:015x}": ""}
    assert json.loads(first) | {"sum": ""} == {
        "v": 4, "run": "a", "at": 5.0, "taken": spans, "sum": "",
    }  # fmt: skip
    run.places.give_back(1, 1)
    run.places.give_back(2, 0)
    path.write_bytes(first + run_lines.taken(run, [1, 2]))
    (read,) = run_lines.read(path).values()
    assert {pool: list(read.places[pool]) for pool in read.places} == {1: [0, 2, 5]}
    assert read.places.count == 3
    path.write_bytes(first + run_lines.line("a", deleted=True) + run_lines.taken(run, [3]))
    assert list(run_lines.read(path)["a"].places) == []
