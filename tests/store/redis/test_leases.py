"""A lease is one proxy's, lives while that does, and is handed on."""

from __future__ import annotations

import asyncio

import pytest

from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import OTHER, Proxy, sharing, until

pytestmark = needs_redis


def test_a_lease_is_handed_on(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits gets the lease as soon as it is free, and nobody else's is freed."""
    monkeypatch.setattr("sglang_cached_addon.store.redis.leases.LOOK_SECONDS", 600.0)

    async def work(one: Proxy, two: Proxy) -> None:
        first = await one.bring(1)
        assert first.lease
        waiting = asyncio.ensure_future(two.bring(1))
        await until(lambda: two.store.facts()["waiting"])
        first.lease.release()
        async with asyncio.timeout(60):
            second = await waiting
        assert second.lease
        first.lease.release()  # which is the other's by now
        await one.written()
        with server.client() as client:
            (name,) = client.keys("*:lease")
            assert client.get(name) == second.lease.token.encode()
            assert 0 < client.pttl(name) <= 5000

    sharing(server, work)


def test_a_lease_is_prolonged(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that lives keeps its lease, though the server has lost it, until it is released."""
    monkeypatch.setattr("sglang_cached_addon.store.redis.link.RENEW_SECONDS", 0.02)

    async def work(one: Proxy, two: Proxy) -> None:
        brought = await one.bring(1)
        assert brought.lease
        with server.client() as client:
            (name,) = client.keys("*:lease")
            client.pexpire(name, 1000)
            await until(lambda: client.pttl(name) > 4000)
            client.delete(name)
            await until(lambda: client.get(name) == brought.lease.token.encode())
            client.set(name, "another's", px=1000)
            await until(lambda: client.pttl(name) > 4000)
            assert client.get(name) == b"another's"
            client.delete(name)
            await until(lambda: client.exists(name))
            brought.lease.release()
            await until(lambda: not client.exists(name))
            await asyncio.sleep(0.1)
            assert not client.exists(name)

    sharing(server, work)


def test_a_server_that_comes_back_empty(server: RedisServer) -> None:
    """A proxy that had a lease has it again before anybody else can take it."""

    async def work(one: Proxy, two: Proxy) -> None:
        brought = await one.bring(1)
        assert brought.lease
        server.stop()
        await until(lambda: not one.store.is_up)
        one.append("x" * 100_000, key=OTHER)
        server.start()
        await until(lambda: one.store.is_up)
        with server.client() as client:
            assert client.get(client.keys("*:lease")[0]) == brought.lease.token.encode()

    sharing(server, work)
