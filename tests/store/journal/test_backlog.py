"""How much waits for the disk."""

from __future__ import annotations

import pytest

from sglang_cached_addon.store.journal import backlog
from sglang_cached_addon.store.journal.backlog import Backlog
from sglang_cached_addon.store.journal.extents import Head
from sglang_cached_addon.store.journal.waiting import Waiting


def test_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller waits while much waits for a disk that works, and goes on when less does, when the
    disk refuses, or at the end."""
    monkeypatch.setattr(backlog, "ROOM", 10)
    monkeypatch.setattr(backlog, "MAX_PENDING", 30)
    waiting = Waiting()
    room = Backlog(waiting)
    assert room.wait() is None
    waiting.add(Head(b"k" * 32, b"", 0, "chat", 1.0, 1), b"x" * 20)
    assert room.fits(10) and not room.fits(11)
    first, second = room.wait(), room.wait()
    assert first and second
    second.cancel()
    room.settle()
    assert not first.done()
    room.refused(OSError(28, "No space left on device"))
    assert (room.wait(), room.errors) == (None, 1)
    room.settle()
    assert first.result(0) is None
    assert not room.taken()
    last = room.wait()
    room.is_closing = True
    room.settle()
    assert last and last.result(0) is None
    assert room.wait() is None


def test_what_is_dropped() -> None:
    """What is dropped is counted, and the first and the last of it can be told."""
    room = Backlog(Waiting())
    assert [room.drop(2), room.drop(1)] == [True, False]
    assert [room.taken(), room.taken()] == [True, False]
    assert room.drop(1)
    assert room.dropped == 4
