from __future__ import annotations

from sglang_cached_addon.store.totals import Totals

A, B = b"a" * 32, b"b" * 32


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
