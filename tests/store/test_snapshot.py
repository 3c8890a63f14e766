"""The keys of a store that changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from sglang_cached_addon.store import snapshot
from sglang_cached_addon.store.snapshot import keys_of

KEYS = [b"%d" % number for number in range(25)]


class Changing(AbstractContextManager[None]):
    """A lock; each time that it is free, a key comes, as long as some are left to come."""

    def __init__(self, entries: dict[bytes, int], coming: list[bytes]) -> None:
        self.entries, self.coming = entries, coming

    def __exit__(self, *args: object) -> None:
        if self.coming:
            self.entries[self.coming.pop()] = 1


def test_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys are there once, in their order, however often some come meanwhile."""
    monkeypatch.setattr(snapshot, "PIECE", 10)
    for count in (0, 1, 3, 7, 1000):
        entries = dict.fromkeys(KEYS, 1)
        lock = Changing(entries, [b"new %d" % number for number in range(count)])
        before = list(entries)
        found = keys_of(lambda entries=entries: iter(entries), lock)  # type: ignore[misc]
        assert found[: len(before)] == before
        assert len(set(found)) == len(found) <= len(entries)
    assert keys_of(lambda: iter({}), threading.Lock()) == []


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nothing comes or goes, no more than a few are taken at a time."""
    monkeypatch.setattr(snapshot, "PIECE", 10)
    taken: list[int] = []

    class Counting(AbstractContextManager[None]):
        def __enter__(self) -> None:
            taken.append(0)

        def __exit__(self, *args: object) -> None:
            """It is free again."""

    def each() -> Iterator[bytes]:
        for key in KEYS:
            taken[-1] += 1
            yield key

    assert keys_of(each, Counting()) == KEYS
    assert max(taken) == 10
