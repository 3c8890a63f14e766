"""What people have removed of a store."""

from __future__ import annotations

from itertools import pairwise

from sglang_cached_addon.store import removals
from sglang_cached_addon.store.removals import Removals

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def test_numbers() -> None:
    """The number of a pool rises when it is removed, alone or with all, and else stays."""
    known = Removals()
    before = {key: known.of([key]) for key in (A, B)}
    known.note(A)
    assert known.of([A]) > before[A] and known.of([B]) == before[B]
    assert known.of([A, B]) == known.of([A]) > known.of([B, C])
    both = known.of([A, B])
    known.note_all()
    assert known.of([B]) > before[B] and known.of([A, B]) > both
    counts = [known.count]
    known.note(A)
    counts.append(known.count)
    assert all(a < b for a, b in pairwise([0, *counts]))


def test_many() -> None:
    """However many pools are removed, the number of each is higher than before."""
    known = Removals()
    before = known.of([A])
    known.note(A)
    after = known.of([A])
    for number in range(removals.MOST + 1):
        known.note(b"%032d" % number)
    assert known.of([A]) >= after > before
    assert known.of([b"%032d" % 0]) > before
