"""When what is written is made to outlive a power cut."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.verify import examine
from tests.conftest import until
from tests.store.journal.opened import A, fail, line, numbers


def test_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is synced as `fsync` says, though no more comes, and always at the end."""
    sizes: list[int] = []
    real = os.fsync

    def note(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr("sglang_cached_addon.store.journal.syncer.SYNC_SECONDS", 0.1)
    for fsync in Fsync:
        path = tmp_path / fsync / "cache.jsonl"
        journal = Journal(path.parent, fsync)
        journal.load()
        sizes.clear()
        for n in range(3):
            before = path.stat().st_size
            journal.append(Addition(A, "chat", b"", line(A, b'{"x":%d}' % n)[2]), n)
            until(lambda journal=journal: journal.pending == 0)
            size = path.stat().st_size
            assert size > before
            if fsync is not Fsync.NEVER:
                until(lambda size=size: size in sizes)
        assert bool(sizes) is (fsync is not Fsync.NEVER), fsync
        journal.close()
        assert sizes[-1] == path.stat().st_size, fsync


def test_sync_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sync that fails is tried again, stops no line, and is logged once."""
    attempts: list[int] = []

    def fail_again(handle: int) -> None:
        attempts.append(handle)
        fail()

    for fsync in (Fsync.ALWAYS, Fsync.INTERVAL):
        attempts.clear()
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr("sglang_cached_addon.store.journal.syncer.SYNC_SECONDS", 0.05)
            patch.setattr(os, "fsync", fail_again)
            journal = Journal(tmp_path / fsync, fsync)
            journal.load()
            for n in range(3):
                journal.append(Addition(A, "chat", b"", line(A, b'{"x":%d}' % n)[2]), n)
                until(lambda journal=journal: journal.pending == 0)
            until(lambda: len(attempts) > 2)
            assert len(caplog.records) == 1, fsync
        journal.close()
        assert numbers(tmp_path / fsync) == [0, 1, 2], fsync


def test_sync_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow sync holds up no line."""
    begun, ended = threading.Event(), threading.Event()

    def take_long(handle: int) -> None:
        begun.set()
        ended.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr("sglang_cached_addon.store.journal.syncer.SYNC_SECONDS", 0.0)
        patch.setattr(os, "fsync", take_long)
        journal = Journal(tmp_path)
        journal.load()
        journal.append(Addition(A, "chat", b"", line(A, b'{"x":0}')[2]))
        assert begun.wait(60)
        journal.append(Addition(A, "chat", b"", line(A, b'{"x":1}')[2]), 1)
        until(lambda: journal.pending == 0)
        assert not ended.is_set()
        assert examine(tmp_path / "cache.jsonl", lambda number, why: None).samples == 2
        ended.set()
        journal.close()
