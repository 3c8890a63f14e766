"""The runs that are known."""

from __future__ import annotations

import asyncio
import time
from math import inf

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.service.runs import Runs
from tests.tables import each


def test_forgotten() -> None:
    """A run that is not used for so long is forgotten; one that is, is not."""
    runs, now = Runs(ttl=100.0), time.time()
    old, new = runs.use("old", now - 200), runs.use("new", now - 50)
    assert asyncio.run(runs.shown()) == [new.as_json()]
    assert (runs.get("old"), runs.get("new")) == (None, new)
    assert old.is_over
    assert runs.use("old", now) is not old


def test_changed() -> None:
    """A run is begun anew in its place, and a deleted one is over."""

    async def test() -> None:
        runs = Runs()
        run = runs.use("a", time.time())
        run.places.take(1, 0)
        assert await runs.rewind("a") == await runs.show("a") == run.as_json()
        assert (run.places.count, run.rewinds, run.is_fresh) == (0, 1, False)
        assert await runs.begin("a") == run.as_json()
        assert (run.rewinds, run.is_fresh) == (2, True)
        assert await runs.delete("a") == run.as_json()
        assert run.is_over
        for change in (runs.delete, runs.rewind, runs.show):
            assert await change("a") is None
        begun = await runs.begin("b")
        assert begun
        assert begun["calls"] == 0

    asyncio.run(test())


def test_forgotten_pools() -> None:
    """A pool whose samples are gone is forgotten by all runs that have used it; who has which
    sample is told."""

    async def test() -> None:
        runs, key, other = Runs(), b"k" * 32, b"o" * 32
        for name, places in (("a", (0, 1)), ("b", (1,)), ("c", ())):
            run = runs.use(name, time.time())
            for place in places:
                run.places.take(pool_of(key), place)
        runs.use("c", time.time()).places.take(pool_of(other), 0)
        samples = [Sample(b"{}", 1.0, 0.0, 1)] * 3
        assert await runs.users(key, samples) == [["a"], ["a", "b"], []]
        used = await runs.used("b")
        assert used and used.has(key, samples) and not used.has(other, samples)
        assert await runs.used("x") is None
        runs.forget(key)
        assert await runs.users(key, samples) == [[], [], []]
        assert await runs.users(other, samples) == [["c"], [], []]
        assert used.pools == {pool_of(key)}

    asyncio.run(test())


SAMPLES = [Sample(b'{"n":%d}' % n, 10.0 + n, 1.0, 1) for n in range(3)]

FREE: dict[str, tuple[Run, list[int], list[int]]] = {
    # the run, the places that it has taken, and the samples that are left for it
    "nothing": (Run("a", 1.0, 1.0), [], [0, 1, 2]),
    "the first": (Run("a", 1.0, 1.0), [0], [1, 2]),
    "one in the middle": (Run("a", 1.0, 1.0), [1], [0, 2]),
    "all": (Run("a", 1.0, 1.0), [0, 1, 2], []),
    "fresh": (Run("a", 1.0, 1.0, fresh_since=SAMPLES[1].stored_at), [], [1, 2]),
    "fresh, and all is old": (Run("a", 1.0, 1.0, fresh_since=inf), [], []),
}


@each("case", FREE)
def test_free(case: str) -> None:
    """A call of a run may have what that has not taken; nothing is taken by looking."""
    run, taken, left = FREE[case]
    runs, key = Runs(), b"k" * 32
    runs.log.runs["a"] = run
    for place in taken:
        run.places.take(pool_of(key), place)
    free = asyncio.run(runs.free("a", key, SAMPLES))
    assert list(free) == [SAMPLES[place] for place in left]
    assert list(run.places[pool_of(key)]) == taken
    assert not run.places.has_floor(pool_of(key))
    assert asyncio.run(runs.free("b", key, SAMPLES)) == SAMPLES
