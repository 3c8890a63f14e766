"""What a store in memory is made of."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.pool import Nowhere, Pool


def test_times() -> None:
    """A pool knows when its oldest and its newest sample were stored."""
    pool = Pool("chat", b"{}")
    assert (pool.oldest, pool.newest) == (inf, -inf)
    pool += [Sample(b"{}", at, 0.0, 1) for at in (3.0, 1.0, 2.0)]
    pool.date_with(pool[:1])
    assert (pool.oldest, pool.newest) == (3.0, 3.0)
    pool.date()
    assert (pool.oldest, pool.newest) == (1.0, 3.0)
    assert (pool.dialect, pool.call, pool.names) == ("chat", b"{}", ())


def test_nowhere() -> None:
    """What nobody keeps is not there again."""
    nowhere = Nowhere()
    nowhere.save({"a": 1})
    nowhere.reject("why")
    assert (nowhere.load(), nowhere.is_rejected) == ({}, False)
