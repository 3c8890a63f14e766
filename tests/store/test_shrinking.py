"""Keeping a folder within its limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.limits import NO_LIMITS, Limits
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.shrinking import Shrinking


def key_of(number: int) -> bytes:
    return b"%032d" % number


@contextmanager
def shrinking(folder: Path, limits: Limits, ages: list[float]) -> Iterator[Shrinking]:
    """A folder with an entry of each age, of which the even ones are in memory, too."""
    memory, now = MemoryStore(), time.time()
    with closing(Journal(folder)) as journal:
        journal.load()
        for number, age in enumerate(ages):
            line = Addition(key_of(number), "chat", b"{}", [Sample(b"{}", now - age, 0.0, 1)])
            journal.append(line)
            if number % 2 == 0:
                memory.append(line)
        yield Shrinking(memory, journal, limits)
        numbers = range(0, len(ages), 2)
        assert [key_of(n) in journal.index for n in numbers] == [
            key_of(n) in memory for n in numbers
        ]


def test_no_limits(tmp_path: Path) -> None:
    """Without limits nothing goes."""
    with shrinking(tmp_path, NO_LIMITS, [1e6] * 4) as one:
        assert not (one.expire(key_of(0)) or one.expire_some() or one.limit(print))


def test_ages(tmp_path: Path) -> None:
    """What is too old goes, when it is asked for or when its turn comes."""
    with shrinking(tmp_path, Limits(ttl=100), [5, 500, 500, 5, 500]) as one:
        assert not one.expire(key_of(0)) and not one.expire(key_of(3))
        assert one.expire(key_of(1)) and one.expire(key_of(2))
        assert not one.expire(key_of(1))
        assert one.expire_some()


def test_too_many(tmp_path: Path) -> None:
    """If there is too much, what is not in memory goes first, the longest unused before others; no
    more at once than is said."""
    gone: list[bytes] = []
    memory = MemoryStore()
    with closing(Journal(tmp_path)) as journal:
        journal.load()
        for number in range(5):
            line = Addition(key_of(number), "chat", b"{}", [Sample(b"{}", 1.0, 0.0, 1)])
            journal.append(line)
            if number % 2 == 0:
                memory.append(line)
        one = Shrinking(memory, journal, Limits(entries=2))

        def remove(key: bytes) -> None:
            gone.append(key)
            journal.remove(key)

        assert one.limit(remove, 1) and gone == [key_of(1)]
        assert one.limit(remove, inf) and gone == [key_of(number) for number in (1, 3, 0)]
        assert not one.limit(remove)
        assert list(journal.index) == list(memory) == [key_of(2), key_of(4)]
