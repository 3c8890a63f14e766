"""What a store in memory is made of."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.pool import Nowhere, Pool


def test_times() -> None:
    """A pool knows when its oldest and its newest sample were stored."""
    pool = Pool("chat", b"{}")
    assert (pool.oldest, pool.newest) == (inf, -inf)
    three, one, two, four = (Sample(b"{}", at, 0.0, 1) for at in (3.0, 1.0, 2.0, 4.0))
    assert pool.put([three], [0]) == []
    assert (pool.oldest, pool.newest) == (3.0, 3.0)
    assert pool.put([one, two], [1, 2]) == []
    assert (pool.oldest, pool.newest) == (1.0, 3.0)
    assert pool.put([four, one], [0, 3]) == [three]
    assert (pool, pool.oldest, pool.newest) == ([four, one, two, one], 1.0, 4.0)
    assert pool.expire(1.0, 9.0) == []
    assert pool.expire(2.0, 9.0) == [one, one]
    assert (pool, pool.oldest, pool.newest) == ([four, two], 2.0, 4.0)
    assert (pool.dialect, pool.call, pool.names) == ("chat", b"{}", ())


def test_nowhere() -> None:
    """What nobody keeps is not there again."""
    nowhere = Nowhere()
    nowhere.save({"a": 1})
    nowhere.reject("why")
    assert (nowhere.load(), nowhere.is_rejected) == ({}, False)
