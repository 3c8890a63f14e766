"""Deleting a pool for all proxies, and refusing that while the server does not answer; what is
deleted where all goes well is in test_news.py."""

from __future__ import annotations

import asyncio

import pytest

from sglang_cached_addon.store.contract import Unavailable
from sglang_cached_addon.store.redis import deletions
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, Proxy, lists, sharing, silent, until

pytestmark = needs_redis


def test_while_away(server: RedisServer) -> None:
    """Who deletes while the server is away is told so, and nothing is deleted, here or there, then
    or later; another time, it is."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        with silent(server):
            await until(lambda: not one.store.is_up)
            clears = one.store.clears
            with pytest.raises(Unavailable, match="nothing is deleted here; delete it again"):
                await one.store.delete_everywhere(KEY)
            assert (one.texts(), one.store.clears) == ("a", clears)
        await until(lambda: one.store.is_up and two.store.is_up)
        await one.written()
        assert (one.texts(), lists(server)) == ("a", {"0": "a"})
        await two.bring(1)
        await asyncio.wrap_future(await one.store.delete_everywhere(KEY))
        await until(lambda: not two.texts())
        assert (one.texts(), lists(server)) == ("", {})

    sharing(server, work)


def test_lost_on_the_way(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server is lost while it is asked, nothing is deleted as far as anybody knows; if it
    has done it all the same, all proxies hear of that."""
    monkeypatch.setattr(deletions, "PATIENCE_SECONDS", 0.05)

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        await two.bring(1)
        with silent(server):
            with pytest.raises(Unavailable):
                await one.store.delete_everywhere(KEY)
            assert one.texts() == "a"
            await until(lambda: not one.store.is_up)
        await until(lambda: one.store.is_up and two.store.is_up)
        await one.written()
        await until(lambda: one.texts() == two.texts() == lists(server).get("0", ""))

    sharing(server, work)


def test_what_others_do_not_hear_of(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server takes nothing more, what is deleted on it is deleted here, and who wanted it
    is told that others may still have it; they hear of it when there is room."""
    monkeypatch.setattr(deletions, "PATIENCE_SECONDS", 0.2)

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        await two.bring(1)
        with server.client() as client:
            client.config_set("maxmemory", 1)
            try:
                with pytest.raises(OSError, match="where else it is shared") as caught:
                    await one.store.delete_everywhere(KEY)
            finally:
                client.config_set("maxmemory", 0)
        assert not isinstance(caught.value, Unavailable)
        assert (one.texts(), lists(server)) == ("", {})
        await until(lambda: not two.texts())

    sharing(server, work)
