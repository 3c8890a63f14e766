"""Pools here and on the server become one another's beginning."""

from __future__ import annotations

import asyncio
import time

import pytest

from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import pools
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, OTHER, Proxy, lists, said, sharing, until

pytestmark = needs_redis

THIRD = b"t" * 32


def test_two_who_did_not_know_of_each_other(server: RedisServer) -> None:
    """Samples of two proxies that did not know of each other are all there, once, in order."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        two.append("c")
        await until(lambda: sorted(lists(server).get("0", "")) == ["a", "b", "c"])
        together = lists(server)["0"]
        for proxy in (one, two):
            await proxy.written()
            while len(proxy.texts()) < 3:
                await proxy.bring(3, claims=False)
            assert proxy.texts() == together

    sharing(server, work)


def test_a_list_that_vanishes(server: RedisServer) -> None:
    """A list that the server has lost is written again from what is at hand."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        await one.written()
        with server.client() as client:
            client.flushall()
        assert one.texts() == "ab"
        brought = await one.bring(3)
        assert brought.lease
        one.append("c")
        brought.lease.release()
        await one.written()
        assert lists(server) == {"0": "abc"}

    sharing(server, work)


def test_cleared_while_it_is_brought(server: RedisServer) -> None:
    """What is read of a list while somebody clears it is not taken."""

    async def work(one: Proxy, two: Proxy) -> None:
        for n in range(40):
            one.append("a")
            await one.written()
            with server.client() as client:
                client.flushall()
            two.append("c", "d", "e")
            await two.written()
            bringing = asyncio.ensure_future(one.bring(3, claims=False))
            await asyncio.sleep(n * 0.0001)
            cleared = one.store.clear()
            await bringing
            assert one.texts() == "", n
            await asyncio.wrap_future(cleared)
            await until(lambda: not two.texts())

    sharing(server, work)


def test_what_cannot_be_read(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that cannot be read is left alone, which is logged once, until it is replaced."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        with server.client() as client:
            (name,) = client.keys("*:0")
            client.rpush(name, b"4 00000000 1.0 x {}\n")
            client.rpush(name.replace(KEY.hex().encode(), THIRD.hex().encode()), b"junk")
            client.set(name.replace(KEY.hex().encode(), OTHER.hex().encode()), "no list")
        for key in (KEY, OTHER, THIRD):
            for _ in range(2):
                assert await two.bring(2, key) == Brought()
                two.append("x", key=key)
        assert [two.texts(key) for key in (KEY, OTHER, THIRD)] == ["xx"] * 3
        assert two.store.is_up
        assert len([r for r in caplog.records if "cannot be used" in r.message]) == 1
        two.append("y", since=5.0, at=6.0)
        await two.written()
        assert lists(server)["0"] == two.texts() == "yx"

    sharing(server, work)


def test_expired_samples(server: RedisServer) -> None:
    """Samples that have expired are taken by nobody, and are removed from the server."""
    now = time.time()

    async def work(one: Proxy, two: Proxy) -> None:
        two.append("a", at=now - 200)
        two.append("b", at=now)
        await two.written()
        while not one.texts():
            await one.bring(2, claims=False)
        assert one.texts() == "b"
        await until(lambda: lists(server) == {"0": "b"})
        brought = await one.bring(2)
        assert brought.lease
        one.append("c", at=now)
        await one.written()
        assert lists(server) == {"0": "bc"}

    sharing(server, work, lambda: MemoryStore(ttl=100.0))


def test_a_sample_that_is_too_large(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pools, "MAX_ELEMENT", 200)

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a" * 300)
        assert one.texts() == "a" * 300
        assert one.store.facts()["pending"] == 0
        assert "too large" in caplog.text

    sharing(server, work)


def test_look(server: RedisServer) -> None:
    """What the server has of a pool is seen, and stays there alone."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        await one.written()
        found = await two.store.look([KEY, OTHER])
        assert (said(found[KEY]), list(found[OTHER])) == ("ab", [])
        assert two.texts() == ""
        with server.client() as client:
            (name,) = client.keys("*:0")
        two.append("c", key=OTHER)
        await two.written()
        with server.client() as client:
            client.flushall()
        assert said((await two.store.look([OTHER]))[OTHER]) == "c"
        with server.client() as client:
            client.rpush(name, "no sample")
        assert list((await two.store.look([KEY]))[KEY]) == []

    sharing(server, work)
