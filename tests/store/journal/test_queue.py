"""What waits for the disk is bounded, and whoever stores much waits for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_cached_addon.store.journal import backlog
from sglang_cached_addon.store.journal.extents import Head
from sglang_cached_addon.store.journal.queue import BATCH, Queue
from sglang_cached_addon.store.journal.reader import FileReader
from tests.store.journal.opened import A, B, C, Held, line, opened, read, write

MAX_PENDING = 1 << 20


def test_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines beyond the limit are not kept, in memory or on disk, which the log says once; the
    others keep their order."""
    monkeypatch.setattr(backlog, "MAX_PENDING", MAX_PENDING)
    write(tmp_path, line(A, b"{}"))
    big = b'{"x":%d,"y":"' + b"y" * (MAX_PENDING // 8) + b'"}'
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        kept = [journal.append(line(B, big % n)) for n in range(10)]
        assert kept == [True] * 7 + [False] * 3
        assert journal.journal.dropped == 3
        assert len(caplog.records) == 1
        assert journal.journal.lag > 0
        held.release()
        journal.settle()
        assert journal.journal.lag == 0
        assert journal.append(line(B, b'{"x":10}'))
        journal.settle()
        assert len(caplog.records) == 2
        assert journal.journal.dropped == 3
    found = [json.loads(s.answer)["x"] for _, _, samples in read(tmp_path)[1:] for s in samples]
    assert found == [*range(7), 10]


def test_clear_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cleared does not wait any more."""
    monkeypatch.setattr(backlog, "MAX_PENDING", MAX_PENDING)
    write(tmp_path, line(A, b"{}"))
    big = b'{"x":"' + b"x" * (MAX_PENDING // 2) + b'"}'
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        assert [journal.append(line(A, big)) for _ in range(2)] == [True, False]
        done = journal.journal.clear()
        assert journal.append(line(B, big)), "there is room again"
        held.release()
        done.result(60)
        journal.settle()
    assert [(key, len(samples)) for key, _, samples in read(tmp_path)] == [(B, 1)]


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller waits for room while the disk has much to take, and for nothing once it is
    closed."""
    monkeypatch.setattr(backlog, "ROOM", 1000)
    big = line(A, b'{"x":"' + b"x" * 1000 + b'"}')
    with opened(tmp_path) as journal:
        assert journal.journal.room() is None
        held = Held(monkeypatch)
        journal.append(big)
        room = journal.journal.room()
        assert room and not room.done()
        held.release()
        assert room.result(60) is None
        assert journal.journal.room() is None
        last = journal.journal
    assert last.room() is None


def test_cleared_while_it_is_written(tmp_path: Path) -> None:
    """A line that the disk refused waits on unless it was cleared or replaced meanwhile; one that
    removes a pool does, and so do those of others."""
    path = tmp_path / "cache.jsonl"
    path.touch()
    waiting = Queue(path, FileReader(path))
    for key, samples in ((A, 1), (B, 1), (C, 0)):
        assert waiting.add(Head(key, b"", 0, "chat", 1.0, samples), b"line")
    assert [line.head.key for line in waiting.take()] == [A, B, C]
    assert (waiting.count, waiting.size) == (3, 12)
    waiting.index.remove(A)
    waiting.refused(OSError(28, "No space left on device"))
    assert waiting.add(Head(A, b"", 0, "chat", 2.0, 1), b"newer")
    taken = waiting.take()
    assert [line.head.key for line in taken] == [B, C, A]
    assert [line for _, line, _ in waiting.find(A)] == [b"newer"]
    waiting.drop(lambda line: line.head.key == C)
    assert (waiting.count, waiting.size) == (2, 9)
    assert not waiting.written(taken, 100)
    waiting.backlog.settle()
    assert (waiting.count, waiting.size, waiting.index.extents(B)[0].place.offset) == (0, 0, 100)


def test_batches(tmp_path: Path) -> None:
    """Lines are written in their order, not much more than a batch at once; what is left keeps
    the writer at work, but not while the disk refuses."""
    path = tmp_path / "cache.jsonl"
    path.touch()
    waiting = Queue(path, FileReader(path))
    data = b"x" * (BATCH // 2)
    for n in range(5):
        assert waiting.add(Head(A, b"", n, "chat", float(n), 1), data)
    taken = []
    for count, is_behind in ((2, True), (2, False), (1, False)):
        lines = waiting.take()
        taken += [line.head.slot for line in lines]
        assert not waiting.written(lines, 0)
        waiting.backlog.settle()
        assert (len(lines), waiting.is_behind) == (count, is_behind)
    assert taken == [0, 1, 2, 3, 4]
    assert (waiting.count, waiting.size) == (0, 0)
    for n in range(5):
        assert waiting.add(Head(B, b"", n, "chat", float(n), 1), data)
    assert waiting.is_behind
    waiting.take()
    waiting.refused(OSError(28, "No space left on device"))
    assert not waiting.is_behind
    assert [line.head.slot for line in waiting.take()] == [0, 1]
