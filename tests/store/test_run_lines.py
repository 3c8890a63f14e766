"""The lines in which places of runs are written."""

from __future__ import annotations

import json
from pathlib import Path

from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store import run_lines


def test_lines(tmp_path: Path) -> None:
    """What was noted of a run is one line, in which the last word on each place stands; what was
    said in between counts in its order. Runs that are read have what was written."""
    a, b, path = Run("a", 1.0, 5.0), Run("b", 1.0, 6.0), tmp_path / "runs"
    notes: list[run_lines.Note | bytes] = [
        (a, [1], [range(3)], True), (b, [1], [[0]], True),
        (a, [2, 2], [[4], [7]], True), (a, [1], [[1]], False),
    ]  # fmt: skip
    found = list(run_lines.lines(notes))
    one, two = "000000000000001", "000000000000002"
    assert [(said["run"], said["taken"], said.get("free")) for said in map(json.loads, found)] == [
        ("a", {one: "0+2", two: "4+7"}, {one: "1"}),
        ("b", {one: "0"}, None),
    ]
    path.write_bytes(b"".join(found))
    assert {name: dict(run.places) for name, run in run_lines.read(path).items()} == {
        "a": {1: [0, 2], 2: [4, 7]}, "b": {1: [0]},
    }  # fmt: skip
    again = [run_lines.line("a", deleted=True), (a, [1], [[9]], True)]
    path.write_bytes(b"".join(run_lines.lines([*notes, *again])))
    assert dict(run_lines.read(path)["a"].places) == {1: [9]}
