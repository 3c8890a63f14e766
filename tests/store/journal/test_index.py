"""The directory: what it finds, counts and forgets."""

from __future__ import annotations

import random

import pytest

from sglang_cached_addon.store.journal.extents import PENDING, Extent, Head, Place
from sglang_cached_addon.store.journal.index import Index

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
RAW = b"r" * 16


def head(
    key: bytes,
    at: float = 1.0,
    samples: int = 1,
    *,
    slot: int = 0,
    raw: bytes = b"",
    dialect: str = "chat",
) -> Head:
    return Head(key, raw, slot, dialect, at, samples)


def places(index: Index, key: bytes) -> list[Place]:
    return [extent.place for extent in index.extents(key)]


def facts(index: Index) -> tuple[int, int, int, dict[str, int]]:
    return len(index), index.samples, index.bytes, dict(index.by_dialect)


def test_against_a_list() -> None:
    """Whatever the order of events, the index says what a plain list of slots says."""
    numbers = random.Random(3)
    index, at = Index(), 0
    model: dict[int, tuple[int, int]] = {}
    stored: dict[int, float] = {}
    for n in range(3000):
        slot, count = numbers.randrange(12), numbers.randrange(4)
        if count == 0 and numbers.random() < 0.8:
            continue
        stored[at] = float(n % 7)
        index.add(head(A, stored[at], count, slot=slot), Place(at, n + 1))
        model |= {slot + i: (at, i) for i in range(count)} if count else {}
        if not count:
            model.clear()
        at += n + 1
        if n % 50 == 49:
            index.expire(A, 3.0, 9.0)
            model = {s: one for s, one in model.items() if stored[one[0]] >= 3.0}
        seen = {
            extent.slot + i: (extent.place.offset, extent.skip + i)
            for extent in index.extents(A)
            for i in range(extent.samples)
        }
        assert seen == model
        weight = sum(place.length for place in set(places(index, A)))
        assert facts(index) == (
            bool(model),
            len(model),
            weight,
            {"chat": len(model)} if model else {},
        )
        assert (index.count(A), index.weight(A)) == (len(model), weight)
        assert index.end(A) == max(model, default=-1) + 1


def test_waiting() -> None:
    """A line that waited is found at the place that it came to."""
    index = Index()
    first, second = Place(PENDING + 1, 10), Place(PENDING + 2, 20)
    index.add(head(A, samples=3), first)
    index.add(head(A, slot=1), second)
    index.put(A, second, 500)
    index.put(A, Place(PENDING + 3, 20), 900)
    index.put(B, first, 900)
    assert places(index, A) == [first, (500, 20), first]
    index.put(A, first, 400)
    assert places(index, A) == [(400, 10), (500, 20), (400, 10)]


def test_moved() -> None:
    """Samples that went to another file are found there, and are counted as before."""
    index = Index()
    index.add(head(A, 1.0, 5, raw=RAW), Place(0, 100))
    index.add(head(A, 2.0, 1, slot=1), Place(100, 10))
    index.add(head(B), Place(110, 10))
    index.move(A, 100, 1, 1, Place(500, 10))
    index.move(A, 0, 0, 1, Place(600, 30))  # in two lines, without what was replaced
    index.move(A, 0, 2, 3, Place(630, 60))
    index.move(B, 0, 0, 9, Place(900, 10))
    index.move(C, 0, 0, 9, Place(900, 10))
    assert index.extents(A) == [
        Extent(Place(600, 30), 1.0, 0, 0, 1),
        Extent(Place(500, 10), 2.0, 0, 1, 1),
        Extent(Place(630, 60), 1.0, 0, 2, 3),
    ]
    assert index.extents_of(A, Place(630, 60)) == [Extent(Place(630, 60), 1.0, 0, 2, 3)]
    assert facts(index) == (2, 6, 110, {"chat": 6})
    index.add(head(A, 3.0, 2, slot=3), Place(700, 20))
    index.move(A, 630, 2, 3, Place(800, 60))
    assert [extent.place.offset for extent in index.extents(A)] == [600, 500, 800, 700]
    assert index.find(RAW) == A


def test_forgetting() -> None:
    """Sums and names go with the entries."""
    index = Index()
    for n, key in enumerate((A, A, B, C)):
        raw = key[:15] + b"%d" % n
        index.add(head(key, float(n), n + 1, slot=10 * n, raw=raw), Place(n * 10, 10))
    index.lose(A, Place(0, 10))
    index.lose(A, Place(777, 10))
    assert (places(index, A), index.samples) == ([(10, 10)], 9)
    index.expire(A, 1.0, 9.0)
    assert A in index
    assert index.is_within(A, 1.0, 9.0)
    assert not index.is_within(A, 1.5, 9.0)
    index.expire(A, 1.5, 9.0)
    index.expire(C, 1.0, -9.0)  # a clock that was set back
    index.remove(C)
    assert (C in index, index.extents(C), index.count(C), index.end(C)) == (False, [], 0, 0)
    assert index.by_model() == {(b"b" * 8).hex(): 3}
    assert facts(index) == (1, 3, 10, {"chat": 3})
    assert [index.find(key[:15] + b"%d" % n) for n, key in enumerate((A, A, B, C))] == [
        None, None, B, None,
    ]  # fmt: skip
    index.lose(B, Place(20, 10))
    assert facts(index) == (0, 0, 0, {})


def test_kept() -> None:
    """An index that was dumped and loaded is the same: entries, names and sums."""
    numbers = random.Random(1)
    index = Index()
    keys = [numbers.randbytes(32) for _ in range(300)]
    raws = []
    for n in range(1000):
        raw = numbers.randbytes(16) if n % 3 else b""
        key, dialect = numbers.choice(keys), numbers.choice(["chat", "générate", ""])
        raws.append(raw)
        one = head(key, float(n), 1 + n % 3, slot=n % 9, raw=raw, dialect=dialect)
        index.add(one, Place(n << 32, n))
    again = Index.load(b"".join(index.dump()))
    assert again.by_model() == index.by_model()
    assert {key: again.extents(key) for key in keys} == {key: index.extents(key) for key in keys}
    assert facts(again) == facts(index)
    assert [again.find(raw) for raw in raws] == [index.find(raw) for raw in raws]
    assert [len(held) for held in again.clear()] == [
        len(index),
        sum(map(bool, map(index.find, raws))),
    ]
    assert facts(again) == (0, 0, 0, {})
    assert facts(Index.load(b"".join(Index().dump()))) == (0, 0, 0, {})


def test_nothing_of_ours() -> None:
    """Bytes that are no index are not taken for an empty one."""
    for data in (b"", b"{}\n", b"x\n", b'{"entries":2}\n' + b"1" * 100):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Index.load(data)
