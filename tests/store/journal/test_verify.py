"""A journal is examined without being opened."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store.journal.verify import Examined, examine
from tests.store.journal.opened import BROKEN, SEALED, A, B, at, changed, line, write


def test_examine(tmp_path: Path) -> None:
    """What counts is counted; each broken line is told with its number, and nothing is changed."""
    good = write(tmp_path, line(A, b'{"x":1}', b'{"x":2}'), at(line(B, b"{}"), 2.0))
    newer = changed(v=FORMAT_VERSION + 1)
    unreadable = [bad for bad in (*BROKEN.values(), *SEALED.values()) if bad != newer]
    data = b"".join(one + b"\n" for one in (*unreadable, newer)) + good + b"torn"
    path = tmp_path / "cache.jsonl"
    path.write_bytes(data)
    told: list[int] = []
    found = examine(path, lambda number, why: told.append(number))
    assert told == list(range(1, len(unreadable) + 1))
    assert found == Examined(
        entries=2, samples=3, bytes=len(data), broken=len(unreadable), others=1, torn=4
    )
    assert path.read_bytes() == data
