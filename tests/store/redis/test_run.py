"""One run at two proxies: nobody gets what another has, and what is lost is told again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sglang_cached_addon.store.redis.run import SharedRun
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import Proxy, sharing, silent, until

pytestmark = needs_redis


Work = Callable[[SharedRun, SharedRun], Awaitable[None]]


def runs_of(proxy: Proxy) -> Any:
    assert proxy.store.runs
    return proxy.store.runs


def drawing(server: RedisServer, work: Work) -> None:
    """Lets two proxies use a run."""

    async def both(one: Proxy, two: Proxy) -> None:
        await work(*(runs_of(proxy).use("a", time.time()) for proxy in (one, two)))
        for proxy in (one, two):
            await proxy.written()

    sharing(server, both)


def told(server: RedisServer) -> dict[str, set[int]]:
    """The marks that the server has."""
    with server.client() as client:
        taken = client.smembers("sglang-cached:4:{run:a}:taken")
        held = client.hkeys("sglang-cached:4:{run:a}:held")
    return {
        "taken": {int(mark) for mark in taken if len(mark) < 4},
        "held": {int(mark) for mark in held},
    }


def test_taking(server: RedisServer) -> None:
    """What is delivered is taken for good, and what is not is free again."""

    async def work(one: SharedRun, two: SharedRun) -> None:
        assert await one.take([(2, [1, 2, 3])]) == [1, 2]
        assert not any(map(one.is_free, (1, 2)))
        assert one.is_free(3)
        assert await two.take([(1, [1, 2])]) == []  # it has to hear of the run first
        assert await two.take([(1, [1, 2])]) == []
        assert two.is_free(1)
        one.settle([1], one.turn, is_delivered=True)
        one.settle([2], one.turn, is_delivered=False)
        await until(lambda: told(server) == {"taken": {1}, "held": set()})
        assert await two.take([(1, [1, 2])]) == [2]
        assert (two.is_free(1), one.is_free(2)) == (False, True)
        assert two.hold(7)
        assert not two.hold(7)
        await until(lambda: told(server) == {"taken": {1}, "held": {2, 7}})

    drawing(server, work)


def test_at_once(server: RedisServer) -> None:
    """Those who ask at the same moment ask for different ones, and each gets its own."""

    async def work(one: SharedRun, two: SharedRun) -> None:
        taking = asyncio.ensure_future(one.take([(1, [0, 1])]))
        await asyncio.sleep(0)
        assert not (one.is_free(0) or one.is_free(1))
        one.settle(await taking or (), one.turn, is_delivered=False)

        async def take(run: SharedRun) -> list[int]:
            current, refused = None, set[int]()
            while current != run.current or len(refused) < 20:
                current = run.current
                marks = [m for m in range(20) if run.is_free(m) and m not in refused][:1]
                found = await run.take([(1, marks)])
                assert found is not None
                if found:
                    return found
                if current == run.current:
                    refused |= set(marks)
            return []

        found = await asyncio.gather(*(take(run) for run in (one, two) * 10))
        assert sorted(mark for some in found for mark in some) == list(range(20))

    drawing(server, work)


def test_a_proxy_that_lives(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on holding what it has."""
    monkeypatch.setattr("sglang_cached_addon.store.redis.link.RENEW_SECONDS", 0.02)

    async def work(one: SharedRun, two: SharedRun) -> None:
        name = "sglang-cached:4:{run:a}:held"
        assert await one.take([(1, [5])]) == [5]
        with server.client() as client:
            former = client.hget(name, "5")
            await until(lambda: client.hget(name, "5") > former)
            client.delete(name)
            await until(lambda: told(server)["held"] == {5})

    drawing(server, work)


def test_a_server_that_comes_back_empty(server: RedisServer) -> None:
    """Each tells what it knows to be taken, and what it holds; until all have had the time to do
    so, nothing is given out."""

    async def both(first: Proxy, second: Proxy) -> None:
        one, two = (runs_of(proxy).use("a", time.time()) for proxy in (first, second))
        assert await one.take([(2, [1, 2])]) == [1, 2]
        await two.take([])
        assert await two.take([(1, [3])]) == [3]
        one.settle([1], one.turn, is_delivered=True)
        two.settle([3], two.turn, is_delivered=True)
        await first.written()
        await second.written()
        server.stop()
        await until(lambda: not (first.store.is_up or second.store.is_up))
        one.hold(4)
        server.start()
        await until(lambda: first.store.is_up and second.store.is_up)
        await until(lambda: told(server) == {"taken": {1, 3}, "held": {2, 4}})
        assert await one.take([(1, [9])]) is None
        with server.client() as client:
            client.hset("sglang-cached:4:{run:a}", "quiet", 0)  # as if so much time had passed
        assert await two.take([(1, [1, 9])]) == [9]

    sharing(server, both)


def test_much_to_tell(server: RedisServer) -> None:
    """What is told of many samples goes out in pieces, and is complete in the end."""

    async def work(one: SharedRun, two: SharedRun) -> None:
        marks = range(100_000, 102_500)
        for mark in marks:
            one.hold(mark)
        one.settle(marks, one.turn, is_delivered=True)
        with server.client() as client:
            await until(lambda: client.scard("sglang-cached:4:{run:a}:taken") == 2501)

    drawing(server, work)


def test_an_answer_that_is_lost(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was granted then is asked for again, and had."""

    async def work(one: SharedRun, two: SharedRun) -> None:
        await one.take([])
        monkeypatch.setattr("sglang_cached_addon.store.redis.runs.PATIENCE_SECONDS", 60.0)
        with silent(server):
            taking = asyncio.ensure_future(one.take([(1, [1, 2])]))
            await asyncio.sleep(0.5)
        assert await taking == [1]
        await until(lambda: told(server)["held"] == {1})

    drawing(server, work)
