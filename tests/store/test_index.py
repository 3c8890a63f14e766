"""The directory: what it finds, counts and forgets."""

from __future__ import annotations

import random

import pytest

from sglang_cached_addon.store.index import PENDING, Head, Index, Place

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
RAW = b"r" * 16


def head(
    key: bytes,
    at: float = 1.0,
    samples: int = 1,
    *,
    raw: bytes = b"",
    since: float | None = None,
    dialect: str = "chat",
) -> Head:
    return Head(key, raw, since, dialect, at, samples)


def facts(index: Index) -> tuple[int, int, int, dict[str, int]]:
    return len(index), index.samples, index.bytes, dict(index.by_dialect)


def test_places() -> None:
    """A pool would lack what a later line brought, or have it in another order."""
    index = Index()
    index.add(head(A, samples=2), Place(0, 100))
    index.add(head(B, dialect="generate"), Place(100, 50))
    index.add(head(A), Place(150, 10))
    assert index.places(A) == [(0, 100), (150, 10)]
    assert index.places(C) == []
    assert (A in index, C in index) == (True, False)
    assert index.has(A, Place(150, 10))
    assert not index.has(A, Place(150, 11))
    assert facts(index) == (2, 4, 160, {"chat": 3, "generate": 1})
    assert index.by_model() == {(b"a" * 8).hex(): 3, (b"b" * 8).hex(): 1}


def test_since() -> None:
    """What was replaced would be back, or be counted."""
    index = Index()
    index.add(head(A, 1.0, 2, raw=RAW), Place(0, 100))
    index.add(head(A, 2.0), Place(100, 10))
    index.add(head(A, 3.0, since=1.0), Place(110, 10))
    assert index.places(A) == [(0, 100), (100, 10), (110, 10)]
    index.add(head(A, 4.0, since=2.5), Place(120, 10))
    assert index.places(A) == [(110, 10), (120, 10)]
    assert index.find(RAW) == A, "the name of a body is that of the key"
    assert (index.oldest(A), index.newest(A)) == (3.0, 4.0)
    index.add(head(A, 0.0, 0, since=9.0), Place(130, 10))
    assert facts(index) == (0, 0, 0, {})
    assert index.find(RAW) is None


def test_waiting() -> None:
    """A line would be looked for where it is not, or not be found where it came to be."""
    index = Index()
    first, second = Place(PENDING + 1, 10), Place(PENDING + 2, 20)
    index.add(head(A), first)
    index.add(head(A), second)
    assert index.is_pending(A)
    index.put(A, second, 500)
    index.put(A, Place(PENDING + 3, 20), 900)
    index.put(B, first, 900)
    assert index.places(A) == [first, (500, 20)]
    index.put(A, first, 400)
    assert index.places(A) == [(400, 10), (500, 20)]
    assert not index.is_pending(A)


def test_forgetting() -> None:
    """Counts would drift with each entry that goes."""
    index = Index()
    for n, key in enumerate((A, A, B, C)):
        index.add(head(key, float(n), n + 1, raw=key[:15] + b"%d" % n), Place(n * 10, 10))
    index.lose(A, Place(0, 10))
    index.lose(A, Place(777, 10))
    assert (index.places(A), index.samples) == ([(10, 10)], 9)
    index.expire(A, 1.0)
    assert A in index
    index.expire(A, 1.5)
    index.expire(C, 9.0)
    index.remove(C)
    assert facts(index) == (1, 3, 10, {"chat": 3})
    assert [index.find(key[:15] + b"%d" % n) for n, key in enumerate((A, A, B, C))] == [
        None, None, B, None,
    ]  # fmt: skip
    index.lose(B, Place(20, 10))
    assert facts(index) == (0, 0, 0, {})


def test_order() -> None:
    """What is used would go first."""
    index = Index()
    for key in (A, B, C):
        index.add(head(key), Place(0, 1))
    index.touch(A)
    index.touch(b"?" * 32)
    assert list(index) == [B, C, A]
    index.add(head(B), Place(0, 1))
    assert list(index) == [C, A, B]


@pytest.mark.parametrize(("which", "left"), [(None, ""), ("a", "bc"), ("bc", "a")])
def test_clear(which: str | None, left: str) -> None:
    """Too little would go, or too much."""
    index = Index()
    for key in (A, B, C):
        index.add(head(key, raw=key[:16]), Place(0, 1))
    index.clear(None if which is None else lambda key: chr(key[0]) in which)
    assert "".join(chr(key[0]) for key in index) == left
    assert [index.find(key[:16]) for key in (A, B, C)] == [
        key if chr(key[0]) in left else None for key in (A, B, C)
    ]
    assert index.samples == index.bytes == len(left)


def test_kept() -> None:
    """A restart would lose entries, names or counts."""
    numbers = random.Random(1)
    index = Index()
    keys = [numbers.randbytes(32) for _ in range(300)]
    for n in range(1000):
        raw = numbers.randbytes(16) if n % 3 else b""
        key, dialect = numbers.choice(keys), numbers.choice(["chat", "générate", ""])
        index.add(head(key, float(n), 1 + n % 3, raw=raw, dialect=dialect), Place(n << 32, n))
    copy = index.copy()
    dump = b"".join(index.dump())
    copy.remove(keys[0])
    assert b"".join(index.dump()) == dump
    again = Index.load(b"".join(index.copy().dump()))
    assert {key: again.places(key) for key in keys} == {key: index.places(key) for key in keys}
    assert facts(again) == facts(index)
    assert again._names == index._names
    again.clear(lambda key: True)
    assert facts(again) == (0, 0, 0, {})
    assert facts(Index.load(b"".join(Index().dump()))) == (0, 0, 0, {})


@pytest.mark.parametrize("data", [b"", b"{}\n", b"x\n", b'{"entries":2}\n' + b"1" * 100])
def test_nothing_of_ours(data: bytes) -> None:
    """It would be taken for an empty cache."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        Index.load(data)
