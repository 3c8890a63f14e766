"""What a store in memory is made of."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.pool import Nowhere, Pool


def sample(at: float) -> Sample:
    return Sample(b"{}", at, 0.0, 1)


def test_times() -> None:
    """A pool knows when its oldest and its newest sample were stored."""
    pool = Pool("chat", b"{}")
    assert (pool.oldest, pool.newest) == (inf, -inf)
    one, two, three, four = map(sample, (1.0, 2.0, 3.0, 4.0))
    pool, replaced = pool.put([three], [0])
    assert (pool.oldest, pool.newest, replaced) == (3.0, 3.0, [])
    pool, replaced = pool.put([one, two], [1, 2])
    assert (pool.oldest, pool.newest, replaced) == (1.0, 3.0, [])
    pool, replaced = pool.put([four, one], [0, 3])
    assert (list(pool.samples), replaced) == ([four, one, two, one], [three])
    assert (pool.oldest, pool.newest) == (1.0, 4.0)
    assert pool.expire(1.0, 9.0) == (pool, [])
    pool, gone = pool.expire(2.0, 9.0)
    assert (list(pool.samples), gone) == ([four, two], [one, one])
    assert (pool.oldest, pool.newest) == (2.0, 4.0)
    assert (pool.dialect, pool.call, pool.names) == ("chat", b"{}", ())


def test_samples() -> None:
    """The samples of a pool are a sequence like any other."""
    times = [1.0, 2.0, 3.0]
    pool = Pool("chat", b"{}").with_samples(list(map(sample, times)))
    found = pool.samples
    assert list(found) == [sample(at) for at in times] and len(found) == 3
    assert (found[1], found[-1]) == (sample(2.0), sample(3.0))
    assert list(found[1:]) == [sample(2.0), sample(3.0)]
    assert not Pool("chat", b"{}").samples


def test_nowhere() -> None:
    """What nobody keeps is not there again."""
    nowhere = Nowhere()
    nowhere.save({"a": 1})
    nowhere.reject("why")
    assert (nowhere.load(), nowhere.is_rejected) == ({}, False)
