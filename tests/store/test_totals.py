from __future__ import annotations

from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.store.totals import Totals

A, B = b"a" * 32, b"b" * 32


class Held(Totals):
    """Sums of two keys."""

    def __len__(self) -> int:
        return 2


def test_families() -> None:
    """What is kept of families is no answer, and is known of a kept index, too."""
    totals = Held()
    totals.tally(A, "chat", 2, 100)
    totals.tally(B, FAMILY, 1, 10)
    totals.tally(B, FAMILY, 1, 10)
    copy = Held()
    copy.take_json(totals.as_json())
    for one in (totals, copy):
        assert (one.entries, one.samples, one.bytes) == (1, 2, 120)
        assert one.by_dialect == {"chat": 2}
        one.tally(B, FAMILY, -2, -20)
        assert (one.entries, one.bytes) == (2, 100)
    former = totals.as_json()
    del former["families"]
    copy.take_json(former)
    assert copy.entries == 2


def test_totals() -> None:
    """Sums are kept by API and by model, and what has gone to nothing is not listed."""
    totals = Totals()
    totals.tally(A, "chat", 2, 100)
    totals.tally(B, "generate", 3, 10)
    totals.tally(B, "chat", 1, 1)
    assert (totals.samples, totals.bytes) == (6, 111)
    assert totals.by_dialect == {"chat": 3, "generate": 3}
    assert totals.by_model() == {(b"a" * 8).hex(): 2, (b"b" * 8).hex(): 4}
    copy = Totals()
    copy.take_json(totals.as_json())
    assert copy.as_json() == totals.as_json()
    assert copy.by_model() == totals.by_model()
    totals.tally(B, "generate", -3, -10)
    totals.tally(B, "chat", -1, -1)
    assert list(totals.by_dialect.items()) == [("chat", 2)]
    assert totals.by_model() == {(b"a" * 8).hex(): 2}
    totals.empty()
    assert (totals.samples, totals.bytes, totals.by_dialect, totals.by_model()) == (0, 0, {}, {})
