"""The runs that are known."""

from __future__ import annotations

import asyncio
import time

from sglang_cached_addon.service.runs import Runs


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
