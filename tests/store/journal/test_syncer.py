from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cached_addon.store.journal.syncer import Syncer
from tests.conftest import until


class Disk:
    """Notes which files are synced, and what size they have then."""

    def __init__(self) -> None:
        self.synced: list[tuple[int, int]] = []
        self.failures = 0

    def fsync(self, handle: int) -> None:
        found = os.fstat(handle)
        self.synced.append((found.st_ino, found.st_size))
        if self.failures:
            self.failures -= 1
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.fixture
def handles(tmp_path: Path) -> Iterator[list[int]]:
    """Of two empty files."""
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in "ab"]
    yield files
    for file in files:
        os.close(file)


def test_replaced(disk: Disk, handles: list[int], tmp_path: Path) -> None:
    """Of two files, the one that was noted last is synced."""
    a, b = handles
    one = Syncer(tmp_path, 0.05)
    one.note(a)
    one.note(b)
    until(lambda: bool(disk.synced))
    one.close()
    assert disk.synced == [(os.fstat(b).st_ino, 0)]


def test_close(handles: list[int], tmp_path: Path) -> None:
    """A syncer ends at once, and leaves no file or thread."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    one = Syncer(tmp_path, 600)
    for handle in (*handles, *handles):
        one.note(handle)
    one.close()
    one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert threading.active_count() == threads
