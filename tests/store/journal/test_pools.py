"""Reading pools whose lines are in the file, or wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.journal.opened import SEALED, A, B, C, Held, line, opened, write


def test_where_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that wait are read as those of the file are, in the order of the pool."""
    write(tmp_path, line(A, b'{"x":1}', b'{"x":2}'), line(B, b"{}"))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        journal.append(line(A, b'{"x":3}'))
        found = journal.journal.read(A, waits=True) or []
        assert [one.answer for one in found] == [b'{"x":%d}' % n for n in (1, 2, 3)]
        places = [(extent.samples, data) for extent, data in journal.journal.lines(A)]
        assert [count for count, _ in places] == [2, 1]
        assert all(A.hex().encode() in data for _, data in places)
        held.release()


def test_broken_line_that_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line whose sum is right but that says nothing sensible is forgotten once it is read."""
    good = write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    for name, bad in SEALED.items():
        caplog.clear()
        path.write_bytes(good + bad + b"\n")
        with opened(tmp_path) as journal:
            for _ in range(2):
                assert journal.journal.read(C, waits=True) == [], name
            assert list(journal.journal.index) == [A], name
        (record,) = caplog.records
        assert f"{path}: the line at byte {len(good)} is not used" in record.getMessage(), name
