"""All runs: what people see of them, what they change, and how they are forgotten."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import marks, pool_of
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore
from sglang_cached_addon.store.redis.runs import SharedRuns
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, Proxy, sharing, until

pytestmark = needs_redis


def runs_of(proxy: Proxy) -> SharedRuns:
    assert proxy.store.runs
    return proxy.store.runs


def test_seen_and_changed(server: RedisServer) -> None:
    """All proxies see the same, whoever has changed it; a run that is over is none of them."""

    async def work(first: Proxy, second: Proxy) -> None:
        one, two = runs_of(first), runs_of(second)
        assert await one.shown() == []
        for nothing in (one.show, one.rewind, one.delete):
            assert await nothing("a") is None
        run = one.use("a", 5.0)
        await run.take([(1, [1])])
        run.reused += 1
        run.settle([1], run.turn, is_delivered=True)
        assert (await two.begin("b") or {})["calls"] == 0
        await first.written()
        a, b = await two.shown()
        assert a == await one.show("a") == {
            "name": "a", "calls": 1, "places": 1, "reused": 1, "generated": 0,
            "first": 5.0, "last": 5.0, "fresh_since": None,
        }  # fmt: skip
        assert (b["name"], b["places"]) == ("b", 0)
        assert b["fresh_since"] <= time.time()
        assert (await two.rewind("a") or {})["places"] == 0
        assert await run.take([(1, [1])]) == []
        assert await run.take([(1, [1])]) == [1]
        assert (await two.delete("a") or {})["places"] == 1
        assert await one.shown() == [b]
        assert await run.take([(1, [1])]) == []
        assert await run.take([(1, [1])]) == [1]
        await first.written()
        assert (await two.show("a") or {})["places"] == 1

    sharing(server, work)


def test_forgotten(server: RedisServer) -> None:
    """A run that was not used for so long is no more, here and on the server."""

    async def work(one: Proxy, two: Proxy) -> None:
        runs = runs_of(Proxy(SharedStore(server.url, MemoryStore(), 100.0)))
        now = time.time()
        old = runs.use("old", now - 200)
        assert runs.use("old", now - 199) is old
        assert runs.use("new", now) is runs.use("new", now)
        assert runs.use("old", now) is not old

    sharing(server, work)


def test_a_server_that_is_away(
    server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls for which something is stored wait for a moment, and are told then that nobody knows;
    what people ask for fails. It is logged once for each time."""

    async def work(one: Proxy, two: Proxy) -> None:
        runs = runs_of(one)
        run: Any = runs.use("a", 5.0)
        monkeypatch.setattr("sglang_cached_addon.store.redis.runs.PATIENCE_SECONDS", 60.0)
        server.stop()
        with pytest.raises(OSError, match="has the runs, and does not tell"):
            await runs.show("a")
        await until(lambda: not one.store.is_up)
        assert await run.take([]) is None  # there is nothing to wait for
        waiting = asyncio.ensure_future(run.take([(1, [1])]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        server.start()
        assert await waiting == [1]
        server.stop()
        monkeypatch.setattr("sglang_cached_addon.store.redis.runs.PATIENCE_SECONDS", 0.0)
        for _ in range(2):
            assert await run.take([(1, [2])]) is None
        assert caplog.text.count("their calls are generated anew until it is back") == 2

    sharing(server, work)


def test_free(server: RedisServer) -> None:
    """The next call of a run may have what no call has at any proxy, of what is new enough; it is
    not taken by looking. Where the server does not tell, nobody knows."""
    samples = [Sample(b"{}", 10.0 + n, 1.0, 1) for n in range(4)]
    its = list(marks(pool_of(KEY), samples))

    async def work(first: Proxy, second: Proxy) -> None:
        one, two = runs_of(first), runs_of(second)

        async def free() -> list[int]:
            return [samples.index(each) for each in await two.free("a", KEY, samples)]

        assert (await free(), list(await two.free("a", KEY, []))) == ([0, 1, 2, 3], [])
        run = one.use("a", 5.0)
        assert await run.take([(2, its)]) == its[:2]
        assert await free() == [2, 3], "they are held for calls under way"
        run.settle(its[:1], run.turn, is_delivered=True)
        run.settle(its[1:2], run.turn, is_delivered=False)
        await first.written()
        assert await free() == [1, 2, 3]
        await one.rewind("a")
        assert await free() == [0, 1, 2, 3]
        await two.begin("a")
        assert await free() == []
        server.stop()
        await until(lambda: not second.store.is_up)
        with pytest.raises(OSError, match="has the runs, and does not tell of them"):
            await free()
        server.start()

    sharing(server, work)
