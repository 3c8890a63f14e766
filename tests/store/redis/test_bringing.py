"""A call gets what it lacks from others, or the right to fetch it."""

from __future__ import annotations

import asyncio
import time

from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, OTHER, Proxy, lists, sharing, until

pytestmark = needs_redis


def test_all_or_nothing(server: RedisServer) -> None:
    """A call that gets only some of the leases that it wants keeps none while it waits."""

    async def work(one: Proxy, two: Proxy) -> None:
        first = await one.bring(1, KEY)
        assert first.lease
        both = asyncio.ensure_future(two.bring(1, KEY, OTHER))
        await until(lambda: two.store.facts()["waiting"])
        began = time.monotonic()
        other = await one.bring(1, OTHER)
        assert other.lease
        assert time.monotonic() - began < 4, "sooner than a lease ends by itself"
        for lease in (first.lease, other.lease):
            lease.release()
        found = await both
        assert found.lease
        assert two.store.facts()["leases"] == 2

    sharing(server, work)


def test_what_comes_while_it_is_looked_for(server: RedisServer) -> None:
    """A call whose pool grows by another way, while the server is asked for more, asks again: it
    goes on with the lease, or it would generate beside another proxy."""

    async def work(one: Proxy, two: Proxy) -> None:
        two.append(*"abcd")
        await two.written()
        bringing = asyncio.ensure_future(one.bring(6))
        await asyncio.sleep(0)  # it is on its way
        one.append(*"abcd")
        found = await bringing
        assert found.lease and one.texts() == "abcd"
        assert lists(server) == {"0": "abcd"}

    sharing(server, work)


def test_who_stops_waiting_leaves_nothing(server: RedisServer) -> None:
    async def work(one: Proxy, two: Proxy) -> None:
        first = await one.bring(1)
        waiting = asyncio.ensure_future(two.bring(1))
        await until(lambda: two.store.facts()["waiting"])
        waiting.cancel()
        assert first.lease
        first.lease.release()
        # In the middle of claiming.
        claiming = asyncio.ensure_future(two.bring(1))
        await asyncio.sleep(0)
        claiming.cancel()
        await one.written()
        again = await one.bring(1)
        assert again.lease
        assert not two.store.facts()["waiting"] + two.store.facts()["leases"]

    sharing(server, work)
